"""Noise that belongs to an image, not to its place in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Noise"]


class Noise:
    """Standard normal draws for a batch, from one seed for each image.

    Images of one seed get the same draws, wherever and with whomever they stand; if all seeds are
    equal the noise is drawn once and shared.

    Args:
        seeds: One for each image, ``(N,)``.
        draws: D, draws of each image.
        like: Features ``(N, ...)``; they give shape, device and dtype.
    """

    def __init__(self, seeds: Sequence[int], draws: int, like: Tensor) -> None:
        own = list(dict.fromkeys(seeds))
        self._generators = [torch.Generator(like.device).manual_seed(seed) for seed in own]
        self._place = None if len(own) == 1 else [own.index(seed) for seed in seeds]
        self._shape = (draws, *like.shape[1:])
        self._like = like

    def draw(self) -> Tensor:
        """The next draws, ``(N, D, ...)``, or ``(1, D, ...)`` if shared."""
        each = [
            torch.randn(self._shape, generator=g, device=self._like.device, dtype=self._like.dtype)
            for g in self._generators
        ]
        return torch.stack(each)[self._place] if self._place else each[0][None]
