"""Small networks for the tests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from addis.train.local import LocalModel


def conv_net(
    *, dropout: float = 0.0, norm: bool = True, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Two convolution blocks, a dense block, an output layer, for 3x8x8 images and 4 classes."""
    layers: list[tuple[str, nn.Module]] = []
    for i, (a, b) in enumerate([(3, 8), (8, 12)]):
        layers.append((f"conv{i}", nn.Conv2d(a, b, 3, padding=1)))
        if norm:
            layers.append((f"norm{i}", nn.BatchNorm2d(b)))
        layers += [
            (f"act{i}", activation()),
            (f"drop{i}", nn.Dropout2d(dropout)),
            (f"pool{i}", nn.MaxPool2d(2)),
        ]
    layers += [("flat", nn.Flatten()), ("dense", nn.Linear(48, 16))]
    if norm:
        layers.append(("norm2", nn.BatchNorm1d(16)))
    layers += [("act2", activation()), ("drop2", nn.Dropout(dropout)), ("out", nn.Linear(16, 4))]
    return nn.Sequential(OrderedDict(layers))


def batch(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules have the same state, bit for bit."""
    if isinstance(a, LocalModel) and isinstance(b, LocalModel):
        a.synchronize()
        b.synchronize()
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())
