"""Image degradation: how fast a class is lost when an image is replaced in the order of a map, and
in the reverse order.

Paper: K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, arXiv:2001.00396, section 4.3; after M. Ancona et al. 2018 and W. Samek
et al. 2017.
Departures: beside the paper's mean colour there are a blurred fill and the noisy linear fill of
ROAD (Rong et al. 2022), because a plain fill shows the model the shape of what was removed; where
an image has fewer tiles than ``steps``, each tile is a step. Equal relevances are ordered at
random; the paper's scripts leave that to the sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from addis.explain._evidence import check_images, check_maps, judging, pieces
from addis.explain._impute import solve
from addis.explain._tiles import Tiling

__all__ = ["DegradationCurve", "Fill", "degradation"]

Fill = Literal["mean", "blur", "noisy_linear"]


@dataclass(frozen=True, slots=True, eq=False)
class DegradationCurve:
    """Probability of the target while tiles are replaced; S stages of each of N images, float64 on
    the CPU.

    Args:
        fractions: Fraction of the tiles replaced at each stage, ``(S,)``, from 0 to 1.
        morf: Probabilities with the most relevant tiles replaced first, ``(N, S)``.
        lerf: Probabilities with the least relevant tiles replaced first, ``(N, S)``.
    """

    fractions: Tensor
    morf: Tensor
    lerf: Tensor

    @property
    def initial(self) -> float:
        """The paper's t1: mean probability of the untouched images."""
        return float(self.morf[:, 0].mean())

    @property
    def final(self) -> float:
        """The paper's b: mean probability of the images of which everything is replaced."""
        return float(self.morf[:, -1].mean())

    def normalised(self, scores: Tensor) -> Tensor:
        """Puts probabilities on the paper's scale, 1 for :attr:`initial` and 0 for :attr:`final`.

        Raises:
            RuntimeError: The untouched images do not score above the fully replaced ones, so there
                is no such scale.
        """
        if not self.initial > self.final:
            raise RuntimeError(
                f"untouched images must score above fully replaced ones, got mean probabilities "
                f"{self.initial:.4g} and {self.final:.4g}: the model does not see the targets here"
            )
        return (scores - self.final) / (self.initial - self.final)

    @property
    def scores(self) -> Tensor:
        """Normalised LeRF minus MoRF of each image, integrated over the fraction by trapezia:
        ``(N,)``.

        In ``[-1, 1]`` for a mean over images whose curves stay between the ends; 0 is what a random
        map gets.
        """
        return torch.trapezoid(
            self.normalised(self.lerf) - self.normalised(self.morf), self.fractions
        )

    @property
    def score(self) -> float:
        """Mean of :attr:`scores`: the number in the paper's Table 1."""
        return float(self.scores.mean())

    @classmethod
    def concatenate(cls, curves: Sequence[DegradationCurve]) -> DegradationCurve:
        """Joins the curves of parts of a data set; the ends of the scale become those of the whole.

        Raises:
            ValueError: There is no curve, or the curves have different stages.
        """
        if not curves:
            raise ValueError("curves must hold at least one curve, got none")
        if any(not torch.equal(curve.fractions, curves[0].fractions) for curve in curves):
            raise ValueError("curves must have the same fractions: same image size, tile and steps")
        morf, lerf = (torch.cat([getattr(c, side) for c in curves]) for side in ("morf", "lerf"))
        return cls(curves[0].fractions, morf, lerf)


