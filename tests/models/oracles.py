"""The networks once more, each as a line of text that a small interpreter runs in float64.

A line names the operations in order; those with parameters take the next entries of the state dict.
So an oracle shares with the library only the order of the parameters, not a single line of code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV, POOLED, PLAIN = "conv1 bn relu ", "conv1 bn relu max2 ", "conv1 relu conv1 relu max2 "
NETWORKS = {
    "mlp": "flat lin bn relu  lin bn relu  lin bn relu  lin",
    "lenet": "conv0 relu max2  conv0 relu max2  flat lin relu  lin",
    "conv4": POOLED * 4 + "flat lin",
    "net_3c3d": "conv0 relu max321  conv0 relu max321  conv1 relu max321 "
    "flat lin relu lin relu lin",
    "cnn5": "conv1 bn relu  conv1 bn relu max2  conv1 bn relu max2  conv1 bn relu max8  flat lin",
    "vgg8b": CONV + POOLED + CONV + 3 * POOLED + "flat lin bn relu  lin",
    "vgg11b": CONV * 3 + POOLED + CONV + POOLED + CONV + 2 * POOLED + "flat lin bn relu  lin",
    "vgg9": PLAIN * 3 + "flat lin relu lin relu lin",
    "vgg_small": POOLED * 2 + (CONV + POOLED) * 3 + "flat lin",
}


def run(line: str, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The network of ``line`` with the parameters of ``state``, in evaluation mode."""
    parameters = iter(v for k, v in state.items() if not k.endswith("num_batches_tracked"))
    biased = {name.removesuffix(".bias") for name in state if name.endswith(".bias")}
    convs = iter(n.removesuffix(".weight") for n, v in state.items() if v.dim() == 4)
    x = images
    for operation in line.split():
        kind = operation.rstrip("0123456789")
        digits = [int(digit) for digit in operation[len(kind) :]]
        if kind == "conv":
            weight, bias = next(parameters), None
            if next(convs) in biased:
                bias = next(parameters)
            x = F.conv2d(x, weight, bias, padding=digits[0])
        elif kind == "lin":
            x = x @ next(parameters).T + next(parameters)
        elif kind == "bn":
            x = normalise(x, parameters)
        elif kind == "relu":
            x = x.clamp(min=0)
        elif kind == "max":
            window, stride, padding = digits if len(digits) == 3 else (digits[0], digits[0], 0)
            x = F.max_pool2d(x, window, stride, padding)
        elif kind == "flat":
            x = x.reshape(len(x), -1)
        else:
            raise ValueError(operation)
    assert next(parameters, None) is None
    return x


def normalise(x: Tensor, parameters: Iterator[Tensor]) -> Tensor:
    """BatchNorm with running statistics: the next four are weight, bias, mean, variance."""
    weight, bias, mean, variance = (
        next(parameters).reshape(-1, *[1] * (x.dim() - 2)) for _ in range(4)
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def preactivation(
    state: Mapping[str, Tensor], images: Tensor, blocks: list[str], head: str, norm: str | None
) -> Tensor:
    """A pre-activation ResNet; a block strides by 2 where its name is marked with ``*``.

    He et al. 2016: ``x + conv2 relu bn2 conv1 relu bn1 x``, the projection on the activated input.
    """

    def bn(name: str, x: Tensor) -> Tensor:
        order = ("weight", "bias", "running_mean", "running_var")
        return normalise(x, iter([state[f"{name}.{part}"] for part in order]))

    x = F.conv2d(images, state["conv1.weight"], padding=1)
    for mark in blocks:
        block, stride = mark.rstrip("*"), 2 if mark.endswith("*") else 1
        h = bn(f"{block}.bn1", x).clamp(min=0)
        projection = state.get(f"{block}.shortcut.weight")
        skip = x if projection is None else F.conv2d(h, projection, stride=stride)
        h = F.conv2d(h, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        h = F.conv2d(bn(f"{block}.bn2", h).clamp(min=0), state[f"{block}.conv2.weight"], padding=1)
        x = skip + h
    if norm is not None:
        x = bn(norm, x).clamp(min=0)
    return x.mean((2, 3)) @ state[f"{head}.weight"].T + state[f"{head}.bias"]


def cifar_resnet(state: Mapping[str, Tensor], images: Tensor, n: int) -> Tensor:
    """He et al. 2015: ``relu(shortcut(x) + bn2 conv2 relu bn1 conv1 x)``, shortcuts of option A."""

    def conv_bn(prefix: str, index: int, x: Tensor, stride: int) -> Tensor:
        order = ("weight", "bias", "running_mean", "running_var")
        x = F.conv2d(x, state[f"{prefix}conv{index}.weight"], stride=stride, padding=1)
        return normalise(x, iter([state[f"{prefix}bn{index}.{part}"] for part in order]))

    x = conv_bn("", 1, images, 1).clamp(min=0)
    for layer in (1, 2, 3):
        for block in range(n):
            prefix, stride = f"layer{layer}.{block}.", 2 if layer > 1 and block == 0 else 1
            h = conv_bn(prefix, 1, x, stride).clamp(min=0)
            h = conv_bn(prefix, 2, h, 1)
            skip = torch.zeros_like(h)
            edge = (h.shape[1] - x.shape[1]) // 2
            skip[:, edge : edge + x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (h + skip).clamp(min=0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def unsettle(model: nn.Module, generator: torch.Generator) -> None:
    """Gives BatchNorm statistics and weights other than 0 and 1, so that a swap shows."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for values, low in (
                (layer.weight, 0.5),
                (layer.bias, -0.5),
                (layer.running_mean, -0.5),
                (layer.running_var, 0.5),
            ):
                assert values is not None
                values.data.uniform_(low, low + 1, generator=generator)
