"""The noisy channel of the bottleneck: which cells there are, how the mask is smoothed, what
passes.

Paper: K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, arXiv:2001.00396, equations 1 to 6 and section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Layout", "LayoutName", "Prior", "capacity_nats", "layout_of", "resize_to", "smoothing"]

LayoutName = Literal["auto", "channels_first", "tokens", "vector"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the channels and the positions of a feature tensor are.

    Attributes:
        kind: ``channels_first`` ``(C, *S)``, ``tokens`` ``(P + L, C)`` or ``(*S, C)``, or
            ``vector`` ``(C,)``.
        spatial: Size of the grid of positions, ``S``; empty for a vector.
        prefix: Number P of tokens without a position (a class token, registers), first in the
            sequence.
    """

    kind: Literal["channels_first", "tokens", "vector"]
    spatial: tuple[int, ...]
    prefix: int = 0

    def grid(self, t: Tensor) -> Tensor:
        """The cells that have a position, as ``(N, C, *S)``, or ``(N, C)`` for a vector."""
        if self.kind != "tokens":
            return t
        channels = t.shape[-1]
        tokens = t.reshape(t.shape[0], -1, channels)[:, self.prefix :]
        return tokens.movedim(-1, 1).reshape(t.shape[0], channels, *self.spatial)

    def cells(self, grid: Tensor, like: Tensor) -> Tensor:
        """Puts ``grid`` ``(N, C, *S)`` back in the features' shape, other cells taken from
        ``like``.
        """
        if self.kind != "tokens":
            return grid
        tokens = grid.flatten(2).movedim(1, -1)
        rest = like.reshape(like.shape[0], -1, like.shape[-1])[:, : self.prefix]
        return torch.cat([rest, tokens], dim=1).reshape(like.shape)

    def positions(self, t: Tensor) -> Tensor:
        """Sums ``(N, ...)`` over channels to ``(N, *S)``; a vector stays ``(N, C)``."""
        return t if self.kind == "vector" else self.grid(t).sum(dim=1)


def layout_of(
    features: tuple[int, ...], images: tuple[int, ...], layout: LayoutName = "auto"
) -> Layout:
    """Reads the layout of a layer's features.

    ``auto`` takes ``(C,)`` as a vector and a sequence ``(L, C)`` behind an image as tokens.
    Features with as many axes as the input are channels first, unless their first two axes have the
    aspect of the image and their last two have not: then they are channels last. Tokens lie in a
    square grid in rows; those left over before it (a class token, registers) have no position.

    Args:
        features: Shape of the features without the batch axis.
        images: Shape of the input without the batch axis.
        layout: The layout, where ``auto`` cannot know it: ``tokens`` for channels-last maps ``(H,
            W, C)``.

    Raises:
        ValueError: The shape fits no layout, or not the one that was named.
    """
    if layout == "auto":
        layout = _guess(features, images)
    if layout == "vector" and len(features) == 1:
        return Layout("vector", ())
    if layout == "channels_first" and 2 <= len(features) <= 4:
        return Layout("channels_first", features[1:])
    if layout == "tokens" and len(features) == 2:
        length = features[0]
        if len(images) != 3:
            return Layout("tokens", (length,))
        side = math.isqrt(length)
        return Layout("tokens", (side, side), length - side * side)
    if layout == "tokens" and len(features) in (3, 4):
        return Layout("tokens", features[:-1])
    raise ValueError(f"features of shape {features} do not fit layout={layout!r}")


def _guess(features: tuple[int, ...], images: tuple[int, ...]) -> LayoutName:
    if len(features) == 1:
        return "vector"
    if len(features) == 2 and len(images) == 3:
        return "tokens"
    if len(features) == 3 and len(images) == 3:
        wanted = math.log(images[1] / images[2])
        first = abs(math.log(features[1] / features[2]) - wanted)
        last = abs(math.log(features[0] / features[1]) - wanted)
        return "tokens" if last < first else "channels_first"
    return "channels_first"


