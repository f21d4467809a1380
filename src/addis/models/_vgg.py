"""Networks like VGG for small images: VGG-9, VGG8B, VGG11B and a small one.

Papers: VGG8B and VGG11B, A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error
Signals", 2019, arXiv:1901.06656; VGG-9, H. Wang et al., "Federated Learning with Matched
Averaging", 2020, arXiv:2002.06440; all after K. Simonyan, A. Zisserman, "Very Deep Convolutional
Networks", 2014, arXiv:1409.1556. Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from addis.models._layers import (
    Activation,
    Device,
    Factory,
    check_arguments,
    dropout_layer,
    he_normal,
    stack,
)

__all__ = ["vgg8b", "vgg9", "vgg11b", "vgg_small"]

Plan = Sequence[int | Literal["M"]]  # channels of each convolution; M is a max-pool of 2

VGG8B: Plan = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
VGG11B: Plan = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")
VGG_SMALL: Plan = (32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M")


def vgg8b(
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    *,
    image_size: int = 32,
    dropout: float = 0.2,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """VGG8B of Nøkland and Eidnes 2019: six convolutions, a hidden linear layer, the classifier.

    The blocks ``block1`` to ``block7`` hold ``conv`` (or ``linear``), ``norm``, ``act`` and
    ``dropout`` (of whole maps after a convolution), in this order; the pools ``pool2``, ``pool4``,
    ``pool5``, ``pool6`` stand between them. A local loss reads a block at its ``act``. 8,903,434
    parameters for CIFAR-10. All weights start as torch's layers do, as in the authors' code.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        width: Multiplies the channels of each convolution, rounded down; the hidden linear layer
            keeps 1024 units.
        image_size: Height and width of the images in pixels, at least 16.
        dropout: Probability in ``[0, 1)``; the paper takes 0.2 on CIFAR-10 and MNIST, 0.1 on
            Fashion-MNIST.
        activation: Factory of the activations; the paper takes ``nn.ReLU``, and
            ``partial(nn.LeakyReLU, 0.01)`` for its sim and predsim losses.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: ``image_size`` is below 16, ``dropout`` outside ``[0, 1)``, ``width`` below
            1/128, or another argument below 1.
    """
    factory = Factory(device=device, dtype=dtype)
    return _local_vgg(
        VGG8B, num_classes, in_channels, width, image_size, dropout, activation, factory
    )


def vgg11b(
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    *,
    image_size: int = 32,
    dropout: float = 0.2,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """VGG11B of Nøkland and Eidnes 2019: nine convolutions, a hidden linear layer, the classifier.

    As :func:`vgg8b`, with blocks ``block1`` to ``block10`` and the pools ``pool4``, ``pool6``,
    ``pool8``, ``pool9``.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        width: Multiplies the channels of each convolution, rounded down; the hidden linear layer
            keeps 1024 units.
        image_size: Height and width of the images in pixels, at least 16.
        dropout: Probability in ``[0, 1)``; the paper takes 0.2, 0.25, 0.3 on CIFAR-10 for ``width``
            1, 2, 3.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: As :func:`vgg8b`.
    """
    factory = Factory(device=device, dtype=dtype)
    return _local_vgg(
        VGG11B, num_classes, in_channels, width, image_size, dropout, activation, factory
    )


def _local_vgg(
    plan: Plan,
    num_classes: int,
    in_channels: int,
    width: float,
    image_size: int,
    dropout: float,
    activation: Activation,
    factory: Factory,
) -> nn.Sequential:
    """Conv blocks with pools between them, one linear block of 1024 units, the classifier."""
    check_arguments(
        activation=activation,
        dropout=dropout,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        width=(width, 1 / 128),
        image_size=(image_size, 16),
    )
    layers: dict[str, nn.Module] = {}
    channels, side, index = in_channels, image_size, 0
    for step in plan:
        if step == "M":
            layers[f"pool{index}"] = nn.MaxPool2d(2)
            side //= 2
            continue
        index += 1
        maps = int(step * width)
        layers[f"block{index}"] = stack(
            conv=nn.Conv2d(channels, maps, 3, padding=1, **factory),
            norm=nn.BatchNorm2d(maps, **factory),
            act=activation(),
            dropout=dropout_layer(dropout, maps=True),
        )
        channels = maps
    layers["flatten"] = nn.Flatten()
    layers[f"block{index + 1}"] = stack(
        linear=nn.Linear(channels * side**2, 1024, **factory),
        norm=nn.BatchNorm1d(1024, **factory),
        act=activation(),
        dropout=dropout_layer(dropout),
    )
    return stack(**layers, classifier=nn.Linear(1024, num_classes, **factory))


def vgg9(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    image_size: int = 32,
    dropout: float = 0.1,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """VGG-9 of Wang et al. 2020: six convolutions without BatchNorm and three linear layers.

    3,491,530 parameters for CIFAR-10. All weights start as torch's layers do.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        image_size: Their height and width in pixels, at least 8.
        dropout: Probability in ``[0, 1)`` before the first and the last linear layer; whole maps in
            the middle of the convolutions are dropped with half of it. The paper takes 0.1.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: ``image_size`` is below 8, ``dropout`` outside ``[0, 1)``, or another argument
            below 1.
    """
    check_arguments(
        activation=activation,
        dropout=dropout,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        image_size=(image_size, 8),
    )
    factory = Factory(device=device, dtype=dtype)
    layers: dict[str, nn.Module] = {}
    channels = in_channels
    for index, maps in enumerate((32, 64, 128, 128, 256, 256), start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, maps, 3, padding=1, **factory)
        layers[f"act{index}"] = activation()
        if index % 2 == 0:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        if index == 4:
            layers["dropout4"] = dropout_layer(dropout / 2, maps=True)
        channels = maps
    return stack(
        **layers,
        flatten=nn.Flatten(),
        dropout6=dropout_layer(dropout),
        fc1=nn.Linear(channels * (image_size // 8) ** 2, 512, **factory),
        act7=activation(),
        fc2=nn.Linear(512, 512, **factory),
        act8=activation(),
        dropout8=dropout_layer(dropout),
        classifier=nn.Linear(512, num_classes, **factory),
    )


def vgg_small(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Eight convolutions with BatchNorm, five pools, the global mean and one linear layer.

    2,310,186 parameters for CIFAR-10. Conv and linear weights start ``N(0, 2 / fan_in)``, the
    linear bias at 0.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 32 pixels, to logits ``(N, K)``.

    Raises:
        ValueError: ``num_classes`` or ``in_channels`` is below 1.
    """
    check_arguments(
        activation=activation, num_classes=(num_classes, 1), in_channels=(in_channels, 1)
    )
    factory = Factory(device=device, dtype=dtype)
    features: list[nn.Module] = []
    channels = in_channels
    for step in VGG_SMALL:
        if step == "M":
            features.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, step, 3, padding=1, bias=False, **factory)
        features += [conv, nn.BatchNorm2d(step, **factory), activation()]
        channels = step
    model = stack(
        features=nn.Sequential(*features),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(channels, num_classes, **factory),
    )
    he_normal(model)
    return model
