"""Layers with parameters and random layers, each as one call for E copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from addis.train._stacked_value import (
    NoFormError,
    Run,
    Value,
    as_rows,
    expect,
    flat,
    per_copy_shape,
    to_many,
    to_maps,
    to_rows,
)

__all__ = [
    "batch_norm",
    "conv",
    "conv_layer",
    "dropout",
    "dropout_layer",
    "dropout_maps",
    "group_norm",
    "layer_norm",
    "linear",
    "linear_layer",
]


def conv(
    run: Run, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    x, weight = expect(x, "shared", "maps"), expect(weight, "own")
    dims = weight.data.dim() - 3
    if x.data.dim() != dims + 2:
        raise NoFormError(f"needs an input of {dims + 2} axes a copy, got {x.data.dim()}")
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    if groups > 1:
        x = to_maps(run, x)
    if x.layout == "maps":  # else every filter of every copy sees the one shared input
        groups *= run.copies
    out = convolve(x.data, weight.data.flatten(0, 1), None, stride, padding, dilation, groups)
    if bias is not None:  # apart: its gradient is a sum, for which oneDNN takes seven times as long
        out.add_(expect(bias, "own").data.reshape(-1, *[1] * dims))
    return Value("maps", out)


def conv_layer(run: Run, path: str, layer: Any, x: Value) -> Value:
    weight, bias = run.own(path, "weight"), run.own(path, "bias")
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = expect(x, "shared", "maps")
        x = Value(
            x.layout, F.pad(x.data, layer._reversed_padding_repeated_twice, layer.padding_mode)
        )
        padding = 0
    return conv(run, x, expect(weight, "own"), bias, layer.stride, padding, layer.dilation,
                 layer.groups)  # fmt: skip


def linear(run: Run, x: Value, weight: Value, bias: Value | None = None) -> Value:
    x, weight = expect(x, "shared", "rows"), expect(weight, "own")
    if x.data.dim() - (x.layout == "rows") != 2:
        raise NoFormError("needs (N, D) features a copy")
    if x.layout == "shared":
        out = F.linear(x.data, weight.data.flatten(0, 1), flat(bias))
        return Value("rows", as_rows(run, out))
    if bias is None:
        return Value("rows", torch.bmm(x.data, weight.data.mT))
    return Value("rows", torch.baddbmm(bias.data[:, None], x.data, weight.data.mT))


def linear_layer(run: Run, path: str, layer: Any, x: Value) -> Value:
    return linear(run, x, expect(run.own(path, "weight"), "own"), run.own(path, "bias"))


def batch_norm(run: Run, path: str, layer: Any, x: Value) -> Value:
    x = to_many(run, expect(x, "shared", "maps", "rows"))
    mean, variance = run.own(path, "running_mean"), run.own(path, "running_var")
    batch = run.training or mean is None
    run.count(path)
    data = x.data.transpose(0, 1).flatten(1) if x.layout == "rows" else x.data
    out = F.batch_norm(
        data, flat(mean), flat(variance), flat(run.own(path, "weight")),
        flat(run.own(path, "bias")), batch, layer.momentum, layer.eps,
    )  # fmt: skip
    if x.layout == "rows":
        out = as_rows(run, out)
    return Value(x.layout, out)


def group_norm(run: Run, path: str, layer: nn.GroupNorm, x: Value) -> Value:
    x = to_maps(run, expect(x, "shared", "maps"))
    weight, bias = flat(run.own(path, "weight")), flat(run.own(path, "bias"))
    groups = layer.num_groups * run.copies
    return Value("maps", F.group_norm(x.data, groups, weight, bias, layer.eps))


def layer_norm(run: Run, path: str, layer: nn.LayerNorm, x: Value) -> Value:
    x = to_rows(run, expect(x, "shared", "rows"))
    if len(layer.normalized_shape) != 1 or x.data.dim() != 3:
        raise NoFormError("needs (N, D) features a copy")
    out = F.layer_norm(x.data, layer.normalized_shape, None, None, layer.eps)
    weight, bias = run.own(path, "weight"), run.own(path, "bias")
    out = out if weight is None else out * weight.data[:, None]
    return Value("rows", out if bias is None else out + bias.data[:, None])


def dropout(
    run: Run, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    x = expect(x, "shared", "maps", "rows")
    return _masked(run, x, p, per_copy_shape(run, x), inplace) if training and p else x


def dropout_maps(
    run: Run, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    shape = per_copy_shape(run, expect(x, "shared", "maps"))
    return _masked(run, x, p, shape[:2] + (1,) * (len(shape) - 2), inplace) if training and p else x


def _masked(run: Run, x: Value, p: float, shape: Sequence[int], inplace: bool) -> Value:
    """Drops entries of ``x`` by a mask of ``shape`` a copy, drawn from that copy's stream."""
    mask = x.data.new_empty(run.copies, *shape)
    for row, stream in zip(mask, run.streams, strict=True):
        row.bernoulli_(1 - p, generator=stream)
    mask = mask if p == 1 else mask.div_(1 - p)
    wide = to_many(run, x)
    if wide.layout == "maps":
        mask = mask.transpose(0, 1).flatten(1, 2)
    if inplace and x.layout == "shared":
        raise NoFormError("cannot overwrite an input that all copies share")
    return Value(wide.layout, wide.data.mul_(mask) if inplace else wide.data * mask)


def dropout_layer(run: Run, path: str, layer: Any, x: Value) -> Value:
    form = dropout if type(layer) is nn.Dropout else dropout_maps
    return form(run, x, layer.p, run.training, layer.inplace)
