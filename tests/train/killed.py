"""Runs that are killed at chosen moments and started again, each in a process of its own.

``python killed.py FOLDER`` writes ``FOLDER/results.pt``. The processes are forked, so that torch is
imported once; this one trains nothing itself.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from addis import train


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, moment: str | None, name: str) -> None:
    """Trains 4 epochs of 6 batches with masks in between, and is killed at ``moment``."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, train.schedules.cosine(24))
    x, y = torch.randn(24, 5), torch.randint(3, (24,))
    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=torch.Generator())
    calls = 0

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if (moment, calls) in {("in the first epoch", 3), ("in a later epoch", 15)}:
            die()
        return train.cross_entropy_step(model, batch)

    seen = []
    for epoch in train.epochs(
        model,
        loader,
        step,
        optimizer,
        epochs=4,
        scheduler=scheduler,
        checkpoint=folder / "run.ckpt",
    ):
        seen.append(epoch.index)
        with torch.no_grad():
            model[0].weight.mul_(torch.rand(8, 5) < 0.9)
        if epoch.index == 1 and moment is not None:
            if moment == "in the caller's code":
                die()
            arm(moment)
    torch.save({"rest": seen, "weights": model.state_dict()}, folder / name)


def arm(moment: str) -> None:
    """Makes the next writing of a checkpoint deadly."""
    save, replace = torch.save, Path.replace

    def half(content: object, file: Any) -> None:
        save(content, file)
        file.truncate(file.tell() // 2)
        file.flush()
        die()

    if moment == "half-way through a write":
        torch.save = half
    elif moment == "before the renaming":
        Path.replace = lambda self, to: die()  # type: ignore[assignment, method-assign, return-value]
    elif moment == "after the renaming":
        Path.replace = lambda self, to: (replace(self, to), die())  # type: ignore


def status_of(work: Callable[..., None], *arguments: object) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


MOMENTS = (
    "in the first epoch", "in a later epoch", "in the caller's code", "half-way through a write",
    "before the renaming", "after the renaming",
)  # fmt: skip

if __name__ == "__main__":
    out = Path(sys.argv[1])
    fabric_was_loaded = "lightning_fabric" in sys.modules
    importlib.import_module("lightning_fabric")  # once, before the forks
    assert status_of(run, out, None, "whole.pt") == 0
    results: dict[str, Any] = {"fabric was loaded": fabric_was_loaded}
    results |= {"whole": torch.load(out / "whole.pt", weights_only=True)}
    for moment in MOMENTS:
        folder = out / moment.replace(" ", "-")
        folder.mkdir()
        status = status_of(run, folder, moment, "never.pt")
        assert status_of(run, folder, None, "rest.pt") == 0
        results[moment] = {"status": status, **torch.load(folder / "rest.pt", weights_only=True)}
    torch.save(results, out / "results.pt")
    linear = nn.Linear(2, 1)
    unfinished = train.epochs(  # must not complain when the interpreter ends
        linear, [torch.ones(1, 2)], lambda model, x: model(x).mean(),
        torch.optim.SGD(linear.parameters(), lr=0.1), epochs=2,
    )  # fmt: skip
    next(unfinished)
