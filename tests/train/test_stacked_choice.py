"""Which backend ``auto`` takes."""

from __future__ import annotations

import pytest
from torch import nn

from addis.train import StackedTrainer


def net(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(channels, 2))


@pytest.mark.parametrize(
    ("models", "backend"),
    [
        ([net(4)], "loop"),
        ([net(4), net(4)], "grouped"),
        ([net(64), net(64)], "grouped"),
        ([net(65), net(65)], "loop"),
        ([net(65), net(4)], "grouped"),
        ([nn.Sequential(nn.InstanceNorm2d(3), net(4))] * 2, "loop"),
    ],
)
def test_backend_follows_the_model(models: list[nn.Module], backend: str) -> None:
    assert StackedTrainer(models, lr=0.1).backend == backend
