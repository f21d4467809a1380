"""The loop, its checkpoints and the evaluation on another device give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis import train
from addis.train import Evaluation
from tests.conftest import ELSEWHERE

Batch = tuple[Tensor, Tensor]


def net(device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )
    return model.double().to(device)


def batches() -> list[Batch]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(5, 8, 6, generator=source, dtype=torch.float64)
    return list(zip(x, torch.randint(3, (5, 8), generator=source), strict=True))


def step(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def fit(device: str, epochs: int, checkpoint: Path | None = None) -> tuple[nn.Module, Evaluation]:
    model = net(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in train.epochs(
        model, batches(), step, optimizer, epochs=epochs, seed=3, clip_norm=1.0, accumulate=2,
        checkpoint=checkpoint,
    ):  # fmt: skip
        pass
    return model, train.evaluate(model, batches())


def test_training_and_evaluation_are_those_of_the_cpu(device: str) -> None:
    (here, seen), (there, seen_there) = fit("cpu", 3), fit(device, 3)
    assert next(there.parameters()).device.type == device
    assert seen_there.samples == seen.samples
    if device == ELSEWHERE:  # a GPU draws other masks
        assert seen_there.loss == seen.loss
        for a, b in zip(here.parameters(), there.parameters(), strict=True):
            assert torch.equal(a, b.cpu())


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
def test_a_run_on_a_device_resumes_to_the_same_bits(device: str, tmp_path: Path) -> None:
    whole, _ = fit(device, 4)
    fit(device, 2, tmp_path / "run.pt")
    resumed, _ = fit(device, 4, tmp_path / "run.pt")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
