"""What a bottleneck's bits are worth: predictions with little of the image let through.

Paper: K. Schulz et al., "Restricting the Flow", ICLR 2020, arXiv:2001.00396 (the trade-off of eq.
8). The split in what suffices and what is necessary follows P. Dabkowski, Y. Gal, "Real Time Image
Saliency for Black Box Classifiers", NeurIPS 2017, with the bottleneck's own noise in place of a
blank patch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addis.explain._bottleneck import InformationBottleneck
from addis.explain._inputs import as_targets, check_finite, check_input, class_scores, rows_of
from addis.explain._layers import undisturbed
from addis.explain._noise import Noise
from addis.explain._restricted import Restricted

__all__ = ["BetaCurve", "MaskedPrediction", "bits_curve", "masked_prediction"]


@dataclass(frozen=True, slots=True)
class MaskedPrediction:
    """Probability of each image's class with a part of the layer replaced by noise, all ``(N,)``.

    Attributes:
        full: With nothing replaced.
        sufficient: With everything but the kept positions replaced, mean over the draws.
        necessary: With just the kept positions replaced, mean over the draws; NaN if not asked for.
        kept: Fraction of the positions that were kept.
    """

    full: Tensor
    sufficient: Tensor
    necessary: Tensor
    kept: Tensor


def masked_prediction(
    bottleneck: InformationBottleneck,
    x: Tensor,
    target: Tensor | int | None,
    relevance: Tensor,
    *,
    threshold: float | Tensor | None = None,
    keep: float | Tensor | None = None,
    necessary: bool = True,
    seed: int = 0,
    batch_size: int = 16,
) -> MaskedPrediction:
    """Replaces the positions of little relevance by noise, then those of much, and predicts.

    Any method's map can be asked, so that maps are compared at one fraction kept: give
    ``threshold`` for the bottleneck's own map, then its ``kept`` as ``keep`` for the others.

    Args:
        bottleneck: Gives layer, statistics and number of draws.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)``, or one for all.
        relevance: Map of each image ``(N, *S)``, averaged to the layer's grid if it has another
            size.
        threshold: Positions of at least this relevance, in the map's unit, are kept; ``(N,)`` or
            one for all.
        keep: Fraction of the positions to keep, the most relevant, in ``[0, 1]``; ``(N,)`` or one
            for all.
        necessary: Whether to predict without the kept positions, too: half of the time.
        seed: Seed of the noise, the same for all images.
        batch_size: Images in one pass.

    Raises:
        ValueError: Not just one of ``threshold`` and ``keep`` is given, it or the map does not fit,
            or the layer has no positions.
    """
    check_input(x)
    if (threshold is None) == (keep is None):
        raise ValueError("give either threshold or keep")
    if len(relevance) != len(x):
        raise ValueError(f"relevance must have {len(x)} maps, got shape {tuple(relevance.shape)}")
    check_finite("relevance", relevance)
    parts = []
    with undisturbed(bottleneck.model):
        for rows in torch.split(torch.arange(len(x)), batch_size):
            site = bottleneck.restrict(x[rows])
            maps = _on_grid(site, relevance[rows.to(relevance.device)])
            bounds = (
                _each(name, value, rows, len(x), maps)
                for name, value in (("threshold", threshold), ("keep", keep))
            )
            kept = _kept(maps, *bounds)
            parts.append(_predict(site, rows_of(target, rows, len(x)), kept, necessary, seed))
    return MaskedPrediction(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _on_grid(site: Restricted, relevance: Tensor) -> Tensor:
    """Maps ``(N, *S)`` of the layer's grid, mean of the pixels of each cell."""
    spatial = site.layout.spatial
    if not spatial:
        raise ValueError("the layer has no positions, so no part of the image can be kept")
    maps = relevance.to(site.features)
    if maps.dim() != len(spatial) + 1:
        raise ValueError(f"relevance must be (N, {len(spatial)} axes), got {tuple(maps.shape)}")
    if tuple(maps.shape[1:]) == spatial:
        return maps
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    return pool[len(spatial)](maps[:, None], spatial)[:, 0]  # type: ignore[arg-type]


def _each(
    name: str, value: float | Tensor | None, rows: Tensor, n: int, maps: Tensor
) -> Tensor | None:
    """The values of some rows of a batch of ``n``."""
    if value is None:
        return None
    values = torch.as_tensor(value).to(maps)
    if values.dim() and values.shape != (n,):
        raise ValueError(f"{name} must be one number or ({n},), got shape {tuple(values.shape)}")
    return values.expand(n)[rows.to(maps.device)]


