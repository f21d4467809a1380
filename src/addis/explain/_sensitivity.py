"""Sensitivity-n: does the relevance of a random set of tiles tell how far the class score falls
without them?

Paper: M. Ancona, E. Ceolini, C. Öztireli, M. Gross, "Towards Better Understanding of Gradient-Based
Attribution Methods for Deep Neural Networks", ICLR 2018, arXiv:1711.06104, section 3.2; on tiles as
in K. Schulz et al., ICLR 2020, arXiv:2001.00396, section 4.2.
Departures: subsets are always drawn without replacement (the scripts of Schulz et al. draw 1x1
tiles with it). Every image has subsets of its own, and all maps of a comparison may be judged on
the same ones with :func:`subset_drops`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from addis.explain._evidence import check_images, check_maps, judging, pieces
from addis.explain._tiles import Tiling

__all__ = ["SubsetDrops", "pearson", "sensitivity_n", "subset_drops", "subset_sizes"]


@dataclass(frozen=True, slots=True, eq=False)
class SubsetDrops:
    """What random sets of tiles are worth to a model: S sizes, K sets of each size for each of N
    images.

    Args:
        sizes: Number of tiles in a set, int64 ``(S,)``.
        removed: The sets over T tiles, boolean ``(N, S, K, T)``.
        drops: Fall of the target's logit when the set is removed, float64 ``(N, S, K)``.
        tiling: The tiles.
    """

    sizes: Tensor
    removed: Tensor
    drops: Tensor
    tiling: Tiling

    def relevance(self, map: Tensor) -> Tensor:
        """Relevance of a map ``(N, H, W)`` summed over each set: float64 ``(N, S, K)``.

        Raises:
            TypeError: ``map`` is not floating.
            ValueError: ``map`` has another shape.
            FloatingPointError: ``map`` is not finite.
        """
        check_maps(map, (len(self.drops), self.tiling.height, self.tiling.width))
        tiles = self.tiling.sums(map.detach()).cpu()
        # One size at a time bounds the float copy of the sets.
        return torch.stack(
            [torch.einsum("nkt,nt->nk", sets.double(), tiles) for sets in self.removed.unbind(1)], 1
        )

    def per_image(self, map: Tensor) -> Tensor:
        """Correlation over an image's sets of one size ``(N, S)``; Ancona et al. take the mean."""
        return pearson(self.relevance(map), self.drops)

    def pooled(self, map: Tensor) -> Tensor:
        """Correlation over all images' sets of one size ``(S,)``: the scale of each map enters."""
        relevance = self.relevance(map).transpose(0, 1).flatten(1)
        return pearson(relevance, self.drops.transpose(0, 1).flatten(1))


