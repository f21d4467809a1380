"""Narrow copies in the stack of the widest: which models allow it, and which numbers are padding.

A narrow net is the widest one with zeros in its last channels. What a padded channel feeds is
multiplied by a zero weight, so the outputs are the narrow net's, and so is each gradient; the
gradients of the padding are set to zero, so that it stays zero under any optimiser that leaves a
zero with zero gradient alone. This holds as long as no layer mixes channels other than by its
weights or moves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from addis.train._stacked_plan import trace

__all__ = ["padding_masks", "shapes_differ", "why_not_packed"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MIXING_CALLS = (
    "cat", "pad", "conv1d", "conv2d", "conv3d", "linear", "truediv", "div", "sqrt",
)  # fmt: skip


def shapes_differ(models: Sequence[nn.Module]) -> bool:
    """Whether the models have several widths."""
    return any(_shapes(model) != _shapes(models[0]) for model in models[1:])


def padding_masks(models: Sequence[nn.Module], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each stacked parameter with padding, ``True`` where a copy has a number of its own."""
    masks = {}
    for name, param in params.items():
        own = [_shapes(model)[name] for model in models]
        if all(shape == param.shape[1:] for shape in own):
            continue
        masks[name] = torch.zeros_like(param, dtype=torch.bool)
        for row, shape in zip(masks[name], own, strict=True):
            row[tuple(slice(n) for n in shape)] = True
    return masks


def why_not_packed(models: Sequence[nn.Module]) -> str | None:
    """Says what keeps models of several widths from standing in one stack, or ``None``.

    Args:
        models: They pass :func:`addis.train._stacked_plan.why_not_grouped` and
            :func:`addis.train._stacked_state.check_alike`.
    """
    graph = trace(models[0])
    for i, model in enumerate(models[1:], 1):
        if str(trace(model)) != str(graph):
            return f"models[{i}] does not make the calls that models[0] makes"
        for (name, a), (_, b) in zip(models[0].named_modules(), model.named_modules(), strict=True):
            if _settings(a) != _settings(b):
                return f"layer {name!r} is {a} in models[0] and {b} in models[{i}]"
    for name, layer in models[0].named_modules():
        varies = _varies(models, name)
        groups = isinstance(layer, _CONVOLUTIONS) and _settings(layer)[-1] not in (
            1,
            "each channel",
        )
        if groups and varies:
            return f"layer {name!r} ({type(layer).__name__}) works on groups of channels"
    padded: set[fx.Node] = set()
    for node in graph.nodes:
        if (reason := _spread(models, node, padded)) is not None:
            return reason
    return None


def _spread(models: Sequence[nn.Module], node: fx.Node, padded: set[fx.Node]) -> str | None:
    """Adds ``node`` to ``padded`` if its channels end in padding, or says why that breaks it."""
    reached = any(before in padded for before in node.all_input_nodes)
    name = str(node.target)
    if node.op == "output":
        return "the outputs of the models have several sizes" if reached else None
    if node.op == "get_attr":
        shapes = {_shapes(model).get(name) for model in models}
        return f"{name!r} has several shapes" if len(shapes) > 1 else None
    if node.op == "call_module":
        layer = models[0].get_submodule(name)
        if isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
            reached = len({m.get_parameter(f"{name}.weight").shape[0] for m in models}) > 1
    elif reached and getattr(node.target, "__name__", name) in _MIXING_CALLS:
        return f"{node.name!r} in forward may move or mix channels"
    if reached:
        padded.add(node)
    return None


def _settings(layer: nn.Module) -> tuple[object, ...]:
    """What must be the same at all widths."""
    if isinstance(layer, _CONVOLUTIONS):
        depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
        return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode,
                "each channel" if depthwise else layer.groups)  # fmt: skip
    if isinstance(layer, _BATCH_NORMS):
        return layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    if isinstance(layer, nn.Linear) or next(layer.children(), None) is not None:
        return (type(layer),)
    return (layer.extra_repr(),)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in (*model.named_parameters(), *model.named_buffers())}


def _varies(models: Sequence[nn.Module], path: str) -> bool:
    own = [{n: s for n, s in _shapes(m).items() if n.rpartition(".")[0] == path} for m in models]
    return any(shapes != own[0] for shapes in own)
