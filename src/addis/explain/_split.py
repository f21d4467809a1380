"""Cuts a model after a layer, so that only what follows it has to run again.

The model is traced with ``torch.fx``. What depends on the layer's output is the suffix; the other
values that the suffix reads (a shortcut round the layer, say) are computed once and kept. At every
batch the suffix must give the model's own output. If it does not, the model may have changed, and
it is traced anew; if that fails, or does not help, the whole model runs instead: without gradients
up to the layer, where the new features are put in, and with them from there. ``Split.how`` says
which.

On a CPU a suffix with wide convolutions runs a merged copy of its modules. The copy is made again
when a weight has changed, and must give the model's output at every batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from addis.explain._fold import merged
from addis.explain._layers import Layer, capture, check_runs, first_tensor, with_first_tensor
from addis.explain._trace import Tracer, unmarked
from addis.nn import suits

__all__ = ["Split", "Splitter", "evaluate_node"]

Head = Callable[[Tensor], Any]
How = Literal["suffix", "head", "re-entry"]


@dataclass(frozen=True, slots=True)
class Split:
    """A model cut after a layer, at one batch.

    Attributes:
        layer: The layer.
        features: What the layer gave, ``(N, ...)``.
        output: What the model gave.
        head: The model from new features ``(N * repeats, ...)`` on, rows of one image together.
        how: ``"suffix"``, ``"head"`` (the caller's) or ``"re-entry"`` (the whole model runs).
    """

    layer: Layer
    features: Tensor
    output: Any
    head: Head
    how: How


class Splitter:
    """Cuts a model after one layer; traces at the first batch and again when the model changes.

    Args:
        model: The model. It must be undisturbed whenever the splitter is called.
        layer: The layer.
        head: The model from the layer on, where the caller knows it; checked against the model.
    """

    def __init__(self, model: nn.Module, layer: Layer, head: Head | None = None) -> None:
        self._model, self._layer, self._own_head = model, layer, head
        self._suffix: _Suffix | None = None

    def __call__(self, x: Tensor, repeats: int) -> Split:
        """Cuts at a batch ``x`` of ``(N, ...)``, each image with ``repeats`` rows in the head.

        Raises:
            ValueError: The caller's head does not give the model's output, or the layer did not run
                once.
        """
        (features,), output = capture(self._model, [self._layer], x)
        if self._own_head is not None:
            if not _agrees(self._own_head, features, output):
                raise ValueError("head(features) does not give the model's output")
            return Split(self._layer, features, output, self._own_head, "head")
        suffix = self._after_layer(x, features, output, repeats)
        if suffix is not None:
            return Split(self._layer, features, output, suffix, "suffix")
        entry = _ReEntry(self._model, self._layer, x.repeat_interleave(repeats, dim=0))
        return Split(self._layer, features, output, entry, "re-entry")

    def _after_layer(self, x: Tensor, features: Tensor, output: Any, repeats: int) -> Head | None:
        """The suffix, traced anew if it does not give the output; ``None`` if no trace does."""
        if self._suffix is not None:
            head = self._suffix.head(x, features, output, repeats)
            if head is not None:
                return head
        self._suffix = _trace(self._model, self._layer)
        return None if self._suffix is None else self._suffix.head(x, features, output, repeats)


class _ReEntry:
    """The whole model, with the layer's output replaced and gradients from there on.

    Before the layer nothing needs a gradient: the parameters of the model are frozen.
    """

    def __init__(self, model: nn.Module, layer: Layer, x: Tensor) -> None:
        self._model, self._layer, self._x = model, layer, x.detach()

    def __call__(self, z: Tensor) -> Any:
        runs = 0
        grad = torch.is_grad_enabled()

        def enter(_: nn.Module, __: Any, output: Any) -> Any:
            nonlocal runs
            runs += 1
            first_tensor(output, self._layer.name)
            torch.set_grad_enabled(grad)  # the model may have turned them off round the layer
            return with_first_tensor(output, z)

        handle = self._layer.module.register_forward_hook(enter)
        try:
            with torch.set_grad_enabled(grad):
                output = self._model(self._x.clone())
        finally:
            handle.remove()
        check_runs(self._layer, runs)
        return output


class _Suffix:
    """The nodes of a traced model that depend on a layer, and what else they read.

    Args:
        model: The model.
        graph: Its trace.
        entry: The call of the layer.
        made: Tensors that ``forward`` made during the trace, by their name in it.
    """

    def __init__(
        self, model: nn.Module, graph: fx.Graph, entry: fx.Node, made: Mapping[str, Tensor]
    ) -> None:
        self._model, self._entry, self._made = model, entry, made
        nodes = list(graph.nodes)
        fed = _downstream(nodes, [node for node in nodes if node.op == "placeholder"])
        after = _downstream(nodes, [entry]) - {entry}
        needed = _upstream([node for node in nodes if node.op == "output"])
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._constants = [n for n in nodes if n in needed and n not in fed and n.op != "output"]
        self._nodes = [node for node in nodes if node in after and node in needed]
        reads = {arg for node in self._nodes for arg in node.all_input_nodes}
        known = {entry, *after, *self._constants}
        self._side = [node for node in nodes if node in reads and node not in known]
        before = _upstream(self._side)
        self._prefix = [node for node in nodes if node in before and node in fed]
        self._last_use = _last_uses(self._nodes)
        self._copies: tuple[bytes, dict[str, nn.Module]] = (b"", {})

    def head(self, x: Tensor, features: Tensor, output: Any, repeats: int) -> Head | None:
        """The suffix at a batch, quick if it can be; ``None`` if it does not give the model's
        output, also with more rows than the batch has.
        """
        rows = min(repeats, 2)
        try:
            side = self._side_values(x)
            if side is None:
                return None
            for copies in self._choices():
                few = partial(self._run, side=_repeated(side, rows), copies=copies)
                with suppress(Exception):  # copies, too, may fail, and the modules still run
                    if _agrees(few, features, output, rows):
                        return partial(self._run, side=_repeated(side, repeats), copies=copies)
        except Exception:  # a wrong trace may fail in any way, and the model itself still runs
            return None
        return None

    def _choices(self) -> Iterator[Mapping[str, nn.Module]]:
        """Merged copies of the modules, if they gain something, and then none."""
        live = {
            str(node.target): self._model.get_submodule(str(node.target))
            for node in self._nodes
            if node.op == "call_module"
        }
        wide = {name: m for name, m in live.items() if any(suits(part) for part in m.modules())}
        if wide:
            with suppress(Exception):  # copying runs the user's code, which may fail
                digest = _digest(wide.values())
                if digest != self._copies[0]:
                    made = {name: merged(module) for name, module in wide.items()}
                    self._copies = (digest, made)
                yield self._copies[1]
        yield {}

    def _side_values(self, x: Tensor) -> dict[fx.Node, Tensor] | None:
        """The values that reach the suffix round the layer; ``None`` if one has no row for each
        image, so that it cannot be repeated.
        """
        if not self._side:
            return {}
        env: dict[fx.Node, Any] = {self._inputs[0]: x.clone()}
        with torch.no_grad():
            for node in (*self._constants, *self._prefix):
                if node not in env:
                    env[node] = self._value(node, env)
        values = {node: env[node] for node in self._side}
        if not all(isinstance(v, Tensor) and v.shape[:1] == x.shape[:1] for v in values.values()):
            return None
        return values

    def _run(
        self, z: Tensor, side: Mapping[fx.Node, Tensor], copies: Mapping[str, nn.Module]
    ) -> Any:
        """The model's output from the layer's output on, some of its modules replaced by name."""
        env: dict[fx.Node, Any] = {node: value.clone() for node, value in side.items()}
        env[self._entry] = z  # the side values are copied: the suffix may work in place
        for node in self._constants:
            env[node] = self._value(node, env)
        for node in self._nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            module = copies.get(str(node.target)) if node.op == "call_module" else None
            env[node] = self._value(node, env, module)
            for done in self._last_use.get(node, ()):
                env.pop(done, None)
        raise RuntimeError("the traced model has no output that depends on the layer")

    def _value(
        self, node: fx.Node, env: Mapping[fx.Node, Any], module: nn.Module | None = None
    ) -> Any:
        if node.op == "get_attr" and node.target in self._made:
            return self._made[str(node.target)].clone()  # the suffix may work in place
        return evaluate_node(self._model, node, env, module)


def _repeated(side: Mapping[fx.Node, Tensor], repeats: int) -> dict[fx.Node, Tensor]:
    return {node: value.repeat_interleave(repeats, dim=0) for node, value in side.items()}


def evaluate_node(
    model: nn.Module,
    node: fx.Node,
    env: Mapping[fx.Node, Any],
    module: nn.Module | None = None,
) -> Any:
    """The value of a node of a traced model, given those of its arguments; ``module`` takes the
    place of the one that is called.
    """
    args = fx.node.map_arg(node.args, env.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
    match node.op:
        case "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        case "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        case "call_module":
            return (module or model.get_submodule(str(node.target)))(*args, **kwargs)
        case "get_attr":
            value: Any = model
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        case _:
            raise RuntimeError(f"cannot evaluate a node of kind {node.op!r}")


def _digest(modules: Iterable[nn.Module]) -> bytes:
    """A digest of the values of all weights and buffers."""
    digest = xxhash.xxh3_128()
    for module in modules:
        for value in (*module.parameters(), *module.buffers()):
            order = sorted(range(value.dim()), key=value.stride, reverse=True)
            flat = value.detach().permute(order).contiguous().reshape(-1)  # no copy if dense
            digest.update(flat.cpu().view(torch.uint8).numpy().data)
    return digest.digest()


class _Around(Tracer):
    """Looks into the modules round the layer; every other one, and the layer, stays a whole.

    A module that is left whole may have control flow that depends on its input.
    """

    def __init__(self, model: nn.Module, layer: Layer) -> None:
        super().__init__()
        parts = layer.name.split(".")
        around = {".".join(parts[:depth]) for depth in range(1, len(parts))}
        self._around = {id(module) for name, module in model.named_modules() if name in around}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._around


def _trace(model: nn.Module, layer: Layer) -> _Suffix | None:
    """The suffix after ``layer``, or ``None`` if the model cannot be traced that far."""
    if not layer.name:
        return None
    before = set(vars(model))
    with unmarked(model):
        try:
            graph = _Around(model, layer).trace(model, concrete_args=_defaults(model))
        except Exception:
            return None
        made = {
            name: value
            for name, value in vars(model).items()
            if name not in before and isinstance(value, Tensor)
        }
    calls = [
        node
        for node in graph.nodes
        if node.op == "call_module" and model.get_submodule(str(node.target)) is layer.module
    ]
    output_depends = calls and any(
        node.op == "output" for node in _downstream(list(graph.nodes), calls)
    )
    if len(calls) != 1 or not output_depends:
        return None
    return _Suffix(model, graph, calls[0], made)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The default values of what the model's ``forward`` takes besides the input."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _downstream(nodes: Sequence[fx.Node], starts: Sequence[fx.Node]) -> set[fx.Node]:
    reached = set(starts)
    for node in nodes:
        if any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return reached


def _upstream(ends: Sequence[fx.Node]) -> set[fx.Node]:
    reached: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(node.all_input_nodes)
    return reached


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node the values that nothing after it reads."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for arg in node.all_input_nodes:
            last[arg] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for value, node in last.items():
        uses.setdefault(node, []).append(value)
    return uses


def _agrees(head: Callable[[Tensor], Any], features: Tensor, output: Any, repeats: int = 1) -> bool:
    with torch.no_grad():
        again = head(features.repeat_interleave(repeats, dim=0))
    ours = [value[::repeats] for value in pytree.tree_leaves(again) if isinstance(value, Tensor)]
    return _close(ours, output)


def _close(ours: list[Tensor], output: Any) -> bool:
    """Equal up to rounding: a thousand units in the last place of the largest output, a tenth at
    most.
    """
    theirs = [value for value in pytree.tree_leaves(output) if isinstance(value, Tensor)]
    if len(ours) != len(theirs) or not theirs:
        return False
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return False
        if b.is_floating_point() and b.numel():
            slack = min(1e3 * torch.finfo(b.dtype).eps, 0.1) * float(b.abs().max())
            if not float((a - b).abs().max()) <= slack:
                return False
    return True
