"""A faster copy of a model for many passes with fixed weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from addis.explain._trace import Tracer, unmarked
from addis.nn import WinogradConv2d, suits

__all__ = ["folded", "merged"]

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy as :func:`merged` makes it, if it gives the model's output at ``x``; else the model.

    Args:
        model: An undisturbed model, in evaluation mode.
        x: A batch to check the copy on, ``(N, C, H, W)``.
    """
    try:
        copied = merged(model)
    except Exception:  # copying runs the user's code, which may fail in any way
        return model
    return copied if _agrees(copied, model, x) else model


def merged(model: nn.Module) -> nn.Module:
    """A copy whose batch norms are merged into their convolutions, for fixed weights.

    On a CPU its convolutions are channels last, and those of many channels are Winograd's. It
    computes the same function up to rounding where the tracing saw all of it; in a model that
    cannot be traced nothing is merged. Parameters that are not changed are the model's own.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)
    tracer = Tracer()
    if tracer.is_leaf_module(copied, ""):  # one of torch's own layers: nothing to see inside
        return _quick(copied)
    try:
        with unmarked(copied):
            traced = fx.GraphModule(copied, tracer.trace(copied))
    except Exception:  # tracing, too, runs the user's code
        return _quick(copied)
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op == "call_module" and _foldable(node, modules):
            before = node.args[0]
            conv, norm = modules[str(before.target)], modules[str(node.target)]
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()
    return _quick(traced)


def _quick(model: nn.Module) -> nn.Module:
    """The model with quicker convolutions; their weights are copied, not changed."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = module._parameters.get("weight")
        if weight is None or weight.device.type != "cpu":
            continue
        last = weight.detach().contiguous(memory_format=torch.channels_last)
        module.weight = nn.Parameter(last, requires_grad=False)
        if suits(module):
            if module is model:
                return WinogradConv2d(module)
            model.set_submodule(name, WinogradConv2d(module))
    return model


def _foldable(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a batch norm with fixed statistics, behind a convolution of its own."""
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
        return False
    conv, norm = modules[str(before.target)], modules[str(node.target)]
    own = sum(str(n.target) == str(before.target) for n in before.graph.nodes) == 1
    return own and type(norm) is _NORMS.get(type(conv)) and norm.running_mean is not None


def _agrees(copied: nn.Module, model: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        try:
            ours, theirs = copied(x.clone()), model(x.clone())
        except Exception:  # a wrong trace may fail in any way, and the model itself still runs
            return False
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return False
    slack = min(1e3 * torch.finfo(theirs.dtype).eps, 0.1) * float(theirs.abs().max())
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= slack
