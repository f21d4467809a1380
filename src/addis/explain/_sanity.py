"""Cascading randomisation: does a map change when the weights it explains are destroyed, layer by
layer from the top?

Paper: J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt, B. Kim, "Sanity Checks for
Saliency Maps", NeurIPS 2018, arXiv:1810.03292, section 3.1; used by K. Schulz et al., ICLR 2020,
arXiv:2001.00396, section 4.1.
Departures: three similarities are given where Schulz et al. print SSIM alone, because SSIM is low
for any two noisy maps, whatever they show (A. Binder et al., CVPR 2023, arXiv:2211.12486; A.
Hedström et al. 2024, arXiv:2401.06465).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis.explain._evidence import check_images, check_maps
from addis.explain._layers import no_inference_mode, undisturbed, unwrap
from addis.explain._sensitivity import pearson

__all__ = ["Cascade", "Explain", "cascade_randomization", "spearman", "ssim"]

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``explain(model, x, target) -> (N, H, W)``: any attribution, which must name layers and not hold
modules.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Cascade:
    """Similarity of the maps of ever more randomised models to the maps of the model; L layers, N
    images.

    Args:
        layers: Names of the layers in the order of their randomisation, last first, ``L`` of them.
        ssim: Structural similarity of the maps, each scaled to ``[0, 1]``: float64 ``(L, N)``.
        spearman: Rank correlation, float64 ``(L, N)``.
        pearson: Correlation, float64 ``(L, N)``.
    """

    layers: tuple[str, ...]
    ssim: Tensor
    spearman: Tensor
    pearson: Tensor


def cascade_randomization(
    model: nn.Module,
    explain: Explain,
    x: Tensor,
    target: Tensor,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Cascade:
    """Randomises the layers of a copy of ``model`` from the last to the first and explains after
    each.

    A layer that has ``reset_parameters`` starts again as it would in a new model (batch
    normalisation also forgets its statistics). The parameters of any other, and those that a reset
    left as they were (of a layer whose weight is computed from them, as by pruning or weight
    normalisation), are drawn from a normal distribution with their own mean and standard deviation.
    Layers once randomised stay so.

    Args:
        model: Any module; it is copied and left as it was.
        explain: ``explain(model, x, target) -> (N, H, W)``. It gets the copy, in evaluation mode,
            and must find its layers in it by name.
        x: ``(N, C, H, W)``, floating.
        target: Class of each image, int64 ``(N,)``; handed to ``explain``.
        layers: Names of the modules to randomise, each with all it contains, first to last.
            ``None`` means every module that has parameters of its own, in the order in which they
            start to run: a module comes before what it contains, and the model itself, named
            ``""`` as by torch, first, so that it is randomised last.
        seed: Of the new weights.

    Returns:
        The similarity after each step. A working attribution loses its similarity within the first
        few.

    Raises:
        ValueError: A shape is wrong, no layer is named, a name is unknown, or a layer has no
            parameters.
        TypeError: ``x`` or a map is not floating.
        FloatingPointError: ``x`` or a map holds a value that is not finite.
    """
    check_images(x)
    if layers is not None and not len(layers):
        raise ValueError("layers must name at least one layer, got none")
    with no_inference_mode():
        x = x.clone() if x.is_inference() else x  # which could have no gradient
        broken = _copied(unwrap(model)).eval()
        names = _executed(broken, x[:1]) if layers is None else list(layers)
        parts = [_part(broken, name) for name in reversed(names)]
        reference = _explained(explain, broken, x, target)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for step, part in enumerate(parts):
            _randomise(part, seed * 100_003 + step)
            maps = _explained(explain, broken, x, target)
            found.append(
                (
                    ssim(reference, maps),
                    spearman(reference, maps),
                    pearson(reference.flatten(1), maps.flatten(1)),
                )
            )
    by_metric = (torch.stack(values) for values in zip(*found, strict=True))
    return Cascade(tuple(reversed(names)), *by_metric)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two maps ``(N, H, W)``, each scaled to ``[0, 1]``, in float64:
    ``(N,)``.

    Z. Wang et al. 2004: Gaussian window of standard deviation 1.5 over 11x11 pixels (fewer on
    smaller maps), constants 0.01 and 0.03, mean over the places where the window fits. A constant
    map is scaled to 0.

    Raises:
        ValueError: The shapes differ or are not ``(N, H, W)``.
        TypeError: A map is not floating.
        FloatingPointError: A map holds a value that is not finite.
    """
    check_maps(a)
    check_maps(b, tuple(a.shape))
    x, y = _unit(a), _unit(b)
    window = _window(*a.shape[1:]).to(a.device)
    local = [_filtered(v, window) for v in (x, y, x * x, y * y, x * y)]
    mx, my = local[0], local[1]
    vx, vy, cov = local[2] - mx * mx, local[3] - my * my, local[4] - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.flatten(1).mean(1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two maps ``(N, H, W)``, equal values sharing their mean rank, in float64:
    ``(N,)``.

    0 where either map is constant.

    Raises:
        ValueError: The shapes differ or are not ``(N, H, W)``.
        TypeError: A map is not floating.
        FloatingPointError: A map holds a value that is not finite.
    """
    check_maps(a)
    check_maps(b, tuple(a.shape))
    return pearson(_mean_ranks(a.flatten(1)), _mean_ranks(b.flatten(1)))


def _mean_ranks(values: Tensor) -> Tensor:
    """Twice the ranks less a constant, ``(N, M)``: how many are below and how many not above."""
    ordered = values.sort(1).values
    values = values.contiguous()
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True)).double()


def _copied(model: nn.Module) -> nn.Module:
    """A copy, also of a model that keeps tensors with a gradient, such as a pruned weight."""
    made: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in (*vars(module).values(), *module.buffers(recurse=False))
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, made)


def _explained(explain: Explain, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    maps = explain(model, x, target)
    check_maps(maps)
    if len(maps) != len(x):
        raise ValueError(f"explain must return ({len(x)}, H, W), got shape {tuple(maps.shape)}")
    return maps.detach()


def _executed(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules with parameters of their own, in the order in which they first run."""
    order: list[str] = []
    with ExitStack() as stack, undisturbed(model), torch.no_grad():
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):

                def note(_: nn.Module, __: Any, name: str = name) -> None:
                    if name not in order:
                        order.append(name)

                stack.callback(module.register_forward_pre_hook(note).remove)
        model(x.clone())
    if not order:
        raise ValueError(
            "model has no layer with parameters that runs, so there is nothing to randomise"
        )
    return order


