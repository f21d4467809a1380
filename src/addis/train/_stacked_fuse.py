"""Which layers of a traced model run as one block, and in what form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from addis.train._stacked_block import BlockSpec, apply_block
from addis.train._stacked_value import NoFormError, Run, Value, expect, flat, to_maps

__all__ = ["RELU", "block_form", "chains", "has_blocks", "is_kind", "only_user"]

RELU = (nn.ReLU, F.relu, torch.relu, "relu")
_OTHER_LAYOUTS = (
    F.conv1d, F.conv2d, F.conv3d, nn.Conv1d, nn.Conv3d, nn.BatchNorm3d, nn.GroupNorm,
)  # fmt: skip

Layer = TypeVar("Layer", bound=nn.Module)


def is_kind(model: nn.Module, node: fx.Node | None, kinds: tuple[object, ...]) -> bool:
    """Whether ``node`` calls a layer, function or method that is one of ``kinds``."""
    if node is None or node.op not in ("call_module", "call_function", "call_method"):
        return False
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))) in kinds
    return node.target in kinds


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, if it is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def has_blocks(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether blocks take all convolutions of ``model`` and nothing else wants another layout."""
    nodes = list(graph.nodes)
    if any(is_kind(model, node, _OTHER_LAYOUTS) for node in nodes):
        return False
    found = [conv for node in nodes if (conv := _layer(model, node, nn.Conv2d)) is not None]
    return bool(found) and all(_padding(conv) is not None for conv in found)


def chains(model: nn.Module, graph: fx.Graph) -> list[list[fx.Node]]:
    """Calls that run as one: a convolution, a normalisation or both, with what follows."""
    found: list[list[fx.Node]] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in taken and _part(model, node) in ("convolution", "normalisation"):
            found.append(list(_chain(model, node)))
            taken.update(found[-1])
    return found


def block_form(model: nn.Module, chain: Sequence[fx.Node]) -> Callable[[Run, Value], Value]:
    """The grouped form of a chain, in the present mode of ``model``."""
    paths = {_part(model, node): str(node.target) for node in chain}
    conv, norm, pool = (
        model.get_submodule(paths[part]) if part in paths else None
        for part in ("convolution", "normalisation", "pooling")
    )
    assert isinstance(conv, nn.Conv2d | None)
    assert isinstance(norm, nn.BatchNorm2d | None)
    spec = BlockSpec(
        window=(1, 1) if pool is None else _window(pool),
        rectifies="rectifier" in paths,
        eps=None if norm is None else norm.eps,
    )
    if conv is not None:
        padding = _padding(conv)
        assert padding is not None
        stride, dilation = _pair(conv.stride), _pair(conv.dilation)
        spec = spec._replace(stride=stride, padding=padding, dilation=dilation)

    def form(run: Run, x: Value) -> Value:
        x = expect(x, "shared", "maps")
        if x.data.dim() != 4:
            raise NoFormError(f"needs an input of 4 axes a copy, got {x.data.dim()}")
        if conv is None or conv.groups > 1 or x.data.requires_grad:
            x = to_maps(run, x)
        weight, bias = _own(run, paths, "convolution", "weight", "bias")
        gamma, beta, mean, variance = _own(
            run, paths, "normalisation", "weight", "bias", "running_mean", "running_var"
        )
        tracked = None if mean is None or variance is None else (mean, variance)
        y, batch = apply_block(
            spec, x.data, weight, bias, gamma, beta, None if run.training else tracked,
            copies=run.copies * (1 if conv is None else conv.groups), shared=x.layout == "shared",
        )  # fmt: skip
        if norm is not None and run.training and tracked is not None:
            assert norm.momentum is not None
            unbiased = batch.variance * (batch.numbers / (batch.numbers - 1))
            for kept, seen in zip(tracked, (batch.mean, unbiased), strict=True):
                kept.lerp_(seen, norm.momentum)
            run.count(paths["normalisation"])
        return Value("maps", y)

    return form


def _layer(model: nn.Module, node: fx.Node, kind: type[Layer]) -> Layer | None:
    """The layer of ``node``, if it is just of that kind."""
    layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return layer if type(layer) is kind else None


def _part(model: nn.Module, node: fx.Node) -> str | None:
    """Which part of a block ``node`` may be."""
    if (conv := _layer(model, node, nn.Conv2d)) is not None:
        return None if _padding(conv) is None else "convolution"
    if _layer(model, node, nn.BatchNorm2d) is not None:
        return "normalisation"
    if is_kind(model, node, RELU):
        return "rectifier"
    pool = _layer(model, node, nn.MaxPool2d) or _layer(model, node, nn.AdaptiveMaxPool2d)
    return "pooling" if pool is not None and _is_tiling(pool) else None


def _chain(model: nn.Module, node: fx.Node) -> Iterator[fx.Node]:
    """``node`` and what runs with it: a normalisation at once, then a ReLU and a max-pooling."""
    yield node
    left = {"normalisation", "rectifier", "pooling"} - {_part(model, node)}
    while (after := only_user(node)) is not None:
        part = _part(model, after)
        if part not in left:
            return
        left -= {part, "normalisation"}
        yield after
        node = after


def _own(run: Run, paths: Mapping[str | None, str], part: str, *names: str) -> list[Tensor | None]:
    """Tensors of the layer that is ``part`` of a block, flat over the copies."""
    return [flat(run.own(paths[part], name)) if part in paths else None for name in names]


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on each side, or ``None`` where a block has no such padding."""
    spans = [
        d * (k - 1) for d, k in zip(_pair(conv.dilation), _pair(conv.kernel_size), strict=True)
    ]
    if conv.padding == "valid":
        sides = [0, 0]
    elif conv.padding == "same":
        sides = [span // 2 for span in spans]
        if any(span % 2 for span in spans):
            return None
    else:
        sides = list(_pair(cast("tuple[int, ...]", conv.padding)))
    fits = all(side <= span for side, span in zip(sides, spans, strict=True))
    return (sides[0], sides[1]) if fits and conv.padding_mode == "zeros" else None


def _is_tiling(pool: nn.Module) -> bool:
    """Whether the windows stand side by side and start at the corner, or one is the whole map."""
    if isinstance(pool, nn.AdaptiveMaxPool2d):
        return pool.output_size in (1, (1, 1), [1, 1])
    assert isinstance(pool, nn.MaxPool2d)
    return (
        _pair(pool.kernel_size) == _pair(pool.stride)
        and _pair(pool.padding) == (0, 0)
        and _pair(pool.dilation) == (1, 1)
        and not pool.ceil_mode
    )


def _window(pool: nn.Module) -> tuple[int, int] | None:
    return _pair(pool.kernel_size) if isinstance(pool, nn.MaxPool2d) else None
