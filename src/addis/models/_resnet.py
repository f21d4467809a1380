"""Residual networks for small images: CIFAR ResNets, wide ResNets, pre-activation ResNet-18.

Papers: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015,
arXiv:1512.03385 (section 4.2); the same, "Identity Mappings in Deep Residual Networks", 2016,
arXiv:1603.05027; S. Zagoruyko, N. Komodakis, "Wide Residual Networks", 2016, arXiv:1605.07146; P.
Nakkiran et al., "Deep Double Descent", 2019, arXiv:1912.02292. Departures: none in the networks;
weights start as each function's text says.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis.models._layers import (
    Activation,
    Device,
    Factory,
    check_arguments,
    dropout_layer,
    he_normal,
    stack,
)

__all__ = [
    "cifar_resnet",
    "preact_resnet18",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "wide_resnet",
]


class PadShortcut(nn.Module):
    """Option A of He et al.: every second pixel, zeros in the new channels; no parameters.

    Args:
        extra: Channels to add, half of them in front and half behind.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C + extra, ceil(H / 2), ceil(W / 2))``."""
        front = self.extra // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, front, self.extra - front))


class BasicBlock(nn.Module):
    """conv-BN-act-conv-BN, plus the shortcut, act (He et al. 2015, fig. 2)."""

    def __init__(
        self, channels: int, width: int, stride: int, activation: Activation, factory: Factory
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stride, factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.act1 = activation()
        self.conv2 = conv3x3(width, width, 1, factory)
        self.bn2 = nn.BatchNorm2d(width, **factory)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(width - channels)
        self.act2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``."""
        h = self.act1(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return self.act2(h + self.shortcut(x))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks with w, 2w, 4w channels, global mean, linear."""

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        in_channels: int,
        width: int,
        activation: Activation,
        factory: Factory,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, 1, factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.act1 = activation()
        self.layer1 = self._stage(blocks, width, width, 1, activation, factory)
        self.layer2 = self._stage(blocks, width, 2 * width, 2, activation, factory)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2, activation, factory)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * width, num_classes, **factory)

    @staticmethod
    def _stage(
        blocks: int, channels: int, width: int, stride: int, activation: Activation, f: Factory
    ) -> nn.Sequential:
        first = BasicBlock(channels, width, stride, activation, f)
        rest = (BasicBlock(width, width, 1, activation, f) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, K)``."""
        h = self.act1(self.bn1(self.conv1(images)))
        h = self.layer3(self.layer2(self.layer1(h)))
        return self.linear(self.flatten(self.pool(h)))  # type: ignore[no-any-return]


def cifar_resnet(
    depth: int = 20,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    width: int = 16,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The ResNet of He et al. 2015 for CIFAR, with parameter-free shortcuts (their option A).

    Conv and linear weights start ``N(0, 2 / fan_in)``, the linear bias at 0, BatchNorm at 1 and 0.

    Args:
        depth: Layers with weights, ``6 n + 2`` for ``n >= 1`` blocks a stage: 8, 14, 20, 26, 32,
            ...
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        width: Channels of the first stage; 16 in the paper. The later stages have two and four
            times as many.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 1 pixel, to logits ``(N, K)``.

    Raises:
        ValueError: ``depth`` is not ``6 n + 2``, or another argument is below 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    check_arguments(
        activation=activation,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        width=(width, 1),
    )
    factory = Factory(device=device, dtype=dtype)
    model = CifarResNet(depth // 6, num_classes, in_channels, width, activation, factory)
    he_normal(model)
    return model


resnet20 = partial(cifar_resnet, 20)
"""ResNet-20, 269,722 parameters for CIFAR-10; takes :func:`cifar_resnet`'s other arguments."""

resnet32 = partial(cifar_resnet, 32)
"""ResNet-32, 464,154 parameters for CIFAR-10; takes :func:`cifar_resnet`'s other arguments."""

resnet44 = partial(cifar_resnet, 44)
"""ResNet-44, 658,586 parameters for CIFAR-10; takes :func:`cifar_resnet`'s other arguments."""

resnet56 = partial(cifar_resnet, 56)
"""ResNet-56, 853,018 parameters for CIFAR-10; takes :func:`cifar_resnet`'s other arguments."""


class PreActBlock(nn.Module):
    """BN-act-conv-BN-act-[dropout]-conv, plus the shortcut (He et al. 2016, fig. 4e).

    The shortcut is the input itself or, where width or stride changes, a 1x1 convolution of the
    activated input.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        activation: Activation,
        factory: Factory,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels, **factory)
        self.act1 = activation()
        self.conv1 = conv3x3(channels, width, stride, factory)
        self.bn2 = nn.BatchNorm2d(width, **factory)
        self.act2 = activation()
        self.dropout = dropout_layer(dropout)
        self.conv2 = conv3x3(width, width, 1, factory)
        self.shortcut = (
            nn.Conv2d(channels, width, 1, stride=stride, bias=False, **factory)
            if stride != 1 or channels != width
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``."""
        h = self.act1(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        h = self.dropout(self.act2(self.bn2(self.conv1(h))))
        return self.conv2(h) + skip  # type: ignore[no-any-return]


def wide_resnet(
    depth: int = 16,
    width: int = 4,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    dropout: float = 0.0,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """The pre-activation wide ResNet WRN-depth-width of Zagoruyko and Komodakis 2016.

    Conv and linear weights start ``N(0, 2 / fan_in)``, the linear bias at 0, BatchNorm at 1 and 0.

    Args:
        depth: Layers with weights, ``6 n + 4`` for ``n >= 1`` blocks a stage: 10, 16, 22, 28, 40,
            ...
        width: Widening factor: the stages have 16, 32 and 64 times ``width`` channels.
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        dropout: Probability in ``[0, 1)``, between the two convolutions of a block.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 1 pixel, to logits ``(N, K)``.

    Raises:
        ValueError: ``depth`` is not ``6 n + 4``, ``dropout`` is outside ``[0, 1)``, or another
            argument is below 1.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, ...), got {depth}")
    check_arguments(
        activation=activation,
        dropout=dropout,
        width=(width, 1),
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
    )
    factory = Factory(device=device, dtype=dtype)
    blocks: list[nn.Module] = []
    channels = 16
    for stage in range(3):
        for block in range(depth // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            out = 16 * width << stage
            blocks.append(PreActBlock(channels, out, stride, activation, factory, dropout))
            channels = out
    model = stack(
        conv1=conv3x3(in_channels, 16, 1, factory),
        blocks=nn.Sequential(*blocks),
        bn=nn.BatchNorm2d(channels, **factory),
        act=activation(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(channels, num_classes, **factory),
    )
    he_normal(model)
    return model


def preact_resnet18(
    k: int = 64,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    final_norm: bool = False,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """The pre-activation ResNet-18 of Nakkiran et al. 2019: stages of k, 2k, 4k, 8k channels.

    The authors' network ends without the BatchNorm and activation of He et al. 2016; so does this
    one unless ``final_norm``. All weights start as torch's layers do, as in the authors' code.

    Args:
        k: Channels of the first stage; 64 is the standard network, the paper sweeps 1 to 64.
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        final_norm: Whether BatchNorm and an activation stand before the global mean.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 1 pixel, to logits ``(N, K)``.

    Raises:
        ValueError: ``k``, ``num_classes`` or ``in_channels`` is below 1.
    """
    check_arguments(
        activation=activation, k=(k, 1), num_classes=(num_classes, 1), in_channels=(in_channels, 1)
    )
    factory = Factory(device=device, dtype=dtype)
    layers: dict[str, nn.Module] = {"conv1": conv3x3(in_channels, k, 1, factory)}
    channels = k
    for stage in range(4):
        width, stride = k << stage, 1 if stage == 0 else 2
        layers[f"layer{stage + 1}"] = nn.Sequential(
            PreActBlock(channels, width, stride, activation, factory),
            PreActBlock(width, width, 1, activation, factory),
        )
        channels = width
    if final_norm:
        layers |= {"bn": nn.BatchNorm2d(channels, **factory), "act": activation()}
    return stack(
        **layers,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(channels, num_classes, **factory),
    )


def conv3x3(channels: int, width: int, stride: int, factory: Factory) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; a norm takes the place of its bias."""
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False, **factory)