def _part(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"layers holds {name!r}, which is not a module of the model")
    if not any(True for _ in modules[name].parameters()):
        raise ValueError(f"layers holds {name!r}, which has no parameters")
    return modules[name]


def _randomise(part: nn.Module, seed: int) -> None:
    """New weights for a module and all it contains; torch's generators are left as they were."""
    devices = {p.device.index or 0 for p in part.parameters() if p.device.type == "cuda"}
    cuda = torch.cuda.default_generators
    with torch.random.fork_rng(devices), torch.no_grad():
        for generator in (torch.default_generator, *(cuda[d] for d in devices)):
            generator.manual_seed(seed)
        for module in part.modules():
            before = [(p, p.clone()) for p in module.parameters(recurse=False)]
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            for parameter, old in before:
                if torch.equal(parameter, old):
                    mean, std = old.mean(), old.std(correction=0)
                    parameter.copy_(torch.randn_like(parameter) * std + mean)


def _unit(maps: Tensor) -> Tensor:
    """Scales each map ``(N, H, W)`` from its minimum to its maximum to ``[0, 1]``."""
    maps = maps.double()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)


def _window(h: int, w: int) -> Tensor:
    size = min(11, *(side - 1 + side % 2 for side in (h, w)))
    place = torch.arange(size, dtype=torch.float64) - size // 2
    weight = torch.exp(-(place**2) / (2 * 1.5**2))
    return weight / weight.sum()


def _filtered(maps: Tensor, window: Tensor) -> Tensor:
    """Weighted means over every place where the window fits: ``(N, H - s + 1, W - s + 1)``."""
    down = F.conv2d(maps[:, None], window[None, None, :, None])
    return F.conv2d(down, window[None, None, None, :])[:, 0]