def degradation(
    model: nn.Module,
    x: Tensor,
    target: Tensor | int | None,
    map: Tensor,
    *,
    tile: int = 8,
    steps: int = 100,
    fill: Fill | Tensor = "mean",
    noise: float = 0.01,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> DegradationCurve:
    """Replaces the tiles of each image in the order of its map and records the probability of the
    target.

    Tiles are ordered by mean relevance, MoRF from the top and LeRF from the bottom; MoRF and LeRF
    share their first and last stage, which are judged once. All stages of all images are made and
    judged in batches on the device of ``x``.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, K)``. Runs in evaluation mode and is left as
            it was.
        x: ``(N, C, H, W)``, floating, as the model takes it.
        target: Class of each image ``(N,)``, one class for all, or ``None`` for a model with one
            output.
        map: Relevances ``(N, H, W)``, floating, any unit: only their order counts.
        tile: Side of a tile in pixels. The paper uses 8 and 14 on 224x224. The last row and column
            absorb the rest.
        steps: The stages are at ``0, 1/steps, ..., 1`` of the tiles, rounded to whole tiles without
            repetition.
        fill: What replaces a tile. ``"mean"``: the mean colour of the image (the paper).
            ``"blur"``: the image blurred by a Gaussian of standard deviation ``tile`` pixels.
            ``"noisy_linear"``: what its surroundings suggest, see :func:`noisy_linear`. A tensor
            that broadcasts to ``x``: those values.
        noise: Standard deviation of the noise of ``"noisy_linear"``, in the units of ``x``. An
            image's noise is drawn once and shared by all its stages, so that stages differ by what
            was removed alone.
        memory: Bytes of altered images held at a time; what the model needs for them comes on top.
            ``None`` means 256 KiB on a CPU, which suits its caches, and 64 MiB elsewhere.
        generator: CPU source of the order of equal tiles and of the noise. ``None`` means torch's
            default.

    Returns:
        The curves, and with :attr:`DegradationCurve.score` the paper's number.

    Raises:
        ValueError: A shape, ``tile``, ``steps``, ``fill``, ``noise`` or ``memory`` is outside what
            is said above, or the model's output is not ``(N, K)`` with K above every target.
        TypeError: ``x`` or ``map`` is not floating, or ``target`` is not of integers.
        FloatingPointError: ``x``, ``map`` or a score is not finite.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
        >>> weight = model[1].weight.detach().view(8, 8)
        >>> truth = weight * (x - x.mean((2, 3), keepdim=True))[:, 0]  # each pixel's share
        >>> curve = degradation(model, x, None, truth, tile=2, steps=4)
        >>> curve.fractions.tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> bool((curve.lerf[:, 1:-1] > curve.morf[:, 1:-1]).all())
        True
    """
    check_images(x)
    check_maps(map, (len(x), *x.shape[2:]))
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if noise < 0:
        raise ValueError(f"noise must be >= 0, got {noise}")
    tiling = Tiling(x.shape[2], x.shape[3], tile)
    ranks = _ranks(tiling.means(map.detach()).to(x.device), generator)
    replace = _replacement(x.detach(), tile, fill, noise, generator)
    counts = _counts(tiling.count, steps)
    probabilities = _judge(model, target, replace, tiling, ranks, _stages(counts), memory, x)
    middle = len(counts) - 2
    start, end, morf, lerf = torch.split(probabilities, [1, 1, middle, middle], 1)
    return DegradationCurve(
        counts.double() / tiling.count,
        torch.cat([start, morf, end], 1),
        torch.cat([start, lerf, end], 1),
    )


class _Replacement:
    """Makes altered images: ``replacement(chosen, removed)`` for image numbers ``(P,)`` and pixels
    ``(P, H, W)``.
    """

    def __init__(self, x: Tensor, values: Tensor | None, noise: Tensor | None) -> None:
        self.x, self.values, self.noise = x, values, noise

    def __call__(self, chosen: Tensor, removed: Tensor) -> Tensor:
        images = self.x[chosen]
        if self.values is not None:
            return torch.where(removed[:, None], self.values[chosen], images)
        filled = solve(images, removed, tolerance=1e-6)
        if self.noise is None:
            return filled
        return torch.where(removed[:, None], filled + self.noise[chosen], filled)


def _replacement(
    x: Tensor, tile: int, fill: Fill | Tensor, noise: float, generator: torch.Generator | None
) -> _Replacement:
    if isinstance(fill, Tensor):
        try:
            values = fill.to(x.device, x.dtype).expand_as(x)
        except RuntimeError as error:
            raise ValueError(
                f"fill must broadcast to {tuple(x.shape)}, got shape {tuple(fill.shape)}"
            ) from error
        return _Replacement(x, values, None)
    if fill == "mean":
        return _Replacement(x, x.mean((2, 3), keepdim=True), None)
    if fill == "blur":
        return _Replacement(x, _blurred(x, float(tile)), None)
    if fill == "noisy_linear":
        draw = torch.randn(x.shape, generator=generator).to(x.device, x.dtype) if noise else None
        return _Replacement(x, None, None if draw is None else noise * draw)
    raise ValueError(f"fill must be 'mean', 'blur', 'noisy_linear' or a tensor, got {fill!r}")


def _judge(
    model: nn.Module,
    target: Tensor | int | None,
    replace: _Replacement,
    tiling: Tiling,
    ranks: Tensor,
    stages: Tensor,
    memory: int | None,
    x: Tensor,
) -> Tensor:
    """Probability of the target for every image and stage ``(N, J)``.

    A stage ``(low, high)`` removes the tiles whose rank is in ``[low, high)``.
    """
    stages = stages.to(x.device)
    jobs = torch.arange(len(x) * len(stages), device=x.device)
    found = torch.empty(len(jobs), dtype=torch.float64)
    with judging(model, x, target) as judge:
        for piece in pieces(len(jobs), x, memory):
            chosen = jobs[piece] // len(stages)
            low, high = stages[jobs[piece] % len(stages)].unbind(1)
            rank = ranks[chosen]
            removed = tiling.spread((rank >= low[:, None]) & (rank < high[:, None]))
            found[piece] = judge(replace(chosen, removed), chosen, softmax=True)
    return found.view(len(x), len(stages))


def _ranks(relevance: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rank of each tile ``(N, T)``, 0 for the most relevant; equal ones stand in random order."""
    shuffle = torch.rand(relevance.shape, generator=generator).argsort(1).to(relevance.device)
    order = relevance.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, order).argsort(1)


def _counts(tiles: int, steps: int) -> Tensor:
    """How many tiles each stage replaces, ``(S,)``, from 0 to ``tiles`` without repetition."""
    even = torch.linspace(0, tiles, steps + 1, dtype=torch.float64)
    counts = even.round().long()
    return counts[torch.cat([torch.tensor([True]), counts[1:] > counts[:-1]])]


def _stages(counts: Tensor) -> Tensor:
    """Ranks ``[low, high)`` of what each stage removes: nothing, everything, the MoRF stages
    between, the LeRF stages.
    """
    tiles, middle = counts[-1], counts[1:-1]
    zero = torch.zeros_like(middle)
    ends = torch.stack([counts[[0, 0]], torch.stack([counts[0], tiles])], 1)
    morf = torch.stack([zero, middle], 1)
    lerf = torch.stack([tiles - middle, zero + tiles], 1)
    return torch.cat([ends, morf, lerf])


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur whose weights are renormalised at the border, as products with two dense
    matrices.
    """
    rows, columns = (_smoothing(length, sigma).to(x.device) for length in x.shape[2:])
    return (rows @ x.float() @ columns.T).to(x.dtype)


def _smoothing(length: int, sigma: float) -> Tensor:
    place = torch.arange(length, dtype=torch.float32)
    weight = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    return weight / weight.sum(1, keepdim=True)
