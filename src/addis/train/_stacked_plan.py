"""From a model to the list of grouped calls that run it, and the reasons why there is none."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from addis.train._stacked_functions import FUNCTIONS, LAYERS, METHODS, OF_FEATURES
from addis.train._stacked_fuse import RELU, block_form, chains, is_kind, only_user
from addis.train._stacked_state import differing

__all__ = ["Step", "plan", "trace", "why_not_grouped"]


class Step(NamedTuple):
    """One node of the traced model, or several that run as one.

    Args:
        node: The node, the last of several: what the step's value is stored under.
        first: The node whose arguments the step takes.
        form: ``form(run, *args)`` for calls, ``None`` for inputs, outputs and attributes.
        spent: Nodes whose values no later step needs.
        overwritten: Whether a later step may write into this one's value.
    """

    node: fx.Node
    first: fx.Node
    form: Callable[..., Any] | None
    spent: list[fx.Node]
    overwritten: bool


def why_not_grouped(model: nn.Module) -> str | None:
    """Says which part of ``model`` has no grouped form, or ``None`` if all have one."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"layer {name!r} ({kind}) has hooks, which grouping would skip"
        momentum = getattr(module, "momentum", 0.1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and momentum is None:
            return f"layer {name!r} ({kind}) averages over all batches (momentum=None)"
    return _why_not(model, training=True) or _why_not(model, training=False)


def _why_not(model: nn.Module, *, training: bool) -> str | None:
    kind = type(model).__name__
    seen = copy.deepcopy(model).train(training)
    before = copy.deepcopy(seen)
    buffers = {id(buffer) for buffer in seen.buffers()}
    try:
        graph = _Tracer().trace(seen)
    except Exception as error:  # whatever the user's forward raises when it is given proxies
        return f"forward of {kind} could not be traced: {error}"
    whys = (*(_missing(model, node) for node in graph.nodes), _shaped(graph))
    if (why := next(filter(None, whys), None)) is not None:
        return why
    changed = [name for name, buffer in seen.named_buffers() if id(buffer) not in buffers]
    changed += [name for name, _, _ in differing(before, seen)]
    return f"forward of {kind} changes {changed[0]!r}" if changed else None


class _Tracer(fx.Tracer):
    """Looks into a buffer no more than into a parameter: its values differ by copy and step."""

    proxy_buffer_attributes = True


def trace(model: nn.Module) -> fx.Graph:
    """The calls of ``model`` in its present mode, layers of ``torch.nn`` whole.

    Tracing runs the model's own code, so it is done on a copy.
    """
    return _Tracer().trace(copy.deepcopy(model))


def plan(model: nn.Module, *, blocks: bool = False) -> list[Step]:
    """The steps of ``model`` in its present mode.

    One rewrite that changes no result spares passes over the largest maps: ``max_pool(relu(x))``
    becomes ``relu(max_pool(x))``, which has the same values and the same gradients.

    Args:
        model: The model, which passes :func:`why_not_grouped`.
        blocks: Whether what :mod:`addis.train._stacked_block` runs as one is one step, for a model
            that :func:`addis.train._stacked_fuse.has_blocks`.
    """
    graph = _Tracer().trace(model)
    for node in list(graph.nodes):
        if is_kind(model, node, RELU) and is_kind(model, only_user(node), _MAX_POOL):
            _swap(model, node, next(iter(node.users)))
    joined = chains(model, graph) if blocks else []
    forms = {chain[-1]: (chain[0], block_form(model, chain)) for chain in joined}
    inside = {node for chain in joined for node in chain}
    forms |= {node: (node, _form(model, node)) for node in graph.nodes if node not in inside}
    order = [node for node in graph.nodes if node in forms]
    last = {used: node for node in order for used in forms[node][0].all_input_nodes}
    last |= {node: node for node in order if node not in last}
    spent: dict[fx.Node, list[fx.Node]] = {node: [] for node in order}
    for used, by in last.items():
        spent[by].append(used)
    return [Step(node, *forms[node], spent[node], _overwritten(model, node)) for node in order]


_MAX_POOL = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d)
_VIEWS = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d,
          torch.flatten, torch.reshape, operator.getitem, "flatten", "view", "reshape",
          "contiguous", "detach")  # fmt: skip
"""What may give its input itself, or a part of its memory."""


def _overwritten(model: nn.Module, node: fx.Node) -> bool:
    """Whether a call may write into the value of ``node``."""
    return any(
        _in_place(model, user) or (is_kind(model, user, _VIEWS) and _overwritten(model, user))
        for user in node.users
    )


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` may write into its input; any flag of a function may be the one for that."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op == "call_function" and any(
        v is True for v in (*node.args, *node.kwargs.values())
    )


def _swap(model: nn.Module, relu: fx.Node, pool: fx.Node) -> None:
    """``x -> relu -> pool`` becomes ``x -> pool -> relu``, unless something writes into the result:
    for its gradient a ReLU needs its own, a pooling only its input.
    """
    before = relu.all_input_nodes[0]
    if only_user(before) is not relu or _overwritten(model, pool):
        return
    pool.replace_all_uses_with(relu)
    pool.replace_input_with(relu, before)
    relu.replace_input_with(before, pool)
    pool.append(relu)


def _form(model: nn.Module, node: fx.Node) -> Callable[..., Any] | None:
    if node.op == "call_method":
        return METHODS[str(node.target)]
    if node.op == "call_function":
        return FUNCTIONS[node.target]  # type: ignore[index]
    if node.op != "call_module":
        return None
    path = str(node.target)
    layer = model.get_submodule(path)
    form = LAYERS[type(layer)]
    return lambda run, *args, **kwargs: form(run, path, layer, *args, **kwargs)


def _missing(model: nn.Module, node: fx.Node) -> str | None:
    if node.op == "get_attr":
        own = {n for n, _ in model.named_parameters(remove_duplicate=False)}
        own |= {n for n, _ in model.named_buffers(remove_duplicate=False)}
        if str(node.target) not in own:
            return f"forward reads {node.target!r}, a tensor that is no parameter or buffer"
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        if type(layer) not in LAYERS:
            return f"layer {node.target!r} ({type(layer).__name__}) has no grouped form"
        if getattr(layer, "return_indices", False):
            return f"layer {node.target!r} ({type(layer).__name__}) returns indices"
    elif node.op == "call_function" and node.target not in FUNCTIONS:
        name = getattr(node.target, "__name__", node.target)
        return f"function {name!r} ({node.name} in forward) has no grouped form"
    elif node.op == "call_method" and node.target not in METHODS:
        return f"method {node.target!r} ({node.name} in forward) has no grouped form"
    return None


def _shaped(graph: fx.Graph) -> str | None:
    """Names a call that is made for features and gets a tensor of the model, which has no batch."""
    own: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (inputs and own.issuperset(inputs)):
            own.add(node)
        called = (METHODS if node.op == "call_method" else FUNCTIONS).get(node.target)
        several = node in own and sum(isinstance(arg, fx.Node) for arg in node.args) > 1
        if own.intersection(inputs) and (called in OF_FEATURES or several):
            name = getattr(node.target, "__name__", node.target)
            return f"{name!r} of a tensor of the model ({node.name} in forward) has no grouped form"
    return None
