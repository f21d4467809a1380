"""Class activation maps: a layer's features, weighted by the gradient of a class's logit.

Papers: Grad-CAM: R. R. Selvaraju et al., ICCV 2017, arXiv:1610.02391 (guided Grad-CAM too).
HiResCAM: R. L. Draelos, L. Carin, 2020, arXiv:2011.08891. LayerCAM: P.-T. Jiang et al., IEEE TIP
2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from addis.explain._channel import layout_of, resize_to
from addis.explain._gradients import Target, guided_gradient
from addis.explain._inputs import check_input, target_scores
from addis.explain._layers import (
    Layer,
    check_depends,
    check_runs,
    find_layer,
    first_tensor,
    last_spatial_layer,
    undisturbed,
    with_first_tensor,
)

__all__ = ["CAMS", "gradcam", "guided_gradcam", "hirescam", "layercam"]


def gradcam(model: nn.Module, x: Tensor, target: Target, layer: str | nn.Module = "last") -> Tensor:
    """Grad-CAM: channels weighted by the mean of their gradient, what is negative cut off.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        layer: Name, module, ``"auto"`` (the middle stage) or ``"last"``, the last layer whose
            output has more than one cell.

    Returns:
        ``(N, H, W)``, non-negative, resized linearly to the input.

    Raises:
        ValueError: No such layer, it gives no map, or the logit does not depend on it.
    """
    features, grads = _features_and_gradients(model, x, target, layer)
    weights = grads.mean(dim=tuple(range(2, grads.dim())), keepdim=True)
    return _to_image((weights * features).sum(dim=1).clamp_min(0), x)


def hirescam(
    model: nn.Module, x: Tensor, target: Target, layer: str | nn.Module = "last"
) -> Tensor:
    """HiResCAM: each cell weighted by its own gradient, summed, what is negative cut off; as
    :func:`gradcam`.
    """
    features, grads = _features_and_gradients(model, x, target, layer)
    return _to_image((grads * features).sum(dim=1).clamp_min(0), x)


def layercam(
    model: nn.Module, x: Tensor, target: Target, layer: str | nn.Module = "last"
) -> Tensor:
    """LayerCAM: each cell weighted by its gradient where that is positive; as :func:`gradcam`."""
    features, grads = _features_and_gradients(model, x, target, layer)
    return _to_image((grads.clamp_min(0) * features).sum(dim=1).clamp_min(0), x)


def guided_gradcam(
    model: nn.Module, x: Tensor, target: Target, layer: str | nn.Module = "last"
) -> Tensor:
    """Grad-CAM times the guided gradient's largest channel; arguments as :func:`gradcam`."""
    coarse = gradcam(model, x, target, layer)
    with undisturbed(model) as inner:
        return coarse * guided_gradient(inner, x, target).abs().amax(dim=1)


def _features_and_gradients(
    model: nn.Module, x: Tensor, target: Target, layer: str | nn.Module
) -> tuple[Tensor, Tensor]:
    """A layer's features and the gradient of the target logit at them, both ``(N, C, *S)``."""
    check_input(x)
    last = layer == "last"
    place = last_spatial_layer(model, x) if last else find_layer(model, layer, x)
    with undisturbed(model) as inner:
        features, grads = _at_layer(inner, place, x, target)
    layout = layout_of(tuple(features.shape[1:]), tuple(x.shape[1:]))
    if len(layout.spatial) != x.dim() - 2:
        shape = tuple(features.shape[1:])
        raise ValueError(f"layer {place.name!r} gives features of shape {shape}, which are no map")
    return layout.grid(features), layout.grid(grads)


def _at_layer(model: nn.Module, layer: Layer, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    leaves: list[Tensor] = []
    x = x.detach().clone()  # the model may work in place

    def enter(_: nn.Module, __: object, output: object) -> object:
        leaves.append(first_tensor(output, layer.name).detach().clone().requires_grad_())
        torch.set_grad_enabled(True)  # the model may have turned them off round the layer
        return with_first_tensor(output, leaves[-1].clone())

    with torch.enable_grad():  # up to the layer nothing needs one: the parameters are frozen
        handle = layer.module.register_forward_hook(enter)
        try:
            output = model(x)
        finally:
            handle.remove()
        check_runs(layer, len(leaves))
        scores = target_scores(output, target, len(x))
        check_depends(layer, scores)
        (grads,) = torch.autograd.grad(scores.sum(), leaves[0])
    return leaves[0].detach(), grads


def _to_image(maps: Tensor, x: Tensor) -> Tensor:
    return resize_to(maps, tuple(x.shape[2:]))


CAMS: Final[Mapping[str, Callable[[nn.Module, Tensor, Target, str | nn.Module], Tensor]]] = (
    MappingProxyType(
        {
            "gradcam": gradcam,
            "guided_gradcam": guided_gradcam,
            "hirescam": hirescam,
            "layercam": layercam,
        }
    )
)
"""The methods that read a layer, by name."""
