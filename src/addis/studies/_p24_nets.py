"""The networks of study 24 and the ways to train them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from torch import nn

from addis import models
from addis.train.local import Loss

__all__ = ["LEAKY", "RELU_WAYS", "Way", "loss_of", "network"]

Way = Literal[
    "global",
    "tuned global",
    "deep supervision",
    "pred",
    "sim",
    "predsim",
    "pred-bpf",
    "sim-bpf",
    "predsim-bpf",
    "predsim-bpf 0.99",
]
LEAKY: Final = partial(nn.LeakyReLU, 0.01)
RELU_WAYS: Final = frozenset({"global", "tuned global", "pred", "pred-bpf"})  # the released recipes


def network(
    net: str, width: float, *, channels: int, side: int, classes: int, dropout: float, leaky: bool
) -> nn.Module:
    """A network of the study, with the activation of the way that trains it."""
    activation = LEAKY if leaky else nn.ReLU
    if net == "mlp":
        return models.mlp(
            classes,
            channels,
            image_size=side,
            width=int(width),
            depth=2 if width < 300 else 3,
            dropout=dropout,
            activation=activation,
        )
    if net == "conv4":
        return _four_convolutions(classes, channels, side, int(width), activation)
    if net in ("vgg8b", "vgg11b"):
        build = models.vgg8b if net == "vgg8b" else models.vgg11b
        return build(
            classes, channels, width, image_size=side, dropout=dropout, activation=activation
        )
    if net in ("resnet20", "resnet32"):
        resnet = models.resnet20 if net == "resnet20" else models.resnet32
        return resnet(classes, channels)
    raise ValueError(f"net must be mlp, conv4, vgg8b, vgg11b, resnet20 or resnet32, got {net!r}")


def _four_convolutions(
    classes: int, channels: int, side: int, width: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Two convolutions, a pool, two convolutions, a pool, the output layer, as a small VGG."""
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(channels if i == 0 else width, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width), activation()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side // 4) ** 2, classes))


def loss_of(name: str) -> Loss:
    """The local loss that a way names."""
    losses: dict[str, Loss] = {
        "pred": "pred",
        "sim": "sim",
        "predsim": "predsim",
        "pred-bpf": "pred-bpf",
        "sim-bpf": "sim-bpf",
        "predsim-bpf": "predsim-bpf",
    }
    return losses[name]
