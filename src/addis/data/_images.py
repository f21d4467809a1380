"""Data sets of images of one size, kept as bytes and turned into floats on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Images", "Indices", "as_index", "scaled"]

Indices = Tensor | Sequence[int] | np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images of one size.

    A torch data set that also gives whole batches at the speed of memory. ``images`` may be mapped
    from a cache file: pages are read on first use and shared between processes; writing to it
    changes this process's copy only.

    Args:
        images: ``(N, C, H, W)``, uint8, 0 black to 255 white.
        targets: ``(N,)``, int64, indices into ``classes``.
        classes: Names of the classes.
        name: Name of the set, as :func:`addis.data.load` takes it.
        split: Name of the split.
        levels: Grey steps between black and white in the source. With fewer than 255 the bytes hold
            ``round(255 * step / levels)`` and :meth:`floats` gives ``step / levels`` exactly
            (digits: 16).
        numbers: Further columns of numbers, first axis N, by name.
        texts: Further columns of N strings, by name.

    Raises:
        TypeError: ``images`` is not uint8 or ``targets`` is not int64.
        ValueError: A shape is not as above.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    levels: int = 255
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.targets.dtype != torch.int64:
            raise TypeError(
                "images must be uint8 and targets int64, got"
                f" {self.images.dtype} and {self.targets.dtype}"
            )
        if self.images.dim() != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(self.images.shape)}")
        n = len(self.images)
        if self.targets.shape != (n,):
            raise ValueError(f"targets must have shape ({n},), got {tuple(self.targets.shape)}")
        for name, column in [*self.numbers.items(), *self.texts.items()]:
            if len(column) != n:
                raise ValueError(f"column {name!r} has {len(column)} rows, images have {n}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image, float32 ``(C, H, W)`` in ``[0, 1]``, and its class."""
        return scaled(self.images[index], self.levels), int(self.targets[index])

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        return (
            f"Images({self.name} {self.split}: {len(self)} x {shape}, {len(self.classes)} classes)"
        )

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Copies the images and the targets at ``indices``, in that order, where ``images`` is.

        Args:
            indices: ``(n,)`` of any integer type, each in ``[0, N)``; repeats are allowed.

        Returns:
            uint8 ``(n, C, H, W)`` and int64 ``(n,)``.

        Raises:
            IndexError: An index is out of range.
            TypeError: ``indices`` are not integers.
        """
        index = as_index(indices, self.images.device)
        return self.images.index_select(0, index), self.targets.index_select(0, index)

    def floats(self, indices: Indices | None = None) -> Tensor:
        """The images at ``indices`` (``None``: all), float32 ``(n, C, H, W)`` in ``[0, 1]``.

        Example:
            >>> from addis import data
            >>> data.load("digits").floats([0, 1]).shape
            torch.Size([2, 1, 8, 8])
        """
        return scaled(self.images if indices is None else self.batch(indices)[0], self.levels)

    def subset(self, indices: Indices) -> Images:
        """The images at ``indices`` with all their columns.

        A ``range`` of step 1 shares this set's memory; anything else is a copy.

        Example:
            >>> from addis import data
            >>> data.load("digits").subset(range(100))
            Images(digits train: 100 x 1x8x8, 10 classes)
        """
        if isinstance(indices, range) and indices.step == 1:
            return self._rows(slice(indices.start, max(indices.start, indices.stop)))
        return self._rows(as_index(indices, torch.device("cpu")))

    def to(self, device: str | torch.device) -> Images:
        """The same set with its tensors on ``device``."""
        return replace(
            self,
            images=self.images.to(device),
            targets=self.targets.to(device),
            numbers={name: column.to(device) for name, column in self.numbers.items()},
        )

    def _rows(self, rows: slice | Tensor) -> Images:
        if isinstance(rows, slice):
            if not 0 <= rows.start <= rows.stop <= len(self):
                raise IndexError(f"range({rows.start}, {rows.stop}) exceeds the {len(self)} images")
            places = list(range(rows.start, rows.stop))
        else:
            places = rows.tolist()

        def take(column: Tensor) -> Tensor:
            if isinstance(rows, slice):
                return column[rows]
            return column.index_select(0, rows.to(column.device))

        return replace(
            self,
            images=take(self.images),
            targets=take(self.targets),
            numbers={name: take(column) for name, column in self.numbers.items()},
            texts={name: tuple(column[i] for i in places) for name, column in self.texts.items()},
        )


def scaled(images: Tensor, levels: int = 255) -> Tensor:
    """Bytes as float32 in ``[0, 1]``, each at the nearest of ``levels`` equal steps."""
    values = images.to(torch.float32)
    if levels == 255:
        return values.div_(255)
    return values.mul_(levels / 255).round_().div_(levels)


def as_index(indices: Indices, device: torch.device) -> Tensor:
    """``indices`` as an int64 tensor ``(n,)`` on ``device``."""
    if isinstance(indices, range):
        indices = np.arange(indices.start, indices.stop, indices.step)
    if isinstance(indices, np.ndarray):  # torch takes no negative strides nor foreign byte orders
        indices = indices.astype(indices.dtype.newbyteorder("="), order="C")
    index = torch.as_tensor(indices)
    if index.numel() and (index.is_floating_point() or index.dtype == torch.bool):
        raise TypeError(f"indices must be integers, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"indices must have shape (n,), got {tuple(index.shape)}")
    return index.to(device=device, dtype=torch.int64)
