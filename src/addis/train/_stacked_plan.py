"""From a model to the list of grouped calls that run it, and the reasons why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn import functional as F

from addis.train._stacked_functions import FUNCTIONS, LAYERS, METHODS
from addis.train._stacked_fuse import RELU, block_form, chains, is_kind, only_user

__all__ = ["Step", "plan", "trace", "why_not_grouped"]


class Step(NamedTuple):
    """One node of the traced model, or several that run as one.

    Args:
        node: The node, the last of several: what the step's value is stored under.
        first: The node whose arguments the step takes.
        form: ``form(run, *args)`` for calls, ``None`` for inputs, outputs and attributes.
        spent: Nodes whose values no later step needs.
    """

    node: fx.Node
    first: fx.Node
    form: Callable[..., Any] | None
    spent: list[fx.Node]


def why_not_grouped(model: nn.Module) -> str | None:
    """Says which part of ``model`` has no grouped form, or ``None`` if all have one."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"layer {name!r} ({kind}) has hooks, which grouping would skip"
        momentum = getattr(module, "momentum", 0.1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and momentum is None:
            return f"layer {name!r} ({kind}) averages over all batches (momentum=None)"
    try:
        graph = trace(model)
    except Exception as error:  # whatever the user's forward raises when it is given proxies
        return f"forward of {type(model).__name__} could not be traced: {error}"
    return next((why for node in graph.nodes if (why := _missing(model, node))), None)


def trace(model: nn.Module) -> fx.Graph:
    """The calls of ``model`` in its present mode, layers of ``torch.nn`` whole."""
    return fx.Tracer().trace(model)


def plan(model: nn.Module, *, blocks: bool = False) -> list[Step]:
    """The steps of ``model`` in its present mode.

    One rewrite that changes no result spares passes over the largest maps: ``max_pool(relu(x))``
    becomes ``relu(max_pool(x))``, which has the same values and the same gradients.

    Args:
        model: The model.
        blocks: Whether what :mod:`addis.train._stacked_block` runs as one is one step, for a model
            that :func:`addis.train._stacked_fuse.has_blocks`.
    """
    graph = trace(model)
    for node in list(graph.nodes):
        if is_kind(model, node, RELU) and is_kind(model, only_user(node), _MAX_POOL):
            _swap(node, next(iter(node.users)))
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
    return [Step(node, *forms[node], spent[node]) for node in order]


_MAX_POOL = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d)


def _swap(relu: fx.Node, pool: fx.Node) -> None:
    """``x -> relu -> pool`` becomes ``x -> pool -> relu``."""
    before = relu.all_input_nodes[0]
    if only_user(before) is not relu:
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
