"""The noisy channel of the bottleneck: which cells there are, how the mask is smoothed, what
passes.

Paper: K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, arXiv:2001.00396, equations 1 to 6 and section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

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

    def fits(self, features: tuple[int, ...]) -> bool:
        """Whether features of this shape, without the batch axis, have this layout."""
        cells = math.prod(self.spatial) + self.prefix
        if self.kind == "tokens":
            return len(features) >= 2 and math.prod(features[:-1]) == cells
        return features[1:] == self.spatial and not self.prefix

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
    features: tuple[int, ...], images: tuple[int, ...], layout: LayoutName | Layout = "auto"
) -> Layout:
    """Reads the layout of a layer's features.

    ``auto`` takes ``(C,)`` as a vector and a sequence ``(L, C)`` behind an image or a volume as
    tokens. Features with as many axes as the input are channels first, unless their first two axes
    have the aspect of the image and their last two have not: then they are channels last. Tokens
    lie in rows in a grid of the image's aspect, as square patches do; up to five left over before
    it (a class token, registers) have no position.

    Args:
        features: Shape of the features without the batch axis.
        images: Shape of the input without the batch axis.
        layout: The layout, where ``auto`` cannot know it: ``tokens`` for channels-last maps ``(H,
            W, C)``, a :class:`Layout` for tokens of a grid of its own.

    Raises:
        ValueError: The shape fits no layout, or not the one that was given; no grid fits the number
            of tokens, or more than one.
    """
    if isinstance(layout, Layout):
        if not layout.fits(features):
            raise ValueError(f"features of shape {features} do not fit {layout}")
        return layout
    if layout == "auto":
        layout = _guess(features, images)
    if layout == "vector" and len(features) == 1:
        return Layout("vector", ())
    if layout == "channels_first" and 2 <= len(features) <= 4:
        return Layout("channels_first", features[1:])
    if layout == "tokens" and len(features) == 2:
        return _grid_of(features[0], images[1:])
    if layout == "tokens" and len(features) in (3, 4):
        return Layout("tokens", features[:-1])
    raise ValueError(f"features of shape {features} do not fit layout={layout!r}")


_MOST_PREFIX: Final = 5
"""A class token and four registers: the most that usual models have."""


def _grid_of(length: int, image: tuple[int, ...]) -> Layout:
    """The grid in which a sequence of tokens lies; of two, the one whose patches are whole pixels.

    Of a signal every token is a position. A grid of one cell is none if there is a larger one.
    """
    if len(image) < 2:
        return Layout("tokens", (length,))
    aspect = [size // math.gcd(*image) for size in image]
    found: list[Layout] = []
    for prefix in range(min(_MOST_PREFIX, length - 1) + 1):
        times = round(((length - prefix) / math.prod(aspect)) ** (1 / len(aspect)))
        grid = tuple(times * part for part in aspect)
        if math.prod(grid) == length - prefix and (length - prefix > 1 or not found):
            found.append(Layout("tokens", grid, prefix))
    whole = [
        f for f in found if not any(size % n for size, n in zip(image, f.spatial, strict=True))
    ]
    if len(whole or found) == 1:
        return (whole or found)[0]
    size, grids = "x".join(map(str, image)), [(f.spatial, f.prefix) for f in whole or found]
    reason = (
        f"fit more than one grid with tokens before it, {' and '.join(map(str, grids))}"
        if grids
        else f"fit no grid of its aspect with up to {_MOST_PREFIX} tokens before it"
    )
    raise ValueError(
        f"{length} tokens behind an input of {size} {reason}; say which it is by "
        'layout=Layout("tokens", grid, prefix)'
    )


def _guess(features: tuple[int, ...], images: tuple[int, ...]) -> LayoutName:
    if len(features) == 1:
        return "vector"
    if len(features) == 2 and len(images) >= 3:
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
    """The Gaussian blur of one axis, reflecting at the ends: its matrix ``(size, size)``, or of a
    long axis its taps ``(T,)`` alone.

    The kernel has ``T = 2 * round(2 * std) + 1`` taps with sum 1, so each row of the matrix sums to
    1 and blurring the mask and blurring its complement agree. A matrix product on each axis is the
    exact two-dimensional blur; that of a long axis would mostly multiply by 0.

    Args:
        size: Length of the axis.
        std: Standard deviation in cells; 0 gives the identity.
        like: Gives device and dtype.
    """
    radius = round(2 * std)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / std).square()) if radius else torch.ones(1).double()
    kernel = kernel / kernel.sum()
    if size > _LONG * len(kernel):
        return kernel.to(like)
    period = max(2 * (size - 1), 1)
    reads = (torch.arange(size)[:, None] + offsets.long()) % period
    reads = torch.where(reads < size, reads, period - reads)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, reads, kernel.expand(size, -1))
    return matrix.to(like)


def blur(grid: Tensor, axes: tuple[Tensor, ...]) -> Tensor:
    """Blurs ``(N, C, *S)`` along each spatial axis, by what :func:`smoothing` gave for it."""
    first = grid.dim() - len(axes)
    for axis, matrix in enumerate(axes, start=first):
        if matrix.dim() == 1:
            grid = _convolved(grid, axis, matrix)
        elif axis == grid.dim() - 1:
            grid = grid @ matrix.T
        elif axis == grid.dim() - 2:
            grid = matrix @ grid
        else:
            grid = (grid.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return grid


_LONG: Final = 50
"""Cells to a tap from which on shifted copies are quicker than the matrix: 256 at a standard
deviation of 1 (measured, forward and backward on a CPU: 33 against 52 ms for 32 maps of 256x256).
"""


def _convolved(grid: Tensor, axis: int, taps: Tensor) -> Tensor:
    """A sum of shifted copies: the convolutions of a GPU may round to ten bits."""
    size, radius = grid.shape[axis], len(taps) // 2
    before = grid.narrow(axis, 1, radius).flip(axis)
    after = grid.narrow(axis, size - 1 - radius, radius).flip(axis)
    framed = torch.cat([before, grid, after], dim=axis)
    total = taps[0] * framed.narrow(axis, 0, size)
    for place in range(1, len(taps)):
        total = torch.addcmul(total, framed.narrow(axis, place, size), taps[place])
    return total


def resize_to(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resizes ``(N, *S)`` to ``(N, *size)``; positions are cell centres.

    Longer axes are had by linear interpolation, shorter ones by averages over what a new cell
    covers, so that no old cell falls between two new ones.
    """
    for axis, wanted in enumerate(size, start=1):
        if maps.shape[axis] > wanted:
            maps = _averaged(maps.movedim(axis, -1), wanted).movedim(-1, axis)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def _averaged(maps: Tensor, size: int) -> Tensor:
    """Shortens the last axis; a cell on the edge of two new ones counts in each with its part."""
    have = maps.shape[-1]
    edges = torch.arange(size + 1, dtype=torch.float64) * have / size
    low, high = edges[:-1, None], edges[1:, None]
    cells = low.long() + torch.arange(-(-have // size) + 1)
    part = (torch.minimum(cells + 1, high) - torch.maximum(cells, low)).clamp_min(0) * size / have
    taken = maps[..., cells.clamp_max(have - 1).to(maps.device)]
    return (taken * part.to(maps)).sum(dim=-1)
