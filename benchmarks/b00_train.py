"""What the training loop costs above one written by hand: ResNet-20 on batches of 32x32 images.

Both loops run in one process, an epoch of one after an epoch of the other. On a CPU the time is the
process's own, which other programs on the machine do not lengthen; and glibc, which hands freed
memory back to the system and faults it in again (thousands of pages a step, by chance more in one
of the two), is told to keep it, for both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from addis import models, train
from addis.data import Batches
from addis.study import Row, timed

TARGET = 1.02


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """Times epochs of ResNet-20, and the bare cost of a step on a model that does next to nothing.

    Args:
        full: Longer epochs, and more of them.
        device: Torch device.
    """
    size, steps, repeats = (128, 12, 41) if full else (128, 3, 31)  # short turns: less noise
    train.keep_freed_memory()
    yield _resnet_row(size, steps, repeats, device)
    yield _bare_row(device)
    yield _setup_row(device)


def _resnet_row(size: int, steps: int, repeats: int, device: str) -> Row:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size * steps, 3, 32, 32, generator=generator)
    targets = torch.randint(10, (size * steps,), generator=generator)
    build = partial(models.create, "resnet20", num_classes=10)
    ours, theirs = _pair(build, Batches((images, targets), size, device=device), device)
    a, b = (1e3 * seconds / steps for seconds in _medians(ours, theirs, repeats, device))
    return _row(
        f"step of ResNet-20, batch {size}", "ms", a, b, TARGET,
        f"median of {repeats} epochs of {steps} steps in turn, what an epoch costs included",
    )  # fmt: skip


def _bare_row(device: str) -> Row:
    """Microseconds that the loop adds to a step, from a model whose own step is about as short."""
    steps = 500
    batches = [(torch.rand(2, 4, device=device), torch.zeros(2, dtype=torch.long, device=device))]
    ours, theirs = _pair(partial(nn.Linear, 4, 2), batches * steps, device)
    a, b = (1e6 * seconds / steps for seconds in _medians(ours, theirs, 5, device))
    note = f"the loop adds {a - b:.0f} us a step, about half of it Fabric's wrappers"
    return _row("step of a linear model of 4 features, batch 2", "us", a, b, None, note)


def _setup_row(device: str) -> Row:
    """Milliseconds that a call of ``epochs`` takes before the first step, once a run."""
    model = models.create("resnet20", num_classes=10).to(device)
    batch = (
        torch.rand(1, 3, 32, 32, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def by_addis() -> None:
        list(train.epochs(model, [batch], train.cross_entropy_step, optimizer, epochs=1))

    def by_hand() -> None:
        optimizer.zero_grad()
        train.cross_entropy_step(model.train(), batch).backward()
        optimizer.step()

    a, b = (1e3 * seconds for seconds in _medians(by_addis, by_hand, 31, device))
    note = f"setting a run up takes {a - b:.1f} ms, once"
    return _row("a whole run of one step of ResNet-20, batch 1", "ms", a, b, None, note)


def _row(work: str, unit: str, ours: float, theirs: float, target: float | None, note: str) -> Row:
    return Row(
        work=work, peer="hand-written loop", version=f"torch {torch.__version__}", unit=unit,
        addis=ours, peer_value=theirs, ratio=ours / theirs, target=target, note=note,
    )  # fmt: skip


def _medians(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, device: str
) -> list[float]:
    """Median seconds of both, in turn: of the process on a CPU, of the clock elsewhere."""
    if device != "cpu":
        return timed(ours, theirs, repeats=repeats, device=device)
    seconds: list[list[float]] = [[], []]
    for turn in range(1 + repeats):
        for work, taken in zip((ours, theirs), seconds, strict=True):
            start = time.process_time()
            work()
            if turn:
                taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in seconds]


def _pair(
    build: Callable[[], nn.Module], batches: Batches | list[tuple[Tensor, Tensor]], device: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """An epoch by our loop and one by hand, each on a model of its own."""
    ours, theirs = (build().to(device).train() for _ in range(2))
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) for model in (ours, theirs)
    ]

    run = train.epochs(ours, batches, train.cross_entropy_step, optimizers[0], epochs=10**6)

    def by_hand() -> None:
        total, samples = torch.zeros((), device=device), 0
        for x, y in batches:
            optimizers[1].zero_grad()
            loss = nn.functional.cross_entropy(theirs(x), y)
            loss.backward()
            optimizers[1].step()
            total += loss.detach() * len(y)
            samples += len(y)
        (total / samples).item()

    return lambda: next(run), by_hand
