"""A model at one batch whose layer passes through the noisy channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from addis.explain._channel import (
    Layout,
    LayoutName,
    Prior,
    blur,
    capacity_nats,
    layout_of,
    resize_to,
    smoothing,
)
from addis.explain._split import Split, Splitter
from addis.explain._stats import BottleneckStats

__all__ = ["Restricted", "restrict"]


@dataclass(frozen=True, slots=True)
class Restricted:
    """The model from a layer on, with noise in the place of what a mask takes out.

    Attributes:
        split: The model cut after the layer.
        prior: What replaces a masked cell.
        layout: Where channels and positions are in the features.
        features: R in at least float32, ``(N, ...)``, 0 in an inactive cell.
        normal: R less its mean, over its standard deviation, ``(N, ...)``; 0 in an inactive cell.
        matrices: The blur of each spatial axis.
        images: Spatial size of the input.
        draws: D, noise draws of each image.
    """

    split: Split
    prior: Prior
    layout: Layout
    features: Tensor
    normal: Tensor
    matrices: tuple[Tensor, ...]
    images: tuple[int, ...]
    draws: int

    @property
    def on_pixels(self) -> bool:
        """Whether the layer's positions lie on the input's axes."""
        return bool(self.layout.spatial) and len(self.layout.spatial) == len(self.images)

    @property
    def index(self) -> Tensor:
        """The image of each row that goes through the head, ``(N * D,)``."""
        images = torch.arange(len(self.features), device=self.features.device)
        return images.repeat_interleave(self.draws)

    def masks(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """``lambda = blur(sigmoid(alpha))`` and ``1 - lambda = blur(sigmoid(-alpha))``, both ``(N,
        ...)``.

        The complement has a blur of its own: subtracted from 1, a nearly open mask would lose all
        its digits.
        """
        return self.smooth(alpha.sigmoid()), self.smooth((-alpha).sigmoid())

    def smooth(self, mask: Tensor) -> Tensor:
        """Blurs ``(N, ...)`` over the positions; tokens without one, and vectors, are left as they
        are.
        """
        if not self.matrices:
            return mask
        with torch.autocast(mask.device.type, enabled=False):
            grid = blur(self.layout.grid(mask), self.matrices)
        return self.layout.cells(grid, like=mask)

    def run(self, mask: Tensor, noise: Tensor) -> Any:
        """The model's output with the restricted features, rows of one image together."""
        z = self.prior.noisy(self.features, mask, noise)
        return self.split.head(z.to(self.split.features.dtype))

    def capacity(self, mask: Tensor, share: Tensor) -> Tensor:
        """Information of each cell in nats, ``(N, ...)``."""
        return capacity_nats(self.normal, mask, share) * self.prior.active

    def bits(self, capacity: Tensor) -> Tensor:
        """Total information of each image in bits, ``(N,)``."""
        return capacity.flatten(1).sum(dim=1) / _LN2

    def bits_map(self, capacity: Tensor, *, per_pixel: bool) -> Tensor:
        """Information at each position in bits: of the layer's grid, or spread over the input's
        pixels.

        Per pixel the map is resized and divided by the pixels of a cell, so that its sum stays the
        total; where :attr:`on_pixels` is false, it is left as it is. Behind a layer without
        positions it is the bits of each unit, ``(N, C)``.
        """
        maps = self.layout.positions(capacity) / _LN2
        if not (per_pixel and self.on_pixels):
            return maps
        scale = torch.Size(self.layout.spatial).numel() / torch.Size(self.images).numel()
        return resize_to(maps, self.images) * scale


def restrict(
    splitter: Splitter,
    x: Tensor,
    stats: BottleneckStats,
    *,
    draws: int,
    smooth: float,
    min_std: float,
    active_threshold: float,
    clamp: bool,
    layout: LayoutName | Layout,
) -> Restricted:
    """Cuts the model at a batch and sets up the channel; see :class:`InformationBottleneck`.

    Raises:
        ValueError: The features have another shape than the statistics.
    """
    split = splitter(x, draws)
    shape = tuple(split.features.shape[1:])
    if shape != stats.shape:
        raise ValueError(
            f"the layer gives features of shape {shape}, the statistics have {stats.shape}: "
            "estimate them again at this input size, or use stats.resize"
        )
    precise = torch.promote_types(split.features.dtype, torch.float32)
    features = split.features.to(precise).contiguous()
    prior = stats.gaussian(min_std=min_std, active_threshold=active_threshold, like=features)
    if clamp:
        prior = Prior(prior.mean, prior.std, prior.active, clamp=True)
    where = layout_of(shape, tuple(x.shape[1:]), layout)
    matrices = tuple(smoothing(size, smooth, features) for size in where.spatial) if smooth else ()
    return Restricted(
        split=split,
        prior=prior,
        layout=where,
        features=features * prior.active,
        normal=prior.normalised(features),
        matrices=matrices,
        images=tuple(x.shape[2:]),
        draws=draws,
    )


_LN2 = math.log(2)
