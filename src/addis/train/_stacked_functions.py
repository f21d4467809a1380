"""Shapes, pooling and arithmetic for E copies, and the tables of all layers and functions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis.train._stacked_layers import (
    batch_norm,
    conv,
    conv_layer,
    dropout,
    dropout_layer,
    dropout_maps,
    group_norm,
    layer_norm,
    linear,
    linear_layer,
)
from addis.train._stacked_value import (
    NoFormError,
    Run,
    Value,
    as_rows,
    expect,
    per_copy_shape,
    split,
    to_many,
    to_maps,
)

__all__ = ["FUNCTIONS", "LAYERS", "METHODS", "OF_FEATURES"]

Form = Callable[..., Any]


def _flatten(run: Run, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    x = expect(x, "shared", "maps", "rows")
    dims = len(per_copy_shape(run, x))
    if start_dim % dims != 1 or end_dim % dims != dims - 1:
        raise NoFormError(f"can only flatten axes 1 to -1, not {start_dim} to {end_dim}")
    if x.layout == "maps":
        return Value("rows", split(run, x).flatten(2).transpose(0, 1))
    return Value(x.layout, x.data.flatten(1 if x.layout == "shared" else 2))


def _reshape(run: Run, x: Value, *shape: Any) -> Value:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    own = per_copy_shape(run, expect(x, "shared", "maps", "rows"))
    wanted = (own[0], math.prod(own[1:]))
    if len(sizes) != 2 or any(s not in (-1, w) for s, w in zip(sizes, wanted, strict=True)):
        raise NoFormError(f"can only view (N, -1), not {tuple(sizes)}")
    return _flatten(run, x, 1)


def _size(run: Run, x: Value, dim: int | None = None) -> Any:
    shape = per_copy_shape(run, x)
    return shape if dim is None else shape[dim]


def _getattr(run: Run, x: Any, name: str) -> Any:
    if isinstance(x, Value) and name in {"shape", "ndim"}:
        shape = per_copy_shape(run, x)
        return shape if name == "shape" else len(shape)
    if isinstance(x, Value) and name not in {"dtype", "device"}:
        raise NoFormError(f"has no form for the attribute {name!r}")
    return getattr(x.data if isinstance(x, Value) else x, name)


def _getitem(run: Run, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]
    everything = slice(None)
    if not isinstance(index, tuple) or index[:2] != (everything, everything) or x.layout == "rows":
        raise NoFormError("can only index the axes after the channels, as in x[:, :, ::2, ::2]")
    return Value(x.layout, x.data[index])


def _mean(run: Run, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    x = expect(x, "shared", "maps")
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    total = x.data.dim()
    if sorted(d % total for d in dims) != list(range(2, total)):
        raise NoFormError(f"can only average all axes after the channels, not {dim}")
    out = x.data.mean(dims, keepdim)
    if keepdim or x.layout == "shared":
        return Value(x.layout, out)
    return Value("rows", as_rows(run, out))


def _pad(
    run: Run, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Value:
    x = expect(x, "shared", "maps")
    if len(pad) <= 2 * (x.data.dim() - 2):
        return Value(x.layout, F.pad(x.data, pad, mode, value))
    if len(pad) > 2 * (x.data.dim() - 1):
        raise NoFormError("cannot pad the batch axis")
    return Value("maps", F.pad(split(run, to_maps(run, x)), pad, mode, value).flatten(1, 2))


def _cat(run: Run, parts: Sequence[Value], dim: int = 0) -> Value:
    parts = [to_many(run, expect(part, "shared", "maps", "rows")) for part in parts]
    if len({part.layout for part in parts}) != 1 or dim % len(per_copy_shape(run, parts[0])) != 1:
        raise NoFormError(f"can only concatenate channels (dim=1) of one kind, got dim={dim}")
    if parts[0].layout == "rows":
        return Value("rows", torch.cat([part.data for part in parts], 2))
    return Value("maps", torch.cat([split(run, part) for part in parts], 2).flatten(1, 2))


def _arithmetic(function: Callable[..., Any]) -> Form:
    """Sum, product, ... of two values, or of a value and a number."""

    def form(run: Run, a: Any, b: Any, **options: Any) -> Any:
        values = [v for v in (a, b) if isinstance(v, Value)]
        if not values:
            return function(a, b, **options)
        layouts = {v.layout for v in values}
        if (layouts == {"own"} and len(values) == 2) or layouts >= {"maps", "rows"}:
            raise NoFormError("needs two values of one shape")
        if len(layouts) == 1:
            data = [v.data if isinstance(v, Value) else v for v in (a, b)]
            return Value(values[0].layout, function(*data, **options))
        like = next(to_many(run, v) for v in values if v.layout != "own")
        if function in _IN_PLACE and a.layout != like.layout:
            raise NoFormError("cannot overwrite a value that all copies share")
        wide = [_alike(run, v, like) if isinstance(v, Value) else v for v in (a, b)]
        return Value(like.layout, function(*wide, **options))

    return form


def _alike(run: Run, value: Value, like: Value) -> Tensor:
    """``value`` in the layout of ``like``."""
    if value.layout != "own":
        return to_many(run, value).data
    one = len(per_copy_shape(run, like))
    shape = (1,) * (one - value.data.dim() + 1) + tuple(value.data.shape[1:])
    if len(shape) != one or shape[0] != 1:
        raise NoFormError(
            f"cannot broadcast a tensor of the model of shape {tuple(value.data.shape[1:])}"
        )
    data = value.data.reshape(run.copies, *shape)
    if like.layout == "rows":
        return data
    channels = per_copy_shape(run, like)[1]
    data = data.expand(-1, -1, channels, *[-1] * (one - 2))
    return data.transpose(0, 1).flatten(1, 2)


def _pointwise(function: Callable[..., Tensor]) -> Form:
    """A function of each entry alone: any layout."""

    def form(run: Run, x: Value, *args: Any, **options: Any) -> Value:
        if any(isinstance(arg, Value) for arg in (*args, *options.values())):
            raise NoFormError("takes one tensor and numbers")
        return Value(x.layout, function(x.data, *args, **options))

    return form


def _spatial(function: Callable[..., Tensor]) -> Form:
    """A function of each channel alone: layouts that have channels in axis 1."""

    def form(run: Run, x: Value, *args: Any, **options: Any) -> Value:
        return _channelwise(run, x, lambda data: function(data, *args, **options))

    return form


def _channelwise(run: Run, x: Value, function: Callable[[Tensor], Tensor]) -> Value:
    x = expect(x, "shared", "maps")
    if run.images_last:  # images and channels change places: PyTorch's channels_last
        return Value(x.layout, function(x.data.transpose(0, 1)).transpose(0, 1))
    return Value(x.layout, function(x.data))


def _pointwise_layer(run: Run, path: str, layer: nn.Module, x: Value) -> Value:
    return Value(x.layout, layer(x.data))


def _spatial_layer(run: Run, path: str, layer: nn.Module, x: Value) -> Value:
    return _channelwise(run, x, layer)


def _flatten_layer(run: Run, path: str, layer: nn.Flatten, x: Value) -> Value:
    return _flatten(run, x, layer.start_dim, layer.end_dim)


_IN_PLACE = (operator.iadd, operator.isub, operator.imul)

LAYERS: dict[type[nn.Module], Form] = (
    dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv_layer)
    | dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), batch_norm)
    | dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.Dropout3d), dropout_layer)
    | {nn.Linear: linear_layer, nn.GroupNorm: group_norm, nn.LayerNorm: layer_norm}
    | {nn.Flatten: _flatten_layer}
    | dict.fromkeys(
        (nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
         nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish,
         nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Threshold),
        _pointwise_layer,
    )
    | dict.fromkeys(
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
         nn.LPPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
         nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.ZeroPad2d,
         nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample),
        _spatial_layer,
    )
)  # fmt: skip

FUNCTIONS: dict[Callable[..., Any], Form] = (
    {f: _pointwise(f) for f in (
        torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.square, torch.sqrt,
        F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus,
        F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.tanh, F.sigmoid, operator.neg,
    )}
    | {f: _spatial(f) for f in (
        F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
    )}
    | {f: _arithmetic(f) for f in (
        operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, torch.add,
        torch.sub, torch.mul, torch.div, *_IN_PLACE,
    )}
    | {F.conv1d: conv, F.conv2d: conv, F.conv3d: conv, F.linear: linear}
    | {F.dropout: dropout, F.dropout2d: dropout_maps, F.pad: _pad}
    | {torch.flatten: _flatten, torch.reshape: _reshape, torch.mean: _mean, torch.cat: _cat}
    | {getattr: _getattr, operator.getitem: _getitem}
)  # fmt: skip

METHODS: dict[str, Form] = (
    {name: _pointwise(getattr(Tensor, name)) for name in (
        "relu", "relu_", "sigmoid", "tanh", "exp", "abs", "square", "contiguous", "clone",
        "detach",
    )}
    | {name: _arithmetic(getattr(Tensor, name)) for name in ("add", "sub", "mul", "div")}
    | {"flatten": _flatten, "view": _reshape, "reshape": _reshape, "mean": _mean}
    | {"size": _size, "dim": lambda run, x: len(per_copy_shape(run, x))}
)  # fmt: skip

OF_FEATURES: tuple[Form, ...] = (_flatten, _reshape, _mean, _pad, _cat, _getitem)
"""Forms that take no tensor of the model."""
