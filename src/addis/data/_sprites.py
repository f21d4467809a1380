"""Procedural sprites: every image is known by its factors.

In the manner of dSprites (L. Matthey et al., 2017, github.com/google-deepmind/dsprites-dataset).
Departures: edges are anti-aliased; rotations cover a quarter turn without its end, so that, unlike
there, no two combinations of factors look alike (a square repeats after a quarter turn, an ellipse
after a half, and dSprites has the whole turn with both its ends); positions are whole pixels.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from addis.data._embedded import split_rows
from addis.data._images import Images

__all__ = ["SHAPES", "load_sprites", "sprites"]

SHAPES: Final = ("square", "ellipse", "heart")
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
_FINE: Final = 8  # sample points a pixel, along each axis


def sprites(
    size: int = 32,
    *,
    scales: int = 4,
    rotations: int = 10,
    positions: int = 16,
    colours: int = 1,
) -> Images:
    """Draws one sprite for each combination of factors.

    The factors are, the last changing fastest: shape (3), scale, rotation, x, y, colour. The column
    ``factors``, int64 ``(N, 6)``, numbers them from 0; ``values``, float64 ``(N, 6)``, has what
    they stand for: the shape's number, the scale relative to the largest (from 0.5 to 1), the angle
    in radians (from 0 to less than pi / 2), the centre in ``[0, 1]`` (y points down), the hue in
    ``[0, 1)``. ``targets`` are the shapes.

    Args:
        size: Height and width in pixels, a multiple of 4, ``>= 8``. The largest sprite is half as
            wide.
        scales: Number of scales, ``>= 1``.
        rotations: Number of angles, ``>= 1``.
        positions: Number of positions along each axis, from 1 to ``size // 2 + 1``.
        colours: 1 draws in white, ``(N, 1, H, W)``; more give as many hues, ``(N, 3, H, W)``.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> from addis import data
        >>> data.sprites(16, scales=2, rotations=3, positions=4)
        Images(sprites all: 288 x 1x16x16, 3 classes)
    """
    if size < 8 or size % 4:
        raise ValueError(f"size must be a multiple of 4 and >= 8, got {size}")
    for name, count in (("scales", scales), ("rotations", rotations), ("colours", colours)):
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")
    if not 1 <= positions <= size // 2 + 1:
        raise ValueError(f"positions must be in [1, {size // 2 + 1}], got {positions}")
    scale: Floats = np.linspace(0.5, 1.0, scales) if scales > 1 else np.ones(1)
    angle = np.arange(rotations, dtype=np.float64) * (math.pi / 2 / rotations)
    corner = _corners(size, positions)
    templates = _templates(size, scale, angle)  # (S * K * R, size / 2, size / 2)
    images = _placed(templates, corner, size)  # (S * K * R, P, P, size, size)
    hue = np.arange(colours) / colours
    counts = (len(SHAPES), scales, rotations, positions, positions, colours)
    factors = np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), 1)
    centre = (corner + size / 4) / size
    values = (np.arange(3.0), scale, angle, centre, centre, hue)
    return Images(
        images=torch.from_numpy(_coloured(images.reshape(-1, size, size), hue)),
        targets=torch.from_numpy(factors[:, 0].astype(np.int64)),
        classes=SHAPES,
        name="sprites",
        split="all",
        numbers={
            "factors": torch.from_numpy(factors.astype(np.int64)),
            "values": torch.from_numpy(
                np.stack([v[f] for v, f in zip(values, factors.T, strict=True)], 1)
            ),
        },
    )


def load_sprites(name: str, split: str) -> Images:
    """The 30,720 sprites of the default size and factors, and the split of the embedded sets."""
    images = sprites()
    if split == "all":
        return images
    rows = images.subset(split_rows(name, images.targets, split))
    return replace(rows, split=split)


def _corners(size: int, positions: int) -> npt.NDArray[np.int64]:
    """Left edges, in pixels, of templates half as wide as the image, evenly spaced and centred."""
    room = size // 2
    step = room // max(positions - 1, 1)
    return (room - step * (positions - 1)) // 2 + step * np.arange(positions)


def _templates(size: int, scales: Floats, angles: Floats) -> Bytes:
    """Each shape, scale and angle in the middle of a square: coverage of the pixels, 0 to 255."""
    half = size // 2
    grid = (np.arange(half * _FINE) + 0.5) / _FINE - half / 2  # pixels from the middle
    unit = size / 4
    pictures = []
    for shape in (_square, _ellipse, _heart):
        for scale in scales:
            for angle in angles:
                x, y = grid[None, :] / (unit * scale), grid[:, None] / (unit * scale)
                u = math.cos(angle) * x + math.sin(angle) * y
                v = math.cos(angle) * y - math.sin(angle) * x
                inside = shape(u, v).reshape(half, _FINE, half, _FINE)
                pictures.append(np.rint(inside.mean((1, 3)) * 255).astype(np.uint8))
    return np.stack(pictures)


def _square(u: Floats, v: Floats) -> Floats:
    return (np.maximum(abs(u), abs(v)) <= math.sqrt(0.5)).astype(float)


def _ellipse(u: Floats, v: Floats) -> Floats:
    return (u**2 + (2 * v) ** 2 <= 1).astype(float)


def _heart(u: Floats, v: Floats) -> Floats:
    """The sextic heart; its farthest point is 1.425 from the middle."""
    x, y = 1.43 * u, -1.43 * v
    return ((x**2 + y**2 - 1) ** 3 <= x**2 * y**3).astype(float)


def _placed(templates: Bytes, corner: npt.NDArray[np.int64], size: int) -> Bytes:
    """Each template at each position: ``(templates, x, y, size, size)``."""
    n, half = len(templates), size // 2
    images = np.zeros((n, len(corner), len(corner), size, size), np.uint8)
    for i, left in enumerate(corner):
        for j, top in enumerate(corner):
            images[:, i, j, top : top + half, left : left + half] = templates
    return images


def _coloured(images: Bytes, hues: Floats) -> Bytes:
    """Each image ``(H, W)`` in each hue ``(N, 3, H, W)``; if there is but one, in white."""
    if len(hues) == 1:
        return images[:, None]
    rgb = np.array([colorsys.hsv_to_rgb(hue, 1.0, 1.0) for hue in hues])  # (hues, 3)
    bright = images[:, None, None] * rgb[:, :, None, None]
    coloured: Bytes = np.rint(bright).astype(np.uint8).reshape(-1, 3, *images.shape[1:])
    return coloured