def sensitivity_n(
    model: nn.Module,
    x: Tensor,
    target: Tensor | int | None,
    map: Tensor,
    *,
    tile: int = 8,
    ns: int | Sequence[int] = 16,
    subsets: int = 100,
    pool: Literal["image", "all"] = "image",
    baseline: float | Tensor = 0.0,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Correlates the relevance of random sets of n tiles with the logit's fall without them.

    Exactly 1 for every n if the logit is linear in ``x - baseline`` and the map holds each pixel's
    share of it. To compare several maps, call :func:`subset_drops` once and its ``per_image`` or
    ``pooled`` for each map.

    Args:
        model: As in :func:`subset_drops`, like every argument but ``map`` and ``pool``.
        x: Images ``(N, C, H, W)``.
        target: Class of each image ``(N,)``, one class for all, or ``None``.
        map: Relevances ``(N, H, W)``, floating.
        tile: Side of a tile in pixels.
        ns: How many sizes from 1 to 0.8 of the tiles, or the sizes themselves.
        subsets: Sets of each size for each image.
        pool: ``"image"``: a correlation for each image, then their mean (Ancona et al.). ``"all"``:
            one correlation over all images (the scripts of Schulz et al.); it also asks whether the
            scales of different images' maps agree.
        baseline: What a removed pixel becomes.
        memory: Bytes of altered images held at a time.
        generator: CPU source of the sets.

    Returns:
        ``(S,)``, one for each of the sizes that :func:`subset_sizes` gives, each in ``[-1, 1]``.

    Raises:
        ValueError: ``pool`` or an argument of :func:`subset_drops` is outside what is said.
        TypeError: ``x`` or ``map`` is not floating, or ``target`` is not of integers.
        FloatingPointError: ``x``, ``map`` or a score is not finite.
    """
    if pool not in ("image", "all"):
        raise ValueError(f"pool must be 'image' or 'all', got {pool!r}")
    check_images(x)
    check_maps(map, (len(x), *x.shape[2:]))
    found = subset_drops(
        model, x, target, tile=tile, ns=ns, subsets=subsets, baseline=baseline, memory=memory,
        generator=generator,
    )  # fmt: skip
    return found.pooled(map) if pool == "all" else found.per_image(map).mean(0)


def subset_drops(
    model: nn.Module,
    x: Tensor,
    target: Tensor | int | None,
    *,
    tile: int = 8,
    ns: int | Sequence[int] = 16,
    subsets: int = 100,
    baseline: float | Tensor = 0.0,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> SubsetDrops:
    """Removes random sets of tiles and records how far the logit of the target falls; needs no map.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, K)``. Runs in evaluation mode and is left as
            it was.
        x: ``(N, C, H, W)``, floating, as the model takes it.
        target: Class of each image ``(N,)``, one class for all, or ``None`` for a model with one
            output.
        tile: Side of a tile in pixels; the last row and column absorb the rest. There must be two
            tiles at least.
        ns: How many sizes to spread evenly in logarithm from 1 to 0.8 T (the paper: 16), or the
            sizes themselves.
        subsets: Sets of each size for each image, drawn uniformly without replacement; ``>= 2``.
        baseline: What a removed pixel becomes; broadcasts to ``x``. The paper's 0 is the mean
            colour of normalised images.
        memory: Bytes of altered images held at a time. ``None`` means 256 KiB on a CPU and 64 MiB
            elsewhere.
        generator: CPU source of the sets. ``None`` means torch's default.

    Raises:
        ValueError: A shape, ``tile``, ``ns``, ``subsets``, ``baseline`` or ``memory`` is outside
            what is said above.
        TypeError: ``x`` is not floating, or ``target`` is not of integers.
        FloatingPointError: ``x`` or a score is not finite.
    """
    check_images(x)
    if subsets < 2:
        raise ValueError(f"subsets must be >= 2 for a correlation, got {subsets}")
    try:
        blank = torch.as_tensor(baseline, device=x.device, dtype=x.dtype).expand_as(x)
    except RuntimeError as error:
        raise ValueError(f"baseline must broadcast to {tuple(x.shape)}") from error
    tiling = Tiling(x.shape[2], x.shape[3], tile)
    sizes = subset_sizes(tiling.count, ns)
    removed = _subsets(len(x), sizes, subsets, tiling.count, generator)
    sets = removed.flatten(0, 2).to(x.device)  # (N * S * K, T)
    each = len(sizes) * subsets
    left = torch.empty(len(sets), dtype=torch.float64)
    with judging(model, x, target) as judge:
        every = torch.arange(len(x), device=x.device)
        whole = torch.cat([judge(x[p], every[p], softmax=False) for p in pieces(len(x), x, memory)])
        for piece in pieces(len(sets), x, memory):
            chosen = torch.arange(piece.start, piece.stop, device=x.device) // each
            hidden = tiling.spread(sets[piece])[:, None]
            altered = torch.where(hidden, blank[chosen], x[chosen])
            left[piece] = judge(altered, chosen, softmax=False)
    drops = whole[:, None, None] - left.view(len(x), len(sizes), subsets)
    return SubsetDrops(sizes, removed, drops, tiling)


def subset_sizes(tiles: int, ns: int | Sequence[int] = 16) -> Tensor:
    """Sizes of the sets, int64 ``(S,)``: ``ns`` of them even in logarithm from 1 to 0.8 ``tiles``,
    or ``ns`` itself.

    Rounded to whole tiles without repetition, so that few tiles give fewer sizes.

    Raises:
        ValueError: ``tiles < 2``, ``ns < 1``, or a size given is not in ``[1, tiles)``.

    Example:
        >>> subset_sizes(64, 6).tolist()
        [1, 2, 5, 11, 23, 51]
        >>> subset_sizes(64, [1, 32]).tolist()
        [1, 32]
    """
    if tiles < 2:
        raise ValueError(f"tile must be small enough for 2 tiles in an image, got {tiles}")
    if isinstance(ns, int):
        if ns < 1:
            raise ValueError(f"ns must be >= 1, got {ns}")
        most = max(1.0, 0.8 * tiles)
        even = torch.logspace(0, math.log10(most), ns, dtype=torch.float64).round().long()
        even = even.clamp_max(tiles - 1)  # of 2 tiles, 0.8 rounds to both
        return even[torch.cat([torch.tensor([True]), even[1:] > even[:-1]])]
    sizes = torch.tensor(list(ns), dtype=torch.int64)
    if not len(sizes) or int(sizes.min()) < 1 or int(sizes.max()) >= tiles:
        raise ValueError(f"ns must hold sizes in [1, {tiles}), got {list(ns)}")
    return sizes


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the last axis, ``(..., M)`` twice to ``(...,)``, in float64.

    0 where either side does not vary beyond rounding: what never changes tells nothing.
    """
    a, b = a.double(), b.double()
    x, y = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    across, first, second = (x * y).sum(-1), x.square().sum(-1), y.square().sum(-1)
    floor = (8 * torch.finfo(torch.float64).eps) ** 2
    still = (first <= floor * a.square().sum(-1)) | (second <= floor * b.square().sum(-1))
    value = across / (first.sqrt() * second.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(still, 0.0, value.clamp(-1, 1))


def _subsets(
    n: int, sizes: Tensor, subsets: int, tiles: int, generator: torch.Generator | None
) -> Tensor:
    """Uniformly random sets ``(N, S, K, T)``: the tiles whose place in a random permutation is
    below the size.
    """
    removed = torch.empty(n, len(sizes), subsets, tiles, dtype=torch.bool)
    for i, size in enumerate(
        sizes
    ):  # a size at a time, because the draws are 12 times larger than the sets
        removed[:, i] = torch.rand(n, subsets, tiles, generator=generator).argsort(-1) < size
    return removed
