"""Data sets of images with a class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from addis.data._images import Indices, as_index, scaled

__all__ = ["Segmentation"]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Dataset[tuple[Tensor, Tensor]]):
    """Images of one size with a class for each pixel.

    ``Batches((set.images, set.masks), ...)`` iterates over it.

    Args:
        images: ``(N, C, H, W)``, uint8; may be mapped from a cache file.
        masks: ``(N, H, W)``, uint8, indices into ``classes``, or ``ignore_index``.
        classes: Names of the classes.
        ids: Names of the N images.
        name: Name of the set, as :func:`addis.data.load` takes it.
        split: Name of the split.
        ignore_index: The value of pixels that have no class and count in no loss or score.

    Raises:
        TypeError: ``images`` or ``masks`` is not uint8.
        ValueError: A shape is not as above.
    """

    images: Tensor
    masks: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    name: str
    split: str
    ignore_index: int

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.masks.dtype != torch.uint8:
            raise TypeError(
                f"images and masks must be uint8, got {self.images.dtype} and {self.masks.dtype}"
            )
        n, _, h, w = self.images.shape
        if self.masks.shape != (n, h, w) or len(self.ids) != n:
            raise ValueError(
                f"masks must be {(n, h, w)} and ids {n}, got {tuple(self.masks.shape)} and"
                f" {len(self.ids)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image, float32 ``(C, H, W)`` in ``[0, 1]``, and its mask, int64 ``(H, W)``."""
        return scaled(self.images[index]), self.masks[index].long()

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        return (
            f"Segmentation({self.name} {self.split}: {len(self)} x {shape},"
            f" {len(self.classes)} classes)"
        )

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Copies the images and masks at ``indices``: uint8 ``(n, C, H, W)`` and ``(n, H, W)``."""
        index = as_index(indices, self.images.device)
        return self.images.index_select(0, index), self.masks.index_select(0, index)
