"""Sees the layers of a running model that can have patterns.

A convolution or linear layer is known by the tensor that it takes as weight, whichever module or
function calls it: a layer that pads in its own way and a weight that runs twice are no cases of
their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "Layers", "Norm"]

_LAYERS = frozenset([F.conv1d, F.conv2d, F.conv3d, F.linear])
_REFUSED: frozenset[Any] = frozenset(
    [F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm, F.rms_norm,
     F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.bilinear,
     F.multi_head_attention_forward, F.scaled_dot_product_attention]
)  # fmt: skip


class Call(NamedTuple):
    """One call of a convolution or linear layer: ``apply(x, weight, bias)``."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Norm(NamedTuple):
    """A batch norm with fixed statistics, ``gain * x + shift``, each ``(C,)``."""

    gain: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        axes = (-1, *[1] * (x.dim() - 2))
        return x * self.gain.view(axes) + self.shift.view(axes)

    @property
    def inverse(self) -> Tensor:
        """``1 / gain``, 0 where the gain is 0."""
        return torch.where(self.gain == 0, 0.0, 1 / self.gain)


class Layers(TorchFunctionMode, ABC):
    """Hands each layer and batch norm of a running model to a method.

    Raises:
        ValueError: The model runs something for which patterns are not defined.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = dict(model.named_parameters()) | dict(model.named_buffers())
        self._names = {id(tensor): name for name, tensor in self.weights.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS:
            call = _bound(func, *args, **kwargs)
            name = self._names.get(id(call.weight))
            if name is None:
                raise ValueError(
                    f"a {func.__name__} has a weight of shape {tuple(call.weight.shape)} that is "
                    "neither a parameter nor a buffer of the model, so it can have no patterns"
                )
            return self.layer(name, call)
        if func is F.batch_norm:
            return self.norm(_norm(*args, **kwargs), args[0], func(*args, **kwargs))
        if func in _REFUSED:
            raise ValueError(f"patterns are not defined for a model that runs {func.__name__}")
        return self.other(func, args, kwargs)

    @abstractmethod
    def layer(self, name: str, call: Call) -> Tensor:
        """Runs the layer with the weight ``name``."""

    def norm(self, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """Passes on what a batch norm gave for ``x``."""
        return out

    def other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs any other function."""
        return func(*args, **kwargs)


def _bound(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Call:
    return Call(input, weight, bias, lambda x, w, b: func(x, w, b, *rest, **named))


def _norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Norm:
    """What ``F.batch_norm`` does with these arguments."""
    if training or mean is None or var is None:
        raise ValueError("patterns are not defined for a batch norm without fixed statistics")
    gain = (var + eps).rsqrt()
    gain = gain if weight is None else gain * weight
    return Norm(gain, -mean * gain if bias is None else bias - mean * gain)
