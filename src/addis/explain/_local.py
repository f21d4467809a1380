"""Forward passes of images that differ in one patch: what it cannot reach is not computed again.

The first layers of a convolutional network look at a neighbourhood. Up to a layer where it is still
small, only a crop round the patch has to run; its features are put into those of the clean image,
and the rest of the network goes on from there. The result is the full pass's, up to rounding. The
idea is that of S. Nakandala, A. Kumar, Y. Papakonstantinou, "Incremental and Approximate Inference
for Faster Occlusion-based Deep CNN Explanations" (Krypton), SIGMOD 2019.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from addis.explain._split import evaluate_node

__all__ = ["Box", "PatchedForward"]

Box = tuple[int, int, int, int]
"""Top, bottom, left, right of a patch; bottom and right are not in it."""

_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Identity, nn.Dropout,
    nn.BatchNorm2d,
)  # fmt: skip
_POINTWISE_CALLS = frozenset([F.relu, torch.relu, F.relu6, F.silu, F.gelu])
_JOINING_CALLS = frozenset([operator.add, operator.iadd, torch.add])


@dataclass(frozen=True, slots=True)
class _Reach:
    """Cell ``i`` reads the pixels ``i * stride - before`` to ``i * stride + after`` of an axis."""

    stride: int
    before: int
    after: int

    def window(self, low: int, high: int, cells: int) -> tuple[int, int]:
        """First cell that reads one of the pixels ``[low, high)``, and the end of such cells."""
        first = max(-(-(low - self.after) // self.stride), 0)
        return first, min((high - 1 + self.before) // self.stride + 1, cells)


@dataclass(frozen=True, slots=True)
class _Cut:
    node: fx.Node
    reach: _Reach
    cells: int
    """Side of the window of features that is computed again."""
    pixels: int
    """Side of the crop that it is computed from."""


class PatchedForward:
    """A traced model's output for images that differ from ``x`` in one patch each.

    Args:
        model: A model in evaluation mode, as :func:`folded` gives it; another than a traced one
            runs whole.
        x: The clean images, ``(N, C, H, W)``.
        patch: Longest side of the patches.
    """

    def __init__(self, model: nn.Module, x: Tensor, patch: int) -> None:
        self._model, self._x = model, x
        self._cut = _best_cut(model, x, patch) if isinstance(model, fx.GraphModule) else None
        if self._cut is not None:
            nodes = list(self._model.graph.nodes)  # type: ignore[union-attr, arg-type]
            place = nodes.index(self._cut.node)
            self._before, self._after = nodes[: place + 1], nodes[place + 1 :]
            self._clean = self._prefix(x.clone())  # the model may work in place

    @property
    def cut(self) -> str:
        """The layer up to which a crop runs; empty if the whole model does."""
        return self._cut.node.name if self._cut else ""

    def __call__(self, index: Sequence[int], boxes: Sequence[Box], cover: Tensor) -> Any:
        """The output with a patch covered in each of ``M`` copies.

        Args:
            index: Image of each copy, ``M`` entries.
            boxes: Patch of each copy.
            cover: What covers, ``(N, C, H, W)``.
        """
        if self._cut is None:
            return self._model(_covered(self._x, index, boxes, [(0, 0)] * len(boxes), None, cover))
        cut, (height, width) = self._cut, self._x.shape[2:]
        cells = self._clean.shape[2:]
        corners = [
            (_start(cut, top, bottom, height, cells[0]), _start(cut, left, right, width, cells[1]))
            for top, bottom, left, right in boxes
        ]
        size = (min(cut.pixels, height), min(cut.pixels, width))
        crops = self._prefix(_covered(self._x, index, boxes, corners, size, cover))
        features = self._clean[list(index)]
        for copy, ((top, bottom, left, right), (y, x)) in enumerate(
            zip(boxes, corners, strict=True)
        ):
            rows = cut.reach.window(top, bottom, cells[0])
            cols = cut.reach.window(left, right, cells[1])
            y, x = y // cut.reach.stride, x // cut.reach.stride
            features[copy, :, slice(*rows), slice(*cols)] = crops[
                copy, :, rows[0] - y : rows[1] - y, cols[0] - x : cols[1] - x
            ]
        return self._suffix(features)

    def _prefix(self, x: Tensor) -> Tensor:
        env: dict[fx.Node, Any] = {}
        for node in self._before:
            env[node] = x if node.op == "placeholder" else evaluate_node(self._model, node, env)
        assert self._cut is not None
        features: Tensor = env[self._cut.node]
        return features

    def _suffix(self, features: Tensor) -> Any:
        assert self._cut is not None
        env: dict[fx.Node, Any] = {self._cut.node: features}
        for node in self._after:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            env[node] = evaluate_node(self._model, node, env)
        raise RuntimeError("the traced model has no output")


def _covered(
    x: Tensor,
    index: Sequence[int],
    boxes: Sequence[Box],
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int] | None,
    cover: Tensor,
) -> Tensor:
    """Crops of images, each with its patch covered, ``(M, C, *size)``, channels last.

    Of a patch that reaches out of its crop the rest is not read by the cells that are put in place.
    """
    height, width = size or tuple(x.shape[2:])
    crops = torch.empty(
        (len(boxes), x.shape[1], height, width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    for copy, (i, (top, bottom, left, right), (y, z)) in enumerate(
        zip(index, boxes, corners, strict=True)
    ):
        crops[copy] = x[i, :, y : y + height, z : z + width]
        top, bottom = (min(max(row, y), y + height) for row in (top, bottom))
        left, right = (min(max(col, z), z + width) for col in (left, right))
        crops[copy, :, top - y : bottom - y, left - z : right - z] = cover[
            i, :, top:bottom, left:right
        ]
    return crops


def _start(cut: _Cut, low: int, high: int, size: int, cells: int) -> int:
    """First pixel of the crop for a patch ``[low, high)``, a multiple of the stride."""
    first, _ = cut.reach.window(low, high, cells)
    stride = cut.reach.stride
    start = (first - -(-cut.reach.before // stride)) * stride
    return min(max(start, 0), max(size - cut.pixels, 0))


def _best_cut(model: fx.GraphModule, x: Tensor, patch: int) -> _Cut | None:
    """The layer at which cropping saves most multiplications, ``None`` if it saves none."""
    height, width = x.shape[2:]
    reaches, work = _survey(model, x)
    total, done = sum(work.values()), 0.0
    best, least = None, float(total)
    for node in model.graph.nodes:
        done += work.get(node, 0.0)
        reach = reaches.get(node)
        if (
            reach is None
            or not _alone(model.graph, node)
            or height % reach.stride
            or width % reach.stride
        ):
            continue
        cells = (patch - 1 + reach.before + reach.after) // reach.stride + 1
        need = (cells - 1) * reach.stride + math.ceil(reach.before / reach.stride) * reach.stride
        pixels = math.ceil((need + reach.after + 1) / reach.stride) * reach.stride
        share = min(pixels / height, 1.0) * min(pixels / width, 1.0)
        cost = total - done + done * share
        if cost < least:
            best, least = _Cut(node, reach, cells, pixels), cost
    return best


def _survey(model: fx.GraphModule, x: Tensor) -> tuple[dict[fx.Node, _Reach], dict[fx.Node, float]]:
    """For each node its reach if it is local, and its multiplications at one image."""
    reaches: dict[fx.Node, _Reach] = {}
    known: dict[fx.Node, _Reach] = {}  # of what still holds the values that it was given
    env: dict[fx.Node, Any] = {}
    work: dict[fx.Node, float] = {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            env[node], known[node] = x[:1].clone(), _Reach(1, 0, 0)
            continue
        if node.op == "output":
            break
        env[node] = evaluate_node(model, node, env)
        reach = _reach(model, node, known)
        if reach is None and _in_place(model, node):
            known.clear()  # it may have changed any of them, being views of each other
        if reach is not None:
            reaches[node] = known[node] = reach
        if node.op == "call_module" and isinstance(env[node], Tensor):
            weight = getattr(model.get_submodule(str(node.target)), "weight", None)
            if isinstance(weight, Tensor):
                work[node] = env[node].numel() * weight[0].numel()
    return reaches, work


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node may change its arguments."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name.endswith("_") or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _reach(model: nn.Module, node: fx.Node, known: dict[fx.Node, _Reach]) -> _Reach | None:
    """The reach of a node from those of its arguments; ``None`` if it is not local."""
    before = [known.get(arg) for arg in node.all_input_nodes]
    reaches = [reach for reach in before if reach is not None]
    if not reaches or len(reaches) != len(before) or len({r.stride for r in reaches}) != 1:
        return None
    joined = _Reach(
        reaches[0].stride, max(r.before for r in reaches), max(r.after for r in reaches)
    )
    if node.op == "call_function":
        pointwise = node.target in _POINTWISE_CALLS and len(reaches) == 1
        joins = node.target in _JOINING_CALLS and len(reaches) == len(node.args)
        channels = node.target is torch.cat and (1 in node.args[1:] or node.kwargs.get("dim") == 1)
        return joined if pointwise or joins or channels else None
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    if isinstance(module, _POINTWISE):
        return joined
    return _slid(module, joined)


def _slid(module: nn.Module, reach: _Reach) -> _Reach | None:
    """The reach behind a convolution or pooling of square windows; ``None`` for all else."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return None
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return None
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and module.ceil_mode:
        return None
    sizes = [
        _square(getattr(module, name, 1))
        for name in ("kernel_size", "stride", "padding", "dilation")
    ]
    if any(size is None for size in sizes):
        return None
    kernel, stride, padding, dilation = (int(size) for size in sizes if size is not None)
    return _Reach(
        reach.stride * stride,
        reach.before + padding * reach.stride,
        reach.after + ((kernel - 1) * dilation - padding) * reach.stride,
    )


def _square(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    same = isinstance(value, tuple) and len(set(value)) == 1 and isinstance(value[0], int)
    return int(value[0]) if same else None


def _alone(graph: fx.Graph, cut: fx.Node) -> bool:
    """Whether nothing before the node is read after it, but the node itself."""
    passed: set[fx.Node] = set()
    for node in graph.nodes:
        if (
            passed
            and cut in passed
            and any(arg in passed and arg is not cut for arg in node.all_input_nodes)
        ):
            return False
        if cut not in passed:
            passed.add(node)
    return True
