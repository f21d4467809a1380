"""Square tiles of an image: the features that the deletion metrics remove."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Tiling"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles of side ``tile`` of an image, numbered row by row; T of them.

    An image has ``height // tile`` rows and ``width // tile`` columns of tiles, and the last of
    each absorbs the
    remainder: 37 pixels at ``tile=8`` are tiles of 8, 8, 8 and 13 pixels.

    Args:
        height: H, pixels.
        width: W, pixels.
        tile: Side of a tile in pixels, ``1 <= tile <= min(H, W)``.

    Raises:
        ValueError: ``tile`` is outside that range.
    """

    height: int
    width: int
    tile: int

    def __post_init__(self) -> None:
        if not 1 <= self.tile <= min(self.height, self.width):
            raise ValueError(
                f"tile must be between 1 and {min(self.height, self.width)} for images of "
                f"{self.height}x{self.width}, got {self.tile}"
            )

    @property
    def count(self) -> int:
        """T, the number of tiles."""
        return (self.height // self.tile) * (self.width // self.tile)

    def index(self, device: torch.device | None = None) -> Tensor:
        """The tile of each pixel, int64 ``(H, W)``."""
        columns = self.width // self.tile
        return self._along(self.height, device)[:, None] * columns + self._along(self.width, device)

    def sums(self, maps: Tensor) -> Tensor:
        """Sums ``maps`` ``(N, H, W)`` over each tile, in float64: ``(N, T)``.

        Products with 0/1 matrices rather than a scatter, so that a GPU gives the same bits every
        time.
        """
        rows = _one_hot(self._along(self.height, maps.device))  # (H, rows)
        columns = _one_hot(self._along(self.width, maps.device))  # (W, columns)
        return (rows.T @ maps.double() @ columns).flatten(1)

    def means(self, maps: Tensor) -> Tensor:
        """Averages ``maps`` ``(N, H, W)`` over each tile, in float64: ``(N, T)``.

        A constant float32 map gives equal means for tiles of unequal areas: its sums are exact in
        float64.
        """
        return self.sums(maps) / self.sums(torch.ones_like(maps[:1]))

    def spread(self, values: Tensor) -> Tensor:
        """Gives each pixel the value of its tile: ``(..., T)`` to ``(..., H, W)``."""
        return values[..., self.index(values.device)]

    def _along(self, length: int, device: torch.device | None) -> Tensor:
        position = torch.arange(length, device=device) // self.tile
        return position.clamp_max(length // self.tile - 1)


def _one_hot(index: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(index).double()
