"""Which backend ``auto`` takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from addis.train import StackedTrainer


def net(channels: int, width: int = 4) -> nn.Module:
    conv = nn.Conv2d(channels, width, 3)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(width, 2))


@pytest.mark.parametrize(
    ("models", "backend"),
    [
        ([net(4)], "loop"),
        ([net(4), net(4)], "grouped"),
        ([net(25), net(25)], "grouped"),
        ([net(26), net(26)], "loop"),
        ([net(3, 200), net(3, 200)], "grouped"),
        ([net(26, 9), net(26, 4)], "grouped"),
        ([nn.Sequential(nn.Conv2d(3, 96, 1), net(96))] * 2, "loop"),
        (
            [nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1, groups=64), net(64))] * 2,
            "grouped",
        ),
        ([nn.Sequential(nn.InstanceNorm2d(3), net(4))] * 2, "loop"),
    ],
)
def test_backend_follows_the_model(models: list[nn.Module], backend: str) -> None:
    assert StackedTrainer(models, lr=0.1).backend == backend


def test_unstacked_models_have_the_memory_format_that_they_came_with() -> None:
    last = net(4).to(memory_format=torch.channels_last)
    for models in ([net(4)] * 2, [net(26)] * 2, [last] * 2):
        trainer = StackedTrainer(models, lr=0.1)
        trainer.step(torch.rand(2, 5, models[0][0].in_channels, 3, 3), torch.zeros(2, 5).long())
        weights = [model[0].weight for model in (models[0], trainer.unstack(1))]
        assert weights[0].stride() == weights[1].stride()


def test_loop_that_auto_takes_equals_the_loop_in_the_models_format() -> None:
    models = [net(26).double(), net(26).double()]
    auto, loop = (StackedTrainer(models, lr=0.1, backend=b) for b in ("auto", "loop"))
    x, y = torch.rand(2, 5, 26, 3, 3, dtype=torch.float64), torch.zeros(2, 5).long()
    assert auto.backend == "loop"
    assert torch.allclose(auto.step(x, y), loop.step(x, y), atol=1e-12)
    assert torch.allclose(auto.outputs(x[0]), loop.outputs(x[0]), atol=1e-12)