@dataclass(frozen=True, slots=True)
class Prior:
    """The Gaussian N(mean, std^2) of each cell that replaces what is masked out, eq. 3.

    Attributes:
        mean: ``(...)``, the shape of the features without the batch axis; 0 in an inactive cell.
        std: ``(...)``, at least the floor; 0 in an inactive cell.
        active: ``(...)`` bool. An inactive cell carries nothing: its output is 0, its capacity 0.
        clamp: Whether noised features are cut off at 0, as those of a layer that ends in a ReLU.
    """

    mean: Tensor
    std: Tensor
    active: Tensor
    clamp: bool

    def noisy(self, features: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Draws of Z = lambda R + (1 - lambda) eps, eq. 1.

        Args:
            features: R, ``(N, ...)``, 0 in an inactive cell.
            mask: lambda, ``(N, ...)`` in ``[0, 1]``.
            noise: Standard normal, ``(N, D, ...)`` or ``(1, D, ...)``.

        Returns:
            ``(N * D, ...)``, the draws of one image together.
        """
        eps = torch.addcmul(self.mean, noise, self.std)
        z = torch.lerp(eps, features[:, None], mask[:, None])
        return (z.clamp_min(0) if self.clamp else z).flatten(0, 1)

    def normalised(self, features: Tensor) -> Tensor:
        """Features less their mean, over their standard deviation; 0 in an inactive cell."""
        return (features - self.mean) * self.active / torch.where(self.active, self.std, 1)


def capacity_nats(r: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """KL divergence of N(lambda r, (1 - lambda)^2) from N(0, 1), eq. 6, in nats.

    ``I = ((lambda r)^2 + (1 - lambda)^2 - 1 - 2 log(1 - lambda)) / 2``. Both ``lambda`` and ``1 -
    lambda`` are arguments because neither can be had from the other near its own zero.

    Args:
        r: Features less their mean, over their standard deviation.
        mask: lambda in ``[0, 1]``.
        share: ``1 - lambda`` in ``(0, 1]``.

    Returns:
        Same shape; 0 where ``mask`` is 0.
    """
    tiny = torch.finfo(share.dtype).tiny
    small = mask < 0.5
    log_share = torch.where(
        small, torch.log1p(-torch.where(small, mask, 0)), share.clamp_min(tiny).log()
    )
    return 0.5 * ((mask * r).square() + mask * (mask - 2) - 2 * log_share)


def smoothing(size: int, std: float, like: Tensor) -> Tensor:
    """The Gaussian blur of one axis as a matrix ``(size, size)``, reflecting at the ends.

    The kernel has ``2 * round(2 * std) + 1`` taps with sum 1, so each row sums to 1 and blurring
    the mask and blurring its complement agree. A matrix product on each axis is the exact
    two-dimensional blur.

    Args:
        size: Length of the axis.
        std: Standard deviation in cells; 0 gives the identity.
        like: Gives device and dtype.
    """
    radius = round(2 * std)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / std).square()) if radius else torch.ones(1).double()
    kernel = kernel / kernel.sum()
    period = max(2 * (size - 1), 1)
    reads = (torch.arange(size)[:, None] + offsets.long()) % period
    reads = torch.where(reads < size, reads, period - reads)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, reads, kernel.expand(size, -1))
    return matrix.to(like)


def blur(grid: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Blurs ``(N, C, *S)`` along each spatial axis by its matrix."""
    first = grid.dim() - len(matrices)
    for axis, matrix in enumerate(matrices, start=first):
        if axis == grid.dim() - 1:
            grid = grid @ matrix.T
        elif axis == grid.dim() - 2:
            grid = matrix @ grid
        else:
            grid = (grid.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return grid


def resize_to(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resizes ``(N, *S)`` linearly to ``(N, *size)``; positions are cell centres."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]
