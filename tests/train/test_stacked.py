"""StackedTrainer against E separate training loops of plain torch."""

from __future__ import annotations

from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from addis.train import StackedTrainer, seeded

Backend = Literal["grouped", "vmap", "loop"]
BACKENDS: tuple[Backend, ...] = ("grouped", "vmap", "loop")
SEEDS = (3, 1, 4, 15)
LRS = (0.02, 0.01, 0.01, 0.05)


def cnn(k: int = 2, *, dropout: float = 0.0, bias: bool = False) -> nn.Sequential:
    """Two blocks of the five-layer net, then a linear layer: 3 channels, 8x8, 5 classes."""
    return nn.Sequential(
        nn.Conv2d(3, k, 3, padding=1, bias=bias), nn.BatchNorm2d(k), nn.ReLU(),
        nn.Conv2d(k, 2 * k, 3, padding=1, bias=bias), nn.BatchNorm2d(2 * k), nn.ReLU(),
        nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * k, 5),
    )  # fmt: skip


def batches(steps: int, copies: int = 4, n: int = 8, dtype: torch.dtype = torch.float32) -> tuple:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(steps, copies, n, 3, 8, 8, generator=g, dtype=dtype)
    return x, torch.randint(5, (steps, copies, n), generator=g)


def looped(
    model: nn.Module, x: Tensor, y: Tensor, optimizer: optim.Optimizer, seed: int = 0
) -> list[float]:
    """The ordinary loop over batches ``x (T, N, ...)``; returns the losses."""
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.train()
        for inputs, targets in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def apart(a: nn.Module, b: nn.Module) -> float:
    """Largest difference between two state dictionaries."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours)


def same(a: nn.Module, b: nn.Module) -> bool:
    return apart(a, b) == 0


OPTIMIZERS = {
    "sgd": optim.SGD,
    "momentum": partial(optim.SGD, momentum=0.9, weight_decay=1e-2),
    "nesterov": partial(optim.SGD, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, weight_decay=1e-2),
    "adamw": partial(optim.AdamW, weight_decay=0.1, betas=(0.8, 0.95)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_copy_is_an_ordinary_training_loop_bit_for_bit(name: str) -> None:
    x, y = batches(20, copies=1)
    (model,) = seeded(partial(cnn, dropout=0.3, bias=True), [7])
    trainer = StackedTrainer([model], seeds=[7], optimizer=OPTIMIZERS[name], lr=0.05)
    losses = [float(trainer.step(*batch)[0]) for batch in zip(x, y, strict=True)]
    plain = looped(model, x[:, 0], y[:, 0], OPTIMIZERS[name](model.parameters(), lr=0.05), 7)
    assert losses == plain
    assert same(trainer.unstack(0), model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_four_copies_equal_four_loops_to_rounding(backend: Backend, name: str) -> None:
    x, y = batches(50, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    trainer = StackedTrainer(models, optimizer=OPTIMIZERS[name], lr=LRS, backend=backend)
    losses = torch.stack([trainer.step(*batch) for batch in zip(x, y, strict=True)])
    for i, model in enumerate(models):
        plain = looped(model, x[:, i], y[:, i], OPTIMIZERS[name](model.parameters(), lr=LRS[i]))
        assert losses[:, i].tolist() == pytest.approx(plain, abs=1e-9)
        assert apart(trainer.unstack(i), model) < 1e-9


def test_four_float32_copies_equal_four_loops_after_fifty_steps() -> None:
    x, y = batches(50)
    models = seeded(cnn, SEEDS)
    trainer = StackedTrainer(models, lr=LRS)
    for batch in zip(x, y, strict=True):
        trainer.step(*batch)
    assert trainer.backend == "grouped"
    for i, model in enumerate(models):
        looped(model, x[:, i], y[:, i], optim.SGD(model.parameters(), lr=LRS[i]))
        assert apart(trainer.unstack(i), model) < 1e-5