def _kept(maps: Tensor, threshold: Tensor | None, keep: Tensor | None) -> Tensor:
    """Mask ``(N, *S)`` of the kept positions; ties are broken by their order in the grid."""
    flat = maps.flatten(1)
    if threshold is not None:
        mask = flat >= threshold[:, None]
    elif keep is not None:
        if not bool(((keep >= 0) & (keep <= 1)).all()):
            raise ValueError(f"keep must lie in [0, 1], got {keep.tolist()}")
        count = (keep * flat.shape[1]).round()
        rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        mask = rank < count[:, None]
    return mask.view_as(maps)


def _predict(
    site: Restricted, target: Tensor | int | None, kept: Tensor, necessary: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = class_scores(site.split.output, len(kept))
    classes = as_targets(target, logits)
    noise = Noise([seed] * len(kept), site.draws, site.features).draw()
    grid = kept.to(site.features.dtype)[:, None]
    like = torch.zeros_like(site.features)
    open_cells = site.layout.cells(grid.expand_as(site.layout.grid(like)), like)
    with torch.no_grad():
        sufficient = _chance(site, site.run(open_cells, noise), classes)
        without = torch.full_like(sufficient, torch.nan)
        if necessary:
            without = _chance(site, site.run(1 - open_cells, noise), classes)
    full = _probability(logits, classes)
    return full, sufficient, without, kept.flatten(1).to(full.dtype).mean(dim=1)


def _chance(site: Restricted, output: Any, classes: Tensor) -> Tensor:
    """Probability of the class, mean over draws, ``(N,)``."""
    logits = class_scores(output, len(classes) * site.draws)
    each = _probability(logits, classes.repeat_interleave(site.draws))
    return each.view(-1, site.draws).mean(dim=1)


def _chance_with(
    bottleneck: InformationBottleneck,
    x: Tensor,
    target: Tensor | int | None,
    mask: Tensor | None,
    batch_size: int,
) -> Tensor:
    """Probability of the class, mean over draws, when the mask is applied, ``(N,)``."""
    assert mask is not None  # a bottleneck's attribution has one
    parts = []
    with undisturbed(bottleneck.model), torch.no_grad():
        for rows in torch.split(torch.arange(len(x)), batch_size):
            site = bottleneck.restrict(x[rows])
            logits = class_scores(site.split.output, len(rows))
            classes = as_targets(rows_of(target, rows, len(x)), logits)
            noise = Noise([0] * len(rows), site.draws, site.features).draw()
            parts.append(_chance(site, site.run(mask[rows], noise), classes))
    return torch.cat(parts)


def _probability(logits: Tensor, classes: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits[:, 0].float().sigmoid()
    return logits.float().softmax(dim=1).gather(1, classes[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class BetaCurve:
    """What the trade-off costs, image by image.

    Attributes:
        betas: ``(B,)``.
        total_bits: ``(B, N)`` information that passes.
        probability: ``(B, N)`` of the class, mean over the draws, when only that passes.
    """

    betas: Tensor
    total_bits: Tensor
    probability: Tensor


def bits_curve(
    bottleneck: InformationBottleneck,
    x: Tensor,
    target: Tensor | int | None,
    *,
    betas: Sequence[float] = (1.0, 10.0, 100.0),
    batch_size: int = 16,
) -> BetaCurve:
    """Fits the mask at each of several weights of the information.

    Args:
        bottleneck: Gives everything but ``beta``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)``, or one for all.
        betas: Weights, each ``>= 0``; the paper's three by default.
        batch_size: Images in one pass.

    Raises:
        ValueError: There is no weight, or a negative one.
    """
    if not betas or not all(beta >= 0 and math.isfinite(beta) for beta in betas):
        raise ValueError(f"betas must be finite and >= 0, at least one, got {list(betas)}")
    check_input(x)
    bits, chances = [], []
    for beta in betas:
        at_beta = copy.copy(bottleneck)
        at_beta.beta = beta
        fitted = at_beta.attribute(x, target, batch_size=batch_size)
        bits.append(fitted.total_bits)
        chances.append(_chance_with(at_beta, x, target, fitted.mask, batch_size))
    return BetaCurve(torch.tensor(list(betas)), torch.stack(bits), torch.stack(chances))
