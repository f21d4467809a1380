"""A user's model as a list of operations, each marked with what it does to the split."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

__all__ = [
    "NORMS", "Kind", "Traced", "UnsupportedModelError", "evaluating", "operation_name", "trace",
    "writes_in_place",
]  # fmt: skip

NORMS: Final = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
_ACTIVATIONS: Final = tuple(
    kind
    for name in nn.modules.activation.__all__
    if (kind := getattr(nn.modules.activation, name)) is not nn.MultiheadAttention
)
_ACTIVATION_NAMES: Final = frozenset(
    {
        "celu",
        "elu",
        "gelu",
        "glu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "logsigmoid",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "rrelu",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softsign",
        "tanh",
        "tanhshrink",
    }
)
_LAYER_NAMES: Final = frozenset(
    {
        "bilinear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "embedding",
        "linear",
    }
)
_NORM_NAMES: Final = frozenset(
    {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
)


_REGISTERS: Final = frozenset({"_parameters", "_buffers", "_modules"})


class UnsupportedModelError(RuntimeError):
    """A model whose forward pass cannot be cut into blocks."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}. Name the modules that hold what cannot be traced, blocks=['stem', ...]: each "
            "is then taken whole. Or write the loop: run your blocks on detached inputs and "
            "minimise local_head(...)(h, y).total of each"
        )


class Kind(Enum):
    """What an operation is to the split."""

    LAYER = auto()  # has weights and is not a norm: opens a block
    KEEP = auto()  # norm, activation, or another use of a parameter: belongs to the block before it
    MERGE = auto()  # joins two tensors
    GLUE = auto()  # pooling, dropout, reshaping: between blocks


@dataclass(frozen=True)
class Traced:
    """The operations of a model in order, from the input to the value that the output returns."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    result: fx.Node
    kinds: dict[fx.Node, Kind]
    parameters: dict[fx.Node, tuple[str, ...]]
    named: frozenset[fx.Node]

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Of the node's value on the example; ``None`` if that is not a tensor."""
        shape: tuple[int, ...] | None = node.meta.get("addis_shape")
        return shape


