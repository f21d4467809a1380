"""Networks of the pretrained zoo that are torchvision's, with the stem that 32x32 images need.

Papers: K. He et al., "Deep Residual Learning", 2015, arXiv:1512.03385; G. Huang et al., "Densely
Connected Convolutional Networks", 2016, arXiv:1608.06993; F. Iandola et al., "SqueezeNet", 2016,
arXiv:1602.07360. Departures: ResNet-18 and DenseNet start with a 3x3 convolution of stride 1 and no
pool. Weights start as torchvision's.
"""

from __future__ import annotations

import torch
from torch import nn

from addis.models._layers import Device, Factory, check_arguments
from addis.models._resnet import conv3x3

__all__ = ["densenet_bc", "resnet18", "squeezenet1_0"]


def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """ResNet-18 of torchvision for small images: a 3x3 stem of stride 1 and no first pool.

    11,173,962 parameters for CIFAR-10.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 1 pixel, to logits ``(N, K)``.

    Raises:
        ValueError: ``num_classes`` or ``in_channels`` is below 1.
    """
    from torchvision import models

    check_arguments(num_classes=(num_classes, 1), in_channels=(in_channels, 1))
    model: nn.Module = models.resnet18(num_classes=num_classes)
    model.conv1 = conv3x3(in_channels, 64, 1, Factory(device=None, dtype=None))
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return _moved(model, device, dtype)


def densenet_bc(
    depth: int = 52,
    growth_rate: int = 12,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    dropout: float = 0.0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """DenseNet-BC of torchvision for small images: three dense blocks after a 3x3 stem.

    264,634 parameters for depth 52, growth 12 and CIFAR-10.

    Args:
        depth: Layers with weights, ``6 n + 4`` for ``n >= 1`` dense layers a block: 10, 16, ...,
            52, 100.
        growth_rate: Channels that each dense layer adds; the stem has twice as many.
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        dropout: Probability in ``[0, 1)`` at the end of each dense layer.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 4 pixels, to logits ``(N, K)``.

    Raises:
        ValueError: ``depth`` is not ``6 n + 4``, ``dropout`` outside ``[0, 1)``, or another
            argument below 1.
    """
    from torchvision import models

    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, ...), got {depth}")
    check_arguments(
        dropout=dropout,
        growth_rate=(growth_rate, 1),
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
    )
    model = models.DenseNet(
        growth_rate=growth_rate,
        block_config=(depth // 6,) * 3,
        num_init_features=2 * growth_rate,
        bn_size=4,
        drop_rate=dropout,
        num_classes=num_classes,
    )
    model.features.conv0 = conv3x3(
        in_channels, 2 * growth_rate, 1, Factory(device=None, dtype=None)
    )
    nn.init.kaiming_normal_(model.features.conv0.weight)
    model.features.pool0 = nn.Identity()
    return _moved(model, device, dtype)


def squeezenet1_0(
    num_classes: int = 1000,
    *,
    dropout: float = 0.5,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """SqueezeNet 1.0 of torchvision: eight fire modules and a convolution to the classes.

    1,248,424 parameters for ImageNet.

    Args:
        num_classes: Classes ``K``.
        dropout: Probability in ``[0, 1)`` before the last convolution.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, 3, H, W)``, any size from 21 pixels, to logits ``(N, K)``.

    Raises:
        ValueError: ``num_classes`` is below 1, or ``dropout`` outside ``[0, 1)``.
    """
    from torchvision import models

    check_arguments(dropout=dropout, num_classes=(num_classes, 1))
    model = models.squeezenet1_0(num_classes=num_classes, dropout=dropout)
    return _moved(model, device, dtype)


def _moved(model: nn.Module, device: Device, dtype: torch.dtype | None) -> nn.Module:
    return model.to(device=device, dtype=dtype)
