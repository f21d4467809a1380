"""Pieces of a traced model, compiled to functions that take the model as an argument.

So nothing of the model is copied, replaced or hooked, and a moved or reloaded model is followed at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from addis.train.local._trace import NORMS, Traced, writes_in_place

__all__ = ["Stage", "compile_stage"]


@dataclass(frozen=True)
class Stage:
    """A piece of the model as a function of the model and the values that enter it.

    Attributes:
        inputs: Names of the values that enter.
        outputs: Names of the values that leave.
        spent: Names of the values that no later piece needs.
        copied: Those ``inputs`` that the piece writes to in place.
        run: ``run(model, *inputs) -> outputs``.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...]
    copied: frozenset[str]
    run: Callable[..., tuple[Any, ...]]


def compile_stage(
    model: nn.Module, traced: Traced, nodes: Sequence[fx.Node], keep: Iterable[fx.Node] = ()
) -> Stage:
    """Compiles consecutive operations to a function.

    An activation that follows a norm, and is all that reads it, works in place: the norm's backward
    does not need its output, and a leaky ReLU then keeps its output, which the head keeps too, in
    place of its input.

    Args:
        model: The traced model.
        traced: All its operations.
        nodes: Those of the stage.
        keep: Values that leave the stage even if nothing later reads them.
    """
    inside = set(nodes)
    entering = {n: None for node in nodes for n in node.all_input_nodes if n.op != "get_attr"}
    inputs = [n for n in entering if n not in inside]
    position = {node: i for i, node in enumerate(traced.nodes)}
    last = position[nodes[-1]] if nodes else -1
    later = {traced.result, *keep}

    def read_later(node: fx.Node) -> bool:
        return node in later or any(position.get(u, -1) > last for u in node.users)

    outputs = [n for n in nodes if read_later(n)]
    spent = [n.name for n in inputs if not read_later(n)]
    copied = {
        n.name for n in inputs for u in n.users
        if u in inside and u.all_input_nodes[0] is n and writes_in_place(model, u)
    }  # fmt: skip
    graph = fx.Graph()
    copies = {n: graph.placeholder(n.name) for n in inputs}
    for node in nodes:
        for n in node.all_input_nodes:
            if n.op == "get_attr" and n not in copies:
                copies[n] = graph.get_attr(str(n.target))
        copies[node] = _copied(graph, model, node, copies, inside)
    graph.output(tuple(copies[n] for n in outputs))
    return Stage(
        tuple(n.name for n in inputs), tuple(n.name for n in outputs), tuple(spent),
        frozenset(copied), _function(graph),
    )  # fmt: skip


def _copied(
    graph: fx.Graph,
    model: nn.Module,
    node: fx.Node,
    copies: dict[fx.Node, fx.Node],
    inside: set[fx.Node],
) -> fx.Node:
    before = node.all_input_nodes[0] if node.all_input_nodes else None
    if node.op == "call_module" and before in inside and before is not None:
        module = model.get_submodule(str(node.target))
        follows_norm = before.op == "call_module" and isinstance(
            model.get_submodule(str(before.target)), NORMS
        )
        if follows_norm and len(before.users) == 1 and not _hooked(module):
            if type(module) is nn.ReLU:
                return graph.call_function(F.relu, (copies[before],), {"inplace": True})
            if type(module) is nn.LeakyReLU and module.negative_slope > 0:
                slope = module.negative_slope
                return graph.call_function(F.leaky_relu, (copies[before], slope, True))
    return graph.node_copy(node, lambda n: copies[n])


def _hooked(module: nn.Module) -> bool:
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def _function(graph: fx.Graph) -> Callable[..., tuple[Any, ...]]:
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<stage of a traced model>", "exec"), scope)  # noqa: S102
    function: Callable[..., tuple[Any, ...]] = scope["forward"]
    return function
