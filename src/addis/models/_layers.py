"""What every reference model is made of: named stacks, initial weights, checks, ``Normalize``."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

__all__ = ["Activation", "Device", "Normalize"]

Activation = Callable[[], nn.Module]
"""A layer type or another factory: ``nn.ReLU``, ``partial(nn.LeakyReLU, 0.01)``."""

Device = torch.device | str | int | None


class Factory(TypedDict):
    """The keywords that each layer takes and hands to its parameters."""

    device: Device
    dtype: torch.dtype | None


class Normalize(nn.Module):
    """Turns pixels in [0, 1] into what a pretrained network takes: ``(images - mean) / std``.

    Put in front of a network it makes one that takes pixels, so that a perturbation or a mask keeps
    its unit. The buffers follow ``.to()`` but are not saved: state-dict names stay those of the
    network alone.

    Args:
        mean: Mean of each channel, in pixel values of [0, 1]; ``C`` numbers.
        std: Standard deviation of each channel, in the same unit; ``C`` positive numbers.
        device: Device of the buffers.
        dtype: Data type of the buffers.

    Raises:
        ValueError: The lengths differ or are 0, a number is not finite, or ``std`` is not positive;
            in use, the images are not ``(N, C, H, W)`` with as many channels as ``mean`` has
            numbers.

    Example:
        >>> pixels = torch.full((1, 3, 2, 2), 0.5)
        >>> Normalize((0.5, 0.25, 0.0), (0.25, 0.25, 0.25))(pixels)[0, :, 0, 0]
        tensor([0., 1., 2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"mean and std must have one number a channel each, got {mean!r} and {std!r}"
            )
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(
                f"mean must be finite and std finite and positive, got {mean!r} and {std!r}"
            )
        for name, values in (("mean", mean), ("std", std)):
            column = torch.tensor(values, device=device, dtype=dtype or torch.get_default_dtype())
            self.register_buffer(name, column[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises ``images`` ``(N, C, H, W)`` to the same shape."""
        return _normalize(images, self.mean, self.std)

    def extra_repr(self) -> str:
        """The numbers of each channel."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def _normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # Without the check an image of one channel would broadcast to three.
    if images.dim() != 4 or images.shape[1] != mean.shape[0]:
        want, got = mean.shape[0], tuple(images.shape)
        raise ValueError(f"images must be (N, {want}, H, W), got shape {got}")
    return (images - mean) / std


torch.fx.wrap("_normalize")  # a symbolic tracer records the call and leaves the check to run time


def stack(**layers: nn.Module) -> nn.Sequential:
    """A sequence whose layers can be addressed by name, in the order given."""
    return nn.Sequential(OrderedDict(layers))


def dropout_layer(p: float, *, maps: bool = False) -> nn.Module:
    """Dropout of single values, or of whole feature maps; an identity where nothing is dropped."""
    if p == 0:
        return nn.Identity()
    return nn.Dropout2d(p) if maps else nn.Dropout(p)


def he_normal(model: nn.Module) -> None:
    """He initialisation: conv and linear weights ``N(0, 2 / fan_in)``, biases 0."""
    _initialise(model, nn.init.kaiming_normal_, nn.init.kaiming_normal_)


def xavier(model: nn.Module, *, conv: Callable[[Tensor], Tensor]) -> None:
    """Glorot initialisation: conv weights by ``conv``, linear weights uniform, biases 0."""
    _initialise(model, conv, nn.init.xavier_uniform_)


def _initialise(
    model: nn.Module, conv: Callable[[Tensor], Tensor], linear: Callable[[Tensor], Tensor]
) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            (conv if isinstance(layer, nn.Conv2d) else linear)(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_arguments(
    *,
    activation: Activation | None = None,
    dropout: float = 0.0,
    **least: tuple[float, float],
) -> None:
    """Refuses what no network can be built with.

    Args:
        activation: A factory of layers; a layer is none, and neither is its name.
        dropout: A probability in ``[0, 1)``.
        **least: Of each further argument the value and the least value allowed.

    Raises:
        TypeError: ``activation`` is a layer or not callable.
        ValueError: A number is out of its range; the message names it.
    """
    if isinstance(activation, nn.Module) or not (activation is None or callable(activation)):
        raise TypeError(f"activation must be a type or factory, as nn.ReLU, got {activation!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    for name, (value, low) in least.items():
        if not low <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= {low}, got {value}")