def trace(model: nn.Module, example: Tensor, *, whole: Collection[str] = ()) -> Traced:
    """Traces ``model`` in its present mode and runs it once, in evaluation mode, on ``example``.

    Args:
        model: Takes one tensor and returns one tensor.
        example: A batch ``(n, ...)``.
        whole: Modules that count as one operation.

    Raises:
        UnsupportedModelError: Its control flow depends on data, it changes a buffer or an
            attribute, or it takes or returns something else.
    """
    graph = _graph(model, frozenset(whole))
    _tidy(model, graph)
    sources = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if len(sources) != 1 or not isinstance(result, fx.Node):
        raise UnsupportedModelError("the model must take one tensor and return one tensor")
    _measure(model, graph, example)
    if result.meta.get("addis_shape") is None:
        raise UnsupportedModelError("the model must return one tensor")
    nodes = tuple(n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output"))
    named = frozenset(n for n in nodes if n.op == "call_module" and n.target in whole)
    parameters = {node: _parameters(model, node) for node in nodes}
    kinds = {node: _kind(model, node, node in named, parameters[node]) for node in nodes}
    return Traced(sources[0], nodes, result, kinds, parameters, named)


def _graph(model: nn.Module, whole: frozenset[str]) -> fx.Graph:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name in whole or super().is_leaf_module(
                m, module_qualified_name
            )

    arguments = list(inspect.signature(model.forward).parameters.values())
    defaults = {
        p.name: p.default for p in arguments[1:] if p.default is not inspect.Parameter.empty
    }
    before = _state(model)
    try:
        graph = Tracer().trace(model, concrete_args=defaults or None)
    except Exception as error:
        raise UnsupportedModelError(
            f"the forward pass of {type(model).__name__} cannot be traced "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        changed = _put_back(model, before)
    if changed:
        raise UnsupportedModelError(
            f"the forward pass of {type(model).__name__} changes {', '.join(changed)}, which a "
            "trace would freeze"
        )
    return graph


Held = tuple[Any, Any, int]  # a value, a copy of it, and the version of a tensor


def _state(model: nn.Module) -> dict[nn.Module, tuple[dict[str, Held], dict[str, Held]]]:
    """The attributes and the buffers of every module."""

    def held(values: Mapping[str, Any]) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                found[name] = (value, value.detach().clone(), value._version)
            elif name not in _REGISTERS:
                kept = copy.copy(value) if isinstance(value, list | dict | set) else value
                found[name] = (value, kept, 0)
        return found

    return {module: (held(vars(module)), held(module._buffers)) for module in model.modules()}


def _put_back(
    model: nn.Module, state: Mapping[nn.Module, tuple[dict[str, Held], dict[str, Held]]]
) -> list[str]:
    """Restores what `_state` found; gives the full names of what had changed."""
    names = {module: f"{path}." if path else "" for path, module in model.named_modules()}
    changed = []
    for module, kinds in state.items():
        for before, now in zip(kinds, (vars(module), module._buffers), strict=True):
            for name in [*before, *(n for n in now if n not in before)]:
                if name in _REGISTERS or name.startswith("_tensor_constant"):  # the tracer's own
                    continue
                if name not in before:
                    del now[name]
                elif name in now and _unchanged(before[name], now[name]):
                    continue
                else:
                    value, kept, _ = before[name]
                    now[name] = kept
                    if isinstance(value, Tensor):
                        now[name] = value
                        value.data.copy_(kept)
                if not _idle_counter(module, name):
                    changed.append(f"{names[module]}{name}")
    return changed


def _idle_counter(module: nn.Module, name: str) -> bool:
    """Whether a buffer is the count of batches of a norm that makes no use of it, which one with a
    ``forward`` of its own, such as timm's with an activation, raises in the open.
    """
    return (
        name == "num_batches_tracked"
        and isinstance(module, nn.modules.batchnorm._NormBase)
        and module.momentum is not None
    )


def _unchanged(held: Held, now: Any) -> bool:
    value, kept, version = held
    if isinstance(now, Tensor) and isinstance(kept, Tensor):
        return (now is value and now._version == version) or torch.equal(now, kept)
    try:
        return now is kept or (type(now) is type(kept) and bool(now == kept))
    except Exception:  # the values in place of which the tracer runs compare as nothing
        return False


def _tidy(model: nn.Module, graph: fx.Graph) -> None:
    """Lets later operations read what one wrote in place, and drops unread parts of tuples."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op.startswith("call") and node.all_input_nodes and writes_in_place(model, node):
            written = node.all_input_nodes[0]
            for user in [u for u in written.users if position[u] > position[node]]:
                user.replace_input_with(written, node)
    for node in reversed(graph.nodes):
        if node.op == "call_function" and operation_name(node) == "getitem" and not node.users:
            graph.erase_node(node)


def _measure(model: nn.Module, graph: fx.Graph, example: Tensor) -> None:
    """Notes every tensor's shape in its node's ``meta``; buffers and random state stay."""

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                n.meta["addis_shape"] = tuple(value.shape)
            n.meta["addis_value"] = isinstance(value, Tensor | tuple | list)
            return value

    devices = [example.device] if example.is_cuda else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices):
        Recorder(fx.GraphModule(model, graph)).run(example.clone())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _parameters(model: nn.Module, node: fx.Node) -> tuple[str, ...]:
    """Full names of the trainable parameters that an operation uses."""
    if node.op == "call_module":
        prefix = str(node.target)
        own = model.get_submodule(prefix).named_parameters(prefix)
        return tuple(name for name, p in own if p.requires_grad)
    names = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    found = dict(model.named_parameters(remove_duplicate=False))
    return tuple(name for name in names if name in found and found[name].requires_grad)


def _kind(model: nn.Module, node: fx.Node, named: bool, parameters: Sequence[str]) -> Kind:
    if named:
        return Kind.LAYER
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, NORMS + _ACTIVATIONS):
            return Kind.KEEP
        return Kind.LAYER if parameters else Kind.GLUE
    name = operation_name(node)
    if name in _LAYER_NAMES and parameters:
        return Kind.LAYER
    if parameters or name in _ACTIVATION_NAMES or name in _NORM_NAMES:
        return Kind.KEEP
    tensors = {n for n in node.all_input_nodes if n.op != "get_attr" and n.meta.get("addis_value")}
    return Kind.MERGE if len(tensors) > 1 else Kind.GLUE


def operation_name(node: fx.Node) -> str:
    """The bare name of a function or method, without the underscores of in-place forms."""
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def writes_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether an operation overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    if (
        node.op == "call_function"
        and name.startswith("i")
        and getattr(node.target, "__module__", "") in ("_operator", "operator")
    ):
        return name in ("iadd", "isub", "imul", "itruediv", "imatmul", "ipow")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or bool(node.kwargs.get("inplace", False))
