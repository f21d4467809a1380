"""Networks without shortcuts: the MLP, 3C3D, conv-4, LeNet and the CNN of any width.

Each is an ``nn.Sequential`` whose layers have names (``model.block2.conv``), so that a tracer, a
hook or a user can address them. Papers: conv-4, C. Finn et al., "Model-Agnostic Meta-Learning",
2017, arXiv:1703.03400; LeNet, Y. LeCun et al., "Gradient-Based Learning Applied to Document
Recognition", 1998, in the sizes of Caffe's example; 3C3D, F. Schneider et al., "DeepOBS", 2019,
arXiv:1903.05499; cnn5, P. Nakkiran et al., "Deep Double Descent", 2019, arXiv:1912.02292.
Departures: conv-4 normalises with running statistics when it evaluates, as BatchNorm does by
default (the paper takes the batch's at all times); LeNet has an activation after each convolution,
which Caffe's leaves out; 3C3D pads its pools on both sides, where DeepOBS, as TensorFlow, pads only
below and on the right.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from addis.models._layers import (
    Activation,
    Device,
    Factory,
    check_arguments,
    dropout_layer,
    stack,
    xavier,
)

__all__ = ["cnn5", "conv4", "lenet", "mlp", "net_3c3d"]


def mlp(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    image_size: int = 28,
    width: int = 1024,
    depth: int = 3,
    batch_norm: bool = True,
    dropout: float = 0.0,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """A multilayer perceptron: ``depth`` blocks of linear-[BN]-activation-[dropout], then linear.

    All weights start as torch's layers do.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        image_size: Their height and width in pixels; 1 for a table of ``in_channels`` columns.
        width: Units of each hidden layer.
        depth: Hidden layers; with 0 the network is linear.
        batch_norm: Whether each hidden layer has BatchNorm before its activation.
        dropout: Probability in ``[0, 1)`` after each hidden layer.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: ``dropout`` is outside ``[0, 1)``, ``depth`` is negative, or another argument is
            below 1.
    """
    check_arguments(
        activation=activation,
        dropout=dropout,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        image_size=(image_size, 1),
        width=(width, 1),
        depth=(depth, 0),
    )
    factory = Factory(device=device, dtype=dtype)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = in_channels * image_size**2
    for index in range(1, depth + 1):
        block: dict[str, nn.Module] = {"linear": nn.Linear(features, width, **factory)}
        if batch_norm:
            block["norm"] = nn.BatchNorm1d(width, **factory)
        layers[f"block{index}"] = stack(**block, act=activation(), dropout=dropout_layer(dropout))
        features = width
    return stack(**layers, classifier=nn.Linear(features, num_classes, **factory))


def lenet(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    image_size: int = 28,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """LeNet: two 5x5 convolutions, each with a pool, then 500 units and the classes.

    431,080 parameters for 10 classes and 28x28 grey images. All weights start as torch's layers do.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        image_size: Their height and width in pixels, at least 16.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: ``image_size`` is below 16, or another argument below 1.
    """
    check_arguments(
        activation=activation,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        image_size=(image_size, 16),
    )
    factory = Factory(device=device, dtype=dtype)
    side = ((image_size - 4) // 2 - 4) // 2
    return stack(
        conv1=nn.Conv2d(in_channels, 20, 5, **factory),
        act1=activation(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5, **factory),
        act2=activation(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(50 * side**2, 500, **factory),
        act3=activation(),
        classifier=nn.Linear(500, num_classes, **factory),
    )


def net_3c3d(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    image_size: int = 32,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """3C3D of DeepOBS: three convolutions, each with a 3x3 pool, and three linear layers.

    895,210 parameters for CIFAR-10. Conv weights start Glorot normal, linear weights Glorot
    uniform, biases at 0.

    Args:
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        image_size: Their height and width in pixels, at least 9.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: ``image_size`` is below 9, or another argument below 1.
    """
    check_arguments(
        activation=activation,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        image_size=(image_size, 9),
    )
    factory = Factory(device=device, dtype=dtype)
    pool = partial(nn.MaxPool2d, 3, stride=2, padding=1)  # halves, rounding up
    side = (((image_size - 3) // 2 - 1) // 2 + 1) // 2
    model = stack(
        conv1=nn.Conv2d(in_channels, 64, 5, **factory),
        act1=activation(),
        pool1=pool(),
        conv2=nn.Conv2d(64, 96, 3, **factory),
        act2=activation(),
        pool2=pool(),
        conv3=nn.Conv2d(96, 128, 3, padding=1, **factory),
        act3=activation(),
        pool3=pool(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(128 * side**2, 512, **factory),
        act4=activation(),
        fc2=nn.Linear(512, 256, **factory),
        act5=activation(),
        classifier=nn.Linear(256, num_classes, **factory),
    )
    xavier(model, conv=nn.init.xavier_normal_)
    return model


def conv4(
    num_classes: int = 5,
    in_channels: int = 1,
    *,
    image_size: int = 28,
    width: int = 64,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """conv-4 of few-shot learning: four blocks of conv3x3-BN-activation-pool and a linear head.

    112,261 parameters for 5 classes and 28x28 grey images. Weights start Glorot uniform, biases at
    0.

    Args:
        num_classes: Classes ``K``, the "ways" of an episode.
        in_channels: Channels ``C`` of the images.
        image_size: Their height and width in pixels, at least 16; Omniglot has 28, miniImageNet 84.
        width: Channels of each block; 64 for Omniglot, 32 for miniImageNet.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, image_size, image_size)`` to logits ``(N, K)``.

    Raises:
        ValueError: ``image_size`` is below 16, or another argument below 1.
    """
    check_arguments(
        activation=activation,
        num_classes=(num_classes, 1),
        in_channels=(in_channels, 1),
        image_size=(image_size, 16),
        width=(width, 1),
    )
    factory = Factory(device=device, dtype=dtype)
    blocks = {
        f"block{index}": stack(
            conv=nn.Conv2d(in_channels if index == 1 else width, width, 3, padding=1, **factory),
            norm=nn.BatchNorm2d(width, **factory),
            act=activation(),
            pool=nn.MaxPool2d(2),
        )
        for index in range(1, 5)
    }
    features = width * (image_size // 16) ** 2
    classifier = nn.Linear(features, num_classes, **factory)
    model = stack(**blocks, flatten=nn.Flatten(), classifier=classifier)
    xavier(model, conv=nn.init.xavier_uniform_)
    return model


def cnn5(
    k: int = 64,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    activation: Activation = nn.ReLU,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """The 5-layer CNN of Nakkiran et al. 2019: conv-BN-activation of k, 2k, 4k, 8k channels.

    Max-pools of 2 follow the second and the third block and the maximum over all pixels the fourth
    (on 32x32 images the paper's pool of 8). Parameters: ``9 (C k + 42 k^2) + 45 k + 8 k K + K``,
    1,558,026 for ``k=64`` on CIFAR-10. All weights start as torch's layers do, as in the authors'
    code.

    Args:
        k: Channels of the first layer; the paper sweeps 1 to 64.
        num_classes: Classes ``K``.
        in_channels: Channels ``C`` of the images.
        activation: Factory of the activations.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Returns:
        A network from ``(N, C, H, W)``, any size from 4 pixels, to logits ``(N, K)``.

    Raises:
        ValueError: ``k``, ``num_classes`` or ``in_channels`` is below 1.
    """
    check_arguments(
        activation=activation, k=(k, 1), num_classes=(num_classes, 1), in_channels=(in_channels, 1)
    )
    factory = Factory(device=device, dtype=dtype)
    layers: dict[str, nn.Module] = {}
    channels = in_channels
    pools = (None, nn.MaxPool2d(2), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1))
    for index, pool in enumerate(pools, start=1):
        width = k << (index - 1)
        layers[f"block{index}"] = stack(
            conv=nn.Conv2d(channels, width, 3, padding=1, **factory),
            norm=nn.BatchNorm2d(width, **factory),
            act=activation(),
        )
        if pool is not None:
            layers[f"pool{index}"] = pool
        channels = width
    classifier = nn.Linear(channels, num_classes, **factory)
    return stack(**layers, flatten=nn.Flatten(), classifier=classifier)
