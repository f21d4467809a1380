"""Where a model is cut: a layer with its norm and activation is a block, so is a residual region.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656, section 2.
Departures: residual regions are blocks by default (``blocks="auto"``); the paper's residual
networks, one block a convolution, are ``blocks=1``. In that form a layer stays with the one before
it if the loss of that one could not reach all its weights.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, fx, nn

from addis.train.local._shape import BlockShape
from addis.train.local._stage import Stage, compile_stage
from addis.train.local._trace import Kind, Traced, UnsupportedModelError, operation_name, trace

__all__ = ["Blocks", "Piece", "split"]

Blocks = Literal["auto"] | int | Sequence[str]
_MAPS: Final = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_TOKENS: Final = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.RNNBase, nn.Embedding)
_MOVES: Final = frozenset(
    {"movedim", "moveaxis", "permute", "swapaxes", "swapdims", "t", "transpose"}
)


@dataclass(frozen=True)
class Piece:
    """A block of the split, or the output layer, which is the last.

    Attributes:
        name: The modules' common path, or that of the first layer.
        glue: What stands between the block before and this one; it trains nothing.
        body: The block.
        features: Name of the value that the block's loss reads.
        shape: Of that value.
        input_shape: Of the block's input.
        parameters: Full names of the trainable parameters.
        layers: How many layers it holds.
        activation: The block's last operation if that is an activation without weights.
        modules: Full names of the modules that glue and block call.
        tensors: Full names of the parameters and buffers that they read directly.
    """

    name: str
    glue: Stage
    body: Stage
    features: str
    shape: BlockShape
    input_shape: BlockShape | None
    parameters: tuple[str, ...]
    layers: int
    activation: Callable[[Tensor], Tensor]
    modules: tuple[str, ...]
    tensors: tuple[str, ...]


def split(model: nn.Module, example: Tensor, blocks: Blocks = "auto") -> tuple[Piece, ...]:
    """Cuts a model into blocks and an output layer.

    Args:
        model: Any module that `torch.fx` can trace, from one tensor to one tensor; used in its
            present mode.
        example: A batch ``(n, ...)``.
        blocks: ``"auto"``: a block for each layer, and for each region that a residual connection
            or a branch closes; a number ``k``: at least ``k`` layers a block, where ``k = 1`` also
            cuts inside regions (the paper's form) and larger ``k`` only where a single tensor
            passes; names of modules: each opens a block and is taken whole, and layers outside the
            named modules stay with the block before them.

    Returns:
        The blocks in order; the last piece is the output layer with what follows it.

    Raises:
        TypeError: ``blocks`` is of another kind.
        ValueError: No block beside the output layer, a name that is absent, twice there or inside
            another, a number below 1, or weights shared between blocks.
        UnsupportedModelError: The model cannot be traced or cut there.
    """
    names = _names(model, blocks)
    traced = trace(model, example, whole=names)
    opening, single, least = _rule(traced, blocks)
    cuts = _cuts(traced, opening, single, least, named=bool(names))
    if not cuts:
        raise ValueError(
            f"no block to train locally in {type(model).__name__}: "
            f"{sum(kind is Kind.LAYER for kind in traced.kinds.values())} layers with trainable "
            "weights, and the last is the output layer"
        )
    pieces = _pieces(model, traced, cuts, len(example))
    _refuse_shared(model, pieces)
    return pieces


def _names(model: nn.Module, blocks: Blocks) -> tuple[str, ...]:
    if isinstance(blocks, bool) or not isinstance(blocks, str | int | Sequence):
        raise TypeError(f"blocks must be 'auto', a number or names, got {blocks!r}")
    if isinstance(blocks, int):
        if blocks < 1:
            raise ValueError(f"blocks must be >= 1 layers, got {blocks}")
        return ()
    if isinstance(blocks, str):
        if blocks != "auto":
            raise ValueError(f"blocks must be 'auto', a number or a list of names, got {blocks!r}")
        return ()
    known = [name for name, _ in model.named_modules() if name]
    for name in blocks:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3) or known[:3]
            raise ValueError(f"blocks names no module {name!r}; the closest are {', '.join(close)}")
        for other in blocks:
            if other != name and name.startswith(f"{other}."):
                raise ValueError(f"blocks overlap: {name!r} is inside {other!r}")
    if len(set(blocks)) != len(blocks) or not blocks:
        raise ValueError(f"blocks must name at least one module, each once, got {list(blocks)}")
    return tuple(blocks)


def _rule(traced: Traced, blocks: Blocks) -> tuple[list[fx.Node], bool, int]:
    """The operations that may open a block, whether one tensor must pass, the least layers."""
    layers = [node for node in traced.nodes if traced.kinds[node] is Kind.LAYER]
    if isinstance(blocks, int):
        return layers, blocks > 1, blocks
    if traced.named:
        opening = [node for node in layers if node in traced.named]
        if layers[-1] not in traced.named:
            opening.append(layers[-1])
        return opening, True, 1
    return layers, True, 1


def _cuts(
    traced: Traced, opening: Sequence[fx.Node], single: bool, least: int, *, named: bool
) -> list[tuple[int, int]]:
    """Pairs (last operation of a block, first operation of the next)."""
    cuts: list[tuple[int, int]] = []
    start, position = 0, {node: i for i, node in enumerate(traced.nodes)}
    for node in opening[1:]:
        q = position[node]
        layers = [i for i in range(start, q) if traced.kinds[traced.nodes[i]] is Kind.LAYER]
        if not layers or (len(layers) < least and node is not opening[-1]):
            continue
        ends = [i for i in range(layers[-1], q) if _may_end(traced, start, i, single)]
        if not ends:
            if named:
                raise UnsupportedModelError(
                    f"no single tensor passes into block {node.target!s}, so it cannot be cut off"
                )
            continue
        end = ends[-1]
        start = next(
            i for i in range(end + 1, q + 1) if traced.kinds[traced.nodes[i]] is not Kind.GLUE
        )
        cuts.append((end, start))
    return cuts


def _may_end(traced: Traced, start: int, end: int, single: bool) -> bool:
    node = traced.nodes[end]
    if traced.shape(node) is None or (traced.kinds[node] is Kind.GLUE and not _unpacks(node)):
        return False
    passes = _passing(traced, end) == {node} if single else _reaches_layer(traced, node)
    return passes and _all_weights_reach(traced, start, end)


def _unpacks(node: fx.Node) -> bool:
    """Whether it takes a layer's output out of a tuple, as after attention or an LSTM."""
    return (
        operation_name(node) == "getitem"
        and node.all_input_nodes[0].meta.get("addis_shape") is None
    )


def _passing(traced: Traced, end: int) -> set[fx.Node]:
    """The tensors that are there after an operation and still needed."""
    before = {traced.source, *traced.nodes[: end + 1]}
    later = set(traced.nodes[end + 1 :])
    return {
        n for n in before
        if n.meta.get("addis_value") and (n is traced.result or any(u in later for u in n.users))
    }  # fmt: skip


def _reaches_layer(traced: Traced, node: fx.Node) -> bool:
    """Whether a value meets a layer before it is joined with another tensor."""
    for user in node.users:
        kind = traced.kinds.get(user)
        if kind is Kind.LAYER:
            return True
        if kind in (Kind.KEEP, Kind.GLUE) and _reaches_layer(traced, user):
            return True
    return False


def _all_weights_reach(traced: Traced, start: int, end: int) -> bool:
    """Whether the value of ``end`` depends on every trainable weight since ``start``."""
    inside = set(traced.nodes[start : end + 1])
    reached, todo = set(), [traced.nodes[end]]
    while todo:
        node = todo.pop()
        if node in inside and node not in reached:
            reached.add(node)
            todo.extend(node.all_input_nodes)
    return all(node in reached for node in inside if traced.parameters[node])


def _pieces(
    model: nn.Module, traced: Traced, cuts: Sequence[tuple[int, int]], batch: int
) -> tuple[Piece, ...]:
    ends = [*(end for end, _ in cuts), len(traced.nodes) - 1]
    starts = [0, *(start for _, start in cuts)]
    after = 0
    pieces: list[Piece] = []
    for start, end in zip(starts, ends, strict=True):
        glue, body = traced.nodes[after:start], traced.nodes[start : end + 1]
        features = traced.result if end == len(traced.nodes) - 1 else traced.nodes[end]
        names = dict.fromkeys(name for node in body for name in traced.parameters[node])
        layers = [node for node in body if traced.kinds[node] is Kind.LAYER]
        name = _common_path(names, layers[0], {piece.name for piece in pieces})
        both = (*glue, *body)
        read = [n for node in both for n in node.all_input_nodes if n.op == "get_attr"]
        pieces.append(
            Piece(
                name,
                compile_stage(model, traced, glue),
                compile_stage(model, traced, body, keep=(features,)),
                features.name,
                _shape_of(model, traced, features, name, batch),
                _input_shape(model, traced, body, name, batch),
                tuple(names),
                len(layers),
                _activation(model, features),
                tuple(str(node.target) for node in both if node.op == "call_module"),
                tuple(dict.fromkeys(str(n.target) for n in read)),
            )
        )
        after = end + 1
    return tuple(pieces)


def _common_path(parameters: dict[str, None], layer: fx.Node, taken: set[str]) -> str:
    paths = [name.split(".")[:-1] for name in parameters] or [[str(layer.target)]]
    shared = [part for part, *rest in zip(*paths, strict=False) if all(r == part for r in rest)]
    last = str(layer.target) if layer.op == "call_module" else layer.name
    names = (".".join(shared), last, *(f"{last}_{i}" for i in range(1, len(taken) + 1)))
    return next(name for name in names if name and name not in taken)


def _shape_of(model: nn.Module, traced: Traced, node: fx.Node, name: str, batch: int) -> BlockShape:
    shape = traced.shape(node)
    if not shape or shape[0] != batch or len(shape) < 2:
        raise UnsupportedModelError(
            f"block {name!r} must give features (n, ...), got shape {shape}"
        )
    return BlockShape(name, shape[1:], _layout(model, node, len(shape)))


def _input_shape(
    model: nn.Module, traced: Traced, body: Sequence[fx.Node], name: str, batch: int
) -> BlockShape | None:
    inside = set(body)
    for node in body:
        for n in node.all_input_nodes:
            if (
                n not in inside
                and (shape := traced.shape(n))
                and shape[0] == batch
                and len(shape) > 1
            ):
                return BlockShape(name, shape[1:], _layout(model, n, len(shape)))
    return None


def _layout(model: nn.Module, node: fx.Node, dims: int) -> Literal["flat", "maps", "tokens"]:
    """Read off the last layer or norm that made the value; else by the number of dimensions."""
    if dims == 2:
        return "flat"
    unknown: Literal["maps", "tokens"] = "tokens" if dims == 3 else "maps"
    while node.op not in ("placeholder", "get_attr"):
        if operation_name(node) in _MOVES:
            return unknown
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if isinstance(module, _MAPS):
                return "maps"
            if isinstance(module, _TOKENS):
                return "tokens"
        inputs = [
            n for n in node.all_input_nodes if n.op != "get_attr" and n.meta.get("addis_value")
        ]
        if not inputs:
            break
        node = inputs[0]
    return unknown


def _activation(model: nn.Module, node: fx.Node) -> Callable[[Tensor], Tensor]:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        known = type(module).__name__ in nn.modules.activation.__all__
        if known and not any(True for _ in module.parameters()):
            return copy.deepcopy(module)
    return torch.relu


def _refuse_shared(model: nn.Module, pieces: Sequence[Piece]) -> None:
    owner: dict[int, tuple[str, str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for piece in pieces:
        for name in piece.parameters:
            other, theirs = owner.setdefault(id(parameters[name]), (piece.name, name))
            if other != piece.name:
                raise ValueError(
                    f"blocks {other!r} and {piece.name!r} share a weight ({theirs}, {name}); "
                    "a weight must belong to one block"
                )
