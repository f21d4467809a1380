"""Information bottleneck attribution: the bits that a classifier needs from each region of an
image.

Paper: K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, arXiv:2001.00396.
Departures: the map is computed from the mask after the last update; the authors' code takes the
last forward pass, one update earlier (``official_timing=True`` gives that). The floor of the
standard deviation always holds. A batch is optimised at once, each image with its own mask and its
own noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from addis.explain._attribution import Attribution
from addis.explain._channel import Layout, LayoutName
from addis.explain._inputs import as_targets, check_finite, check_input, class_scores, rows_of
from addis.explain._layers import Layer, check_depends, find_layer, undisturbed, unwrap
from addis.explain._noise import Noise
from addis.explain._objectives import Objective, cross_entropy
from addis.explain._restricted import Restricted, restrict
from addis.explain._split import Splitter
from addis.explain._stats import BottleneckStats, PriorName, estimate_all
from addis.methods import Method

__all__ = ["METHOD", "InformationBottleneck", "Reduce"]

METHOD = Method(
    name="iba",
    verb="explain",
    title="Restricting the Flow: Information Bottlenecks for Attribution",
    arxiv="2001.00396",
    study="02",
    venue="ICLR 2020",
    summary="Shows in bits per pixel which regions of an image a classifier used.",
    version=2,
)

Reduce = Literal["bits_per_pixel", "bits_per_cell"]


class InformationBottleneck(nn.Module):
    """Per-sample bottleneck: for each image, the noise that a layer's cells bear before the class
    suffers.

    For each image a mask ``lambda = blur(sigmoid(alpha))`` is fitted by Adam on ``alpha`` to
    ``objective + beta * mean(I)``, eq. 8, where ``I`` is the information of each cell (eq. 6) and
    the mean goes over the k cells of the layer: ``beta=10`` is the paper's ``10/k``. Each image has
    its own ``alpha``, optimiser state and noise, so its map does not depend on the rest of the
    batch.

    The model is not a submodule: it is neither moved nor saved with the bottleneck, and it is left
    as it was. Run the call under ``torch.autocast`` to compute the model in half precision; the
    mask stays in float32.

    Args:
        model: The classifier, or any model if an ``objective`` is given.
        layer: Name, module, or ``"auto"`` for the end of the middle stage.
        stats: Statistics of the layer; may be set or estimated later.
        beta: Weight of the information, ``>= 0``. The paper uses 1, 10 and 100.
        steps: Updates, ``>= 1``.
        lr: Adam's step, ``> 0``.
        draws: Noise draws of each image in a step, ``>= 1``.
        smooth: Standard deviation of the mask's blur in cells, ``>= 0``.
        alpha0: Start of ``alpha``; 5 is a mask of 0.9933, nearly open.
        min_std: Floor of the cells' standard deviation, ``> 0``.
        active_threshold: A cell that is not zero in at most this fraction of the samples is
            inactive.
        clamp: Cuts the noised features off at 0, for a layer that ends in a ReLU.
        seed: Seed of the noise, the same for every image, so that the noise is drawn once for the
            whole batch. ``None`` takes a new one for each image from torch's default generator.
        layout: Where channels and positions are in the features; see :func:`layout_of`.
        head: The model from the layer on, if the caller knows it; else the model is traced.
        official_timing: Stops before the last update, which the authors' code makes but whose mask
            it does not show: the map of ``steps - 1`` updates.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: ``steps`` or ``draws`` is not an integer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> iba = InformationBottleneck(model, layer="1", seed=0)
        >>> iba.stats = iba.estimate(torch.randn(1000, 1, 8, 8))
        >>> iba.attribute(torch.randn(5, 1, 8, 8), target=1).map.shape
        torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module = "auto",
        stats: BottleneckStats | None = None,
        *,
        beta: float = 10.0,
        steps: int = 10,
        lr: float = 1.0,
        draws: int = 10,
        smooth: float = 1.0,
        alpha0: float = 5.0,
        min_std: float = 0.01,
        active_threshold: float = 0.01,
        clamp: bool = False,
        seed: int | None = None,
        layout: LayoutName | Layout = "auto",
        head: Callable[[Tensor], Any] | None = None,
        official_timing: bool = False,
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("beta", beta, 0.0), ("smooth", smooth, 0.0), ("steps", steps, 1), ("draws", draws, 1),
            ("active_threshold", active_threshold, 0.0),
        ):  # fmt: skip
            if not value >= low or not math.isfinite(value):
                raise ValueError(f"{name} must be finite and >= {low}, got {value}")
        if official_timing and steps < 2:
            raise ValueError(f"official_timing needs steps >= 2, got {steps}")
        for name, count in (("steps", steps), ("draws", draws)):
            if not isinstance(count, Integral):
                raise TypeError(f"{name} must be an integer, got {count!r}")
        for name, value in (("lr", lr), ("min_std", min_std)):
            if not value > 0 or not math.isfinite(value):
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        self.stats = stats
        self.beta, self.steps, self.lr, self.draws = beta, steps, lr, draws
        self.smooth, self.alpha0, self.min_std = smooth, alpha0, min_std
        self.active_threshold, self.clamp, self.seed = active_threshold, clamp, seed
        self.layout: LayoutName | Layout = layout
        self.official_timing = official_timing
        self._held = (model, layer, head)
        self._splitter: Splitter | None = None
        self._layer: Layer | None = None
        if layer != "auto":
            self._layer = find_layer(model, layer)

    @property
    def model(self) -> nn.Module:
        """The model that is explained."""
        return self._held[0]

    @property
    def layer(self) -> Layer | None:
        """The layer; ``None`` for ``"auto"`` until the model has seen an input."""
        return self._layer

    def estimate(
        self,
        data: Tensor | Iterable[Tensor | Sequence[Any]],
        *,
        samples: int = 10_000,
        prior: PriorName = "gaussian",
    ) -> BottleneckStats:
        """Statistics of the layer over ``data``, as :meth:`BottleneckStats.estimate`; set them as
        ``stats``.
        """
        model, layer, _ = self._held
        known = layer if self._layer is None else self._layer.module
        (self._layer,), (stats,) = estimate_all(model, [known], data, samples=samples, prior=prior)
        return stats

    def attribute(
        self,
        x: Tensor,
        target: Tensor | int | None = None,
        *,
        objective: Objective | None = None,
        reduce: Reduce = "bits_per_pixel",
        seeds: Sequence[int] | None = None,
        batch_size: int = 16,
    ) -> Attribution:
        """Explains a batch of images.

        Args:
            x: Input as the model takes it, ``(N, C, H, W)`` (or with one or three spatial axes),
                floating point.
            target: Class of each image ``(N,)``, or one class for all. Never guessed.
            objective: What must stay small instead of the class's cross-entropy: a regression
                error, a detector's score with its sign turned, the loss of one pixel of a
                segmentation. Its rows are summed over images and averaged over draws.
            reduce: ``bits_per_pixel`` at the size of the input, or ``bits_per_cell`` of the layer's
                grid.
            seeds: A noise seed for each image, in place of the bottleneck's own.
            batch_size: Images that are optimised at once. The maps do not depend on it, memory
                does.

        Raises:
            RuntimeError: There are no statistics yet.
            ValueError: The target is missing or does not fit, the features do not fit the
                statistics, or the objective does not depend on the layer.
            TypeError: ``x`` is not floating point.
            FloatingPointError: The input, the features or the objective are not finite.
        """
        check_input(x)
        if reduce not in get_args(Reduce):
            raise ValueError(f"reduce must be one of {get_args(Reduce)}, got {reduce!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if objective is not None and target is not None:
            raise ValueError(
                "give either target or objective: the objective decides what is explained"
            )
        own = self._seeds(len(x), seeds)
        parts = []
        with undisturbed(self.model):
            for rows in torch.split(torch.arange(len(x)), batch_size):
                site = self.restrict(x[rows])
                loss = _loss_of_images(site, rows_of(target, rows, len(x)), objective, rows)
                noise = Noise([own[i] for i in rows.tolist()], self.draws, site.features)
                alpha, history = self._fit(site, loss, noise)
                parts.append(self._result(site, alpha, history, reduce))
        return _join(parts)

    def repeat(
        self,
        x: Tensor,
        target: Tensor | int | None = None,
        *,
        repeats: int = 5,
        objective: Objective | None = None,
        reduce: Reduce = "bits_per_pixel",
        batch_size: int = 16,
    ) -> Attribution:
        """The mean map over ``repeats`` noise seeds with its standard deviation in ``std``; else as
        :meth:`attribute`.

        Raises:
            ValueError: ``repeats < 2``.
        """
        if repeats < 2:
            raise ValueError(f"repeats must be >= 2, got {repeats}")
        base = self._seeds(len(x), None)
        runs = [
            self.attribute(
                x, target, objective=objective, reduce=reduce, batch_size=batch_size,
                seeds=[seed + turn for seed in base],
            )
            for turn in range(repeats)
        ]  # fmt: skip
        maps = torch.stack([run.map for run in runs])
        capacities = [run.capacity for run in runs if run.capacity is not None]
        masks = [run.mask for run in runs if run.mask is not None]
        return dataclasses.replace(
            runs[0],
            map=maps.mean(dim=0),
            std=maps.std(dim=0),
            total_bits=torch.stack([run.total_bits for run in runs]).mean(dim=0),
            capacity=torch.stack(capacities).mean(dim=0),
            mask=torch.stack(masks).mean(dim=0),
            history={
                name: torch.stack([run.history[name] for run in runs]).mean(dim=0)
                for name in runs[0].history
            },
        )

    def restrict(self, x: Tensor, draws: int | None = None) -> Restricted:
        """The model at a batch with its layer in the noisy channel; the model must be undisturbed
        meanwhile.

        Raises:
            RuntimeError: There are no statistics yet.
        """
        if self.stats is None:
            raise RuntimeError(
                "the bottleneck has no statistics yet: set iba.stats = iba.estimate(data)"
            )
        model, layer, head = self._held
        inner = unwrap(model)
        if self._layer is None:
            self._layer = find_layer(inner, layer, x)
        if self._splitter is None:
            self._splitter = Splitter(inner, self._layer, head)
        return restrict(
            self._splitter,
            x,
            self.stats,
            draws=draws or self.draws,
            smooth=self.smooth,
            min_std=self.min_std,
            active_threshold=self.active_threshold,
            clamp=self.clamp,
            layout=self.layout,
        )

    def _seeds(self, n: int, seeds: Sequence[int] | None) -> list[int]:
        if seeds is not None:
            if len(seeds) != n:
                raise ValueError(f"seeds must have one entry an image, {n}, got {len(seeds)}")
            return [int(seed) for seed in seeds]
        if self.seed is not None:
            return [self.seed] * n
        return [int(seed) for seed in torch.randint(2**62, (n,))]

    def _fit(
        self, site: Restricted, objective: _Loss, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Fits the masks, eq. 8. Returns alpha ``(N, ...)`` for the map, and the history."""
        alpha = torch.full_like(site.features, self.alpha0, requires_grad=True)
        adam = torch.optim.Adam([alpha], lr=self.lr, fused=alpha.device.type in ("cpu", "cuda"))
        losses, objectives, bits = [], [], []
        for _ in range(self.steps - self.official_timing):
            with torch.enable_grad():
                mask, share = site.masks(alpha)
                capacity = site.capacity(mask, share)
                wrong = objective(site.run(mask, noise.draw()))
                check_depends(site.split.layer, wrong)
                loss = wrong + self.beta * capacity.flatten(1).mean(dim=1)
                (grad,) = torch.autograd.grad(loss.sum(), alpha)
            alpha.grad = grad.contiguous()  # the fused update reads it in the order of alpha
            adam.step()
            losses.append(loss.detach())
            objectives.append(wrong.detach())
            bits.append(site.bits(capacity.detach()))
        history = {
            "loss": torch.stack(losses),
            "objective": torch.stack(objectives),
            "bits": torch.stack(bits),
        }
        check_finite("the objective", history["objective"])
        return alpha.detach(), history

    def _result(
        self, site: Restricted, alpha: Tensor, history: dict[str, Tensor], reduce: Reduce
    ) -> Attribution:
        mask, share = site.masks(alpha)
        capacity = site.capacity(mask, share)
        check_finite("the capacity", capacity)
        per_pixel = reduce == "bits_per_pixel"
        return Attribution(
            map=site.bits_map(capacity, per_pixel=per_pixel),
            total_bits=site.bits(capacity),
            method=METHOD.name,
            capacity=capacity,
            mask=mask,
            history=history,
            layer=self._layer.name if self._layer else "",
            channel_axis=-1 if site.layout.kind == "tokens" else 1,
            unit="bits per pixel" if per_pixel and site.on_pixels else "bits",
        )


_Loss = Callable[[Any], Tensor]


def _loss_of_images(
    site: Restricted, target: Tensor | int | None, objective: Objective | None, rows: Tensor
) -> _Loss:
    """The objective of each image, mean over its draws, ``(n,)``, as a function of the model's
    output.
    """
    index = site.index
    if objective is None:
        logits = class_scores(site.split.output, len(rows))
        objective = cross_entropy(as_targets(target, logits))
    else:
        index = rows.to(index.device)[index]

    def loss(output: Any) -> Tensor:
        each = objective(output, index)
        if not isinstance(each, Tensor) or each.shape != index.shape:
            got = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ValueError(f"objective must give one loss a row, ({len(index)},), got {got}")
        return each.to(site.features.dtype).view(-1, site.draws).mean(dim=1)

    return loss


def _join(parts: Sequence[Attribution]) -> Attribution:
    """One attribution of several batches."""
    if len(parts) == 1:
        return parts[0]
    return dataclasses.replace(
        parts[0],
        map=torch.cat([part.map for part in parts]),
        total_bits=torch.cat([part.total_bits for part in parts]),
        capacity=torch.cat([part.capacity for part in parts if part.capacity is not None]),
        mask=torch.cat([part.mask for part in parts if part.mask is not None]),
        history={
            name: torch.cat([part.history[name] for part in parts], dim=1)
            for name in parts[0].history
        },
    )
