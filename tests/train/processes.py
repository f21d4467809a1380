"""Training in two processes, for ``test_processes.py``: ``python processes.py FOLDER``.

The two are forked from this process, which trains nothing itself; each writes what it found.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from addis import train

X = torch.randn(29, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(3, (29,), generator=torch.Generator().manual_seed(0))


def net(*, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    model = nn.Sequential(
        nn.Linear(5, 8), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    ).double()
    model.register_buffer("mask", torch.tensor([True, False]))  # a kind that some backends refuse
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loader(size: int = 7) -> DataLoader[Any]:
    """Batches of 7, 7, 7, 7 and 1: odd, and the last leaves one process without a sample."""
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(X, Y), size, shuffle=True, generator=generator)


def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    logits = model(batch[0])
    correct = (logits.argmax(1) == batch[1]).double().mean()
    return {"loss": nn.functional.cross_entropy(logits, batch[1]), "accuracy": correct}


def fit(fabric: Any = None, model: nn.Module | None = None, **more: Any) -> dict[str, Any]:
    """Trains and gives the weights, and each epoch's means and samples."""
    model = model or net()
    arguments = {"epochs": 2, "loader": loader(), "optimizer": sgd(model), **more}
    seen = [
        [epoch.loss, epoch.metrics["accuracy"], float(epoch.samples), float(epoch.step)]
        for epoch in train.epochs(model, step=step, fabric=fabric, **arguments)
    ]
    return {"weights": model.state_dict(), "epochs": seen}


def twice(fabric: Any = None) -> dict[str, Any]:
    """A model that is trained again, as after pruning, by a second call."""
    model = net()
    fit(fabric, model)
    return fit(fabric, model)


def evaluated(fabric: Any = None) -> dict[str, Any]:
    torch.manual_seed(int(fabric.global_rank) if fabric else 0)
    found = train.evaluate(net(norm=True), loader(), fabric=fabric)
    return {"values": [found.loss, found.accuracy, float(found.samples)]}


def resumed(fabric: Any, folder: Path, loader: Callable[[], Any]) -> dict[str, Any]:
    """A run with dropout that leaves in its third epoch and goes on; and one that runs through."""
    folder.mkdir(exist_ok=True)

    def parts() -> dict[str, Any]:
        model = net(norm=True, dropout=0.5)
        torch.manual_seed(fabric.global_rank)  # so that the two draw other masks
        return {"model": model, "optimizer": sgd(model), "epochs": 4, "loader": loader()}

    whole = fit(fabric, **parts())
    for epoch in train.epochs(**parts(), step=step, fabric=fabric, checkpoint=folder / "run.ckpt"):
        if epoch.index == 2:
            break
    again = fit(fabric, **parts(), checkpoint=folder / "run.ckpt")
    return {"whole": whole["weights"], "again": again["weights"], "epochs": again["epochs"]}


def sharded(fabric: Any) -> Any:
    """A loader that Fabric shards: 28 samples, 14 each in batches of 4, 4, 4 and 2."""
    return fabric.setup_dataloaders(DataLoader(TensorDataset(X[:28], Y[:28]), 4, shuffle=True))


def drawn(fabric: Any) -> list[float]:
    """The random number of each step of a seeded run."""
    numbers: list[float] = []

    def drawing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        numbers.append(torch.rand(()).item())
        return train.cross_entropy_step(model, batch)

    model = net()
    list(train.epochs(model, loader(), drawing, sgd(model), epochs=2, seed=3, fabric=fabric))
    return numbers


def error(work: Callable[[], object]) -> str:
    try:
        work()
    except (FloatingPointError, ValueError) as caught:
        return f"{type(caught).__name__}: {caught}"
    return "none"


def spoilt(fabric: Any) -> str:
    """A sample that is not a number, seen by the second process only."""
    x = X.clone()
    x[13] = float("nan")
    batches = list(zip(x.split(7), Y.split(7), strict=True))
    return error(lambda: fit(fabric, loader=batches))


def work(fabric: Any, folder: Path) -> None:
    unordered = DataLoader(TensorDataset(X, Y), 7, shuffle=True)
    found = {
        "rank": fabric.global_rank,
        "world": fabric.world_size,
        "fit": fit(fabric),
        "accumulated": fit(fabric, accumulate=3, clip_norm=0.3),
        "norm": fit(fabric, net(norm=True), loader=loader(8)),
        "twice": twice(fabric),
        "evaluated": evaluated(fabric),
        "resumed": resumed(fabric, folder / "whole", lambda: loader(8)),
        "resumed shards": resumed(fabric, folder / "shards", lambda: sharded(fabric)),
        "sharded": fit(fabric, loader=sharded(fabric)),
        "drawn": drawn(fabric),
        "spoilt": spoilt(fabric),
        "unordered": error(lambda: fit(fabric, loader=unordered)),
    }
    torch.save(found, folder / f"rank{fabric.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = importlib.import_module("lightning_fabric").Fabric(
        accelerator="cpu", devices=2, strategy="ddp_fork"
    )
    fabric.launch(work, Path(sys.argv[1]))
