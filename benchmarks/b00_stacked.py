"""Stacked training against training the same copies one by one, in images a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from addis.models import cnn5, preact_resnet18
from addis.study import Row, absent, timed
from addis.train import StackedTrainer, seeded

FORMATS = (torch.contiguous_format, torch.channels_last)


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """Five-layer nets of width k on 16x16 images, batch 128; one thread on a CPU.

    Args:
        full: Also wider nets, and more rounds.
        device: Where to train. On a GPU the bar is that of launch-bound nets, 10 times the images.
    """
    cpu = torch.device(device).type == "cpu"
    copies, target = (8, 0.5) if cpu else (16, 0.1)
    repeats = 15 if full else 7
    with _one_thread():
        for k in (1, 2, 4, 8, 16) if full or not cpu else (1, 2, 4, 8):
            bar = target if k <= 4 else None
            yield _row([k] * copies, "grouped", bar, repeats, device)
        yield _row([2] * copies, "vmap", None, repeats, device)
        yield _row([1, 2, 3, 4] * (copies // 4), "grouped", None, repeats, device)
        if cpu:
            yield _kernels("cnn5(4)", partial(cnn5, 4), 8, (128, 3, 16, 16), repeats)
            net = partial(preact_resnet18, 2)
            yield _kernels("preact_resnet18(2)", net, 4, (64, 3, 32, 32), repeats)


def _row(
    widths: Sequence[int], backend: str, target: float | None, repeats: int, device: str
) -> Row:
    models = [seeded(lambda k=k: cnn5(k), [i])[0] for i, k in enumerate(widths)]
    x = torch.rand(len(widths), 128, 3, 16, 16, device=device)
    y = torch.randint(10, (len(widths), 128), device=device)
    trainer = StackedTrainer(models, lr=0.1, backend=backend, device=device)
    loops = [_loop(models, x, y, memory_format) for memory_format in FORMATS]
    ours, *theirs = timed(lambda: trainer.step(x, y), *loops, repeats=repeats, device=device)
    images, best = len(widths) * 128, min(theirs)
    kind = widths[0] if len(set(widths)) == 1 else sorted(set(widths))
    form = "channels_last" if theirs[1] < theirs[0] else "NCHW"
    return Row(
        work=f"train {len(widths)} cnn5 of width {kind} side by side, {backend}",
        peer=f"torch, one by one in {form}", version=torch.__version__, unit="images/s",
        addis=images / ours, peer_value=images / best, ratio=ours / best, target=target,
        note=f"batch 128, 16x16, {'one thread' if device == 'cpu' else device}, kernels of "
        f"{'addis' if trainer.native else 'PyTorch'}",
    )  # fmt: skip


def _kernels(
    name: str, net: Callable[[], nn.Module], copies: int, shape: Sequence[int], repeats: int
) -> Row:
    """The kernels of addis against PyTorch's grouped ones."""
    x, y = torch.rand(copies, *shape), torch.randint(10, (copies, shape[0]))
    ours, theirs = (
        StackedTrainer(net, seeds=range(copies), lr=0.1, backend="grouped", native=native)
        for native in (True, False)
    )
    work = f"train {copies} {name} side by side, grouped"
    if not ours.native:
        return absent(work, "torch, grouped", "there is no C compiler", unit="images/s")
    times = timed(lambda: ours.step(x, y), lambda: theirs.step(x, y), repeats=repeats)
    images = copies * shape[0]
    return Row(
        work=work, peer="torch, grouped", version=torch.__version__, unit="images/s",
        addis=images / times[0], peer_value=images / times[1], ratio=times[0] / times[1],
        target=None, note=f"batch {shape[0]}, {shape[2]}x{shape[3]}, one thread",
    )  # fmt: skip


def _loop(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, memory_format: torch.memory_format
) -> Callable[[], None]:
    """A step of each model by itself, everything in ``memory_format``."""
    nets = [copy.deepcopy(model).train() for model in models]
    nets = [net.to(device=x.device, memory_format=memory_format) for net in nets]
    optimizers = [optim.SGD(net.parameters(), lr=0.1) for net in nets]
    batches = [batch.contiguous(memory_format=memory_format) for batch in x]

    def step() -> None:
        for net, optimizer, inputs, targets in zip(nets, optimizers, batches, y, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()

    return step


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for row in rows():
        print(row)
