"""Cuts images into tiles of outputs and patches of inputs, and puts them together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from addis.nn._scheme import PATCH, TILE

__all__ = ["Part", "parts", "patches_of", "place", "spectra_of", "tiles_of"]


class Part(NamedTuple):
    """Images and rows of tiles that are worked on at a time."""

    images: slice
    rows: slice


def parts(n: int, rows: int, columns: int, tiles: int) -> Iterator[Part]:
    """Images, or bands of a large one, of about so many tiles, of nearly equal size."""
    images = _even(n, max(1, tiles // (rows * columns)))
    band = rows if rows * columns <= 2 * tiles else _even(rows, max(1, tiles // columns))
    for image in range(0, n, images):
        for row in range(0, rows, band):
            yield Part(slice(image, min(image + images, n)), slice(row, min(row + band, rows)))


def _even(length: int, most: int) -> int:
    """The least share of a length that needs no more shares than ``most`` does."""
    shares = -(-length // most)
    return -(-length // shares) if length else 1


def place(tiles: Tensor, output: Tensor, part: Part) -> None:
    """Writes tiles ``(4, 4, n, rows, columns, O)`` of a part into ``(N, O, H, W)``, cut at the
    borders.
    """
    h, w = output.shape[2:]
    rows, columns = tiles.shape[3:5]
    top = TILE * part.rows.start
    target = output[part.images, :, top : top + TILE * rows].permute(0, 2, 3, 1)
    ordered = tiles.permute(2, 3, 0, 4, 1, 5)
    if target.shape[1] == TILE * rows and w == TILE * columns:
        target.view(ordered.shape).copy_(ordered)
    else:
        target.copy_(ordered.flatten(3, 4).flatten(1, 2)[:, : h - top, :w])


def spectra_of(patches: Tensor, into: Tensor) -> Tensor:
    """Patches ``(6, 6, n, rows, columns, I)`` at the points, ``(36, tiles, I)``."""
    return (into @ patches.reshape(PATCH**2, -1)).view(PATCH**2, -1, patches.shape[-1])


def patches_of(x: Tensor, part: Part, columns: int) -> Tensor:
    """Overlapping patches of a part of ``(N, I, H, W)``, ``(6, 6, n, rows, columns, I)``."""
    margin = PATCH - TILE
    padded = _cut(x, part, 1, TILE * columns + margin, margin)
    rows = part.rows.stop - part.rows.start
    image, row, column, channel = padded.stride()
    return padded.as_strided(
        (PATCH, PATCH, len(padded), rows, columns, padded.shape[3]),
        (row, column, image, TILE * row, TILE * column, channel),
    )


def tiles_of(grad: Tensor, part: Part, columns: int) -> Tensor:
    """Tiles of a part, ``(16, tiles * O)``."""
    padded = _cut(grad, part, 0, TILE * columns, 0)
    n, _, _, channels = padded.shape
    tiles = padded.view(n, -1, TILE, columns, TILE, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5).reshape(TILE**2, -1)


def _cut(x: Tensor, part: Part, before: int, width: int, margin: int) -> Tensor:
    """A part of ``(N, C, H, W)``, channels last, with zeros where it lies outside."""
    h, w = x.shape[2:]
    top = TILE * part.rows.start - before
    height = TILE * (part.rows.stop - part.rows.start) + margin
    low, high = max(top, 0), min(top + height, h)
    inner = x[part.images, :, low:high].permute(0, 2, 3, 1)
    return F.pad(
        inner, (0, 0, before, width - w - before, low - top, top + height - high)
    ).contiguous()
