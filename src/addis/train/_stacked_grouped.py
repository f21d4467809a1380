"""Runs E copies of a traced model with each layer in its grouped form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from addis.train._stacked_forward import Loss, per_copy
from addis.train._stacked_functions import FUNCTIONS, LAYERS, METHODS
from addis.train._stacked_state import Stack
from addis.train._stacked_value import NoFormError, Run, Value, split

__all__ = ["Grouped", "why_not_grouped"]

_ADVICE = 'pass backend="vmap" or backend="loop", which take any layer'


def why_not_grouped(model: nn.Module) -> str | None:
    """Says which part of ``model`` has no grouped form, or ``None`` if there is none."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"layer {name!r} ({type(module).__name__}) has hooks, which grouping would skip"
        momentum = getattr(module, "momentum", 0.1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and momentum is None:
            return f"layer {name!r} ({type(module).__name__}) averages all batches (momentum=None)"
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever the user's forward raises when it is given proxies
        return f"forward could not be traced: {error}"
    for node in graph.nodes:
        if (reason := _missing(model, node)) is not None:
            return reason
    return None


def _missing(model: nn.Module, node: fx.Node) -> str | None:
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        if type(layer) not in LAYERS:
            return f"layer {node.target!r} ({type(layer).__name__}) has no grouped form"
    elif node.op == "call_function" and node.target not in FUNCTIONS:
        name = getattr(node.target, "__name__", node.target)
        return f"function {name!r} ({node.name} in forward) has no grouped form"
    elif node.op == "call_method" and node.target not in METHODS:
        return f"method {node.target!r} ({node.name} in forward) has no grouped form"
    return None


class Grouped:
    """All copies at once, side by side in the channels.

    Args:
        stack: What to run; its skeleton passes :func:`why_not_grouped`.
        seeds: One for each copy's random stream.
        device: Where the stack is.
        memory_format: Format of the feature maps.
    """

    def __init__(
        self,
        stack: Stack,
        seeds: Sequence[int],
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self._stack, self._format = stack, memory_format
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._plans = {
            training: _plan(stack.skeleton.train(training)) for training in (True, False)
        }

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        stack = self._stack
        tensors = stack.tensors()
        run = Run(stack.copies, training, tensors, stack.alias, self.streams)
        env: dict[fx.Node, Any] = {}
        for node, spent in self._plans[training]:
            if node.op == "output":
                return pytree.tree_map_only(
                    Value, lambda v: _outside(run, v), _args(env, node.args[0]),
                    is_leaf=lambda v: isinstance(v, Value),
                )  # fmt: skip
            env[node] = self._call(run, env, node, x)
            for old in spent:
                del env[old]
        raise RuntimeError("the traced model has no output")

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        return per_copy(outputs, y, loss)

    def _call(self, run: Run, env: dict[fx.Node, Any], node: fx.Node, x: Tensor) -> Any:
        target, args = node.target, _args(env, node.args)
        if node.op == "placeholder":
            return args[0] if args else self._inside(run, x)
        if node.op == "get_attr":
            return _attribute(run, self._stack.skeleton, str(target))
        kwargs = _args(env, node.kwargs)
        try:
            if node.op == "call_module":
                layer = self._stack.skeleton.get_submodule(str(target))
                return LAYERS[type(layer)](run, str(target), layer, *args, **kwargs)
            form = METHODS[str(target)] if node.op == "call_method" else FUNCTIONS[target]  # type: ignore[index]
            return form(run, *args, **kwargs)
        except NoFormError as error:
            name = getattr(target, "__name__", target)
            raise ValueError(f"{name!r} has no grouped form here: {error}; {_ADVICE}") from None

    def _inside(self, run: Run, x: Tensor) -> Value:
        """The input ``(E, N, ...)`` in its layout; a batch that all copies share stays one."""
        if run.copies > 1 and x.stride(0) == 0:
            x = x[0]
            if x.dim() == 4:
                x = x.contiguous(memory_format=self._format)
            return Value("shared", x)
        if x.dim() == 3:
            return Value("rows", x)
        if x.dim() == 5 and self._format is torch.channels_last:
            e, n, c, h, w = x.shape
            last = x.permute(1, 3, 4, 0, 2).reshape(n, h, w, e * c)
            return Value("maps", last.permute(0, 3, 1, 2))
        return Value("maps", x.transpose(0, 1).flatten(1, 2))


def _plan(model: nn.Module) -> list[tuple[fx.Node, list[fx.Node]]]:
    """The nodes in order, each with those whose values no later node needs."""
    nodes = list(fx.Tracer().trace(model).nodes)
    last = {used: node for node in nodes for used in node.all_input_nodes}
    last |= {node: node for node in nodes if node not in last}
    return [(node, [used for used, by in last.items() if by is node]) for node in nodes]


def _args(env: dict[fx.Node, Any], args: Any) -> Any:
    return fx.map_arg(args, lambda node: env[node])


def _attribute(run: Run, model: nn.Module, target: str) -> Any:
    own = run.own("", target)
    if own is not None:
        return own
    value: Any = model
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _outside(run: Run, value: Value) -> Tensor:
    """A value as ``(E, N, ...)``."""
    if value.layout == "shared":
        return value.data.expand(run.copies, *value.data.shape)
    if value.layout == "maps":
        return split(run, value).transpose(0, 1)
    return value.data
