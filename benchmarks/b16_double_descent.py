"""Study 16: one decomposition against a fit for each setting, and copies of a net side by side."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import sklearn
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from addis import models
from addis.analyze import random_features, rf_curve
from addis.analyze._data import nested_sample, stream
from addis.analyze._label_noise import noisy_labels
from addis.studies._p16_trials import Source, images
from addis.studies.p16_double_descent import STUDY
from addis.study import Row, Task, absent, executor, timed, timed_row
from addis.train import StackedTrainer

TORCH = importlib.metadata.version("torch")
RIDGES = tuple(float(ridge) for ridge in np.logspace(-6, 0, 10))
STEPS = tuple(int(step) for step in np.unique(np.logspace(0, 6, 20).astype(int)))
NOISES = (0.0, 0.1, 0.2)
N = 300


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """All rows of the spec; ``full`` takes more widths and a longer naive loop."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        widths = (100, 300, 1000, 4000) if full else (100, 300, 1000)
        for p in widths:
            yield _grid(p)
        yield _ridges(1000)
        yield _tiny()
        for k in (1, 2, 4) if device == "cpu" else (1, 4, 16):
            yield _stacked(k, device)
        yield _stacked(4, device, channels=1)
        if device == "cpu":
            yield absent(
                "stacked training of 8 copies, cnn5", "one by one", "needs a GPU",
                unit="s an image", target=0.1,
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = images(Source("digits", 8, 1078))
    return *source.pool, *source.test


def _naive(p: int) -> None:
    """One least-squares solve for each ridge, step count and noise, as a loop would do it.

    The ridge enters as p more rows. A solve stands for each step count, which flatters the loop: it
    would have to descend step by step.
    """
    x, y, x_test, y_test = _data()
    sample = nested_sample(len(x), N, 0)
    layer = random_features(x, p, generator=stream(0, "features 0"))
    phi, probe = layer(x[sample]), layer(x_test)
    for noise in NOISES:
        labels = noisy_labels(y, noise, num_classes=10, seed=0)[sample]
        targets = torch.nn.functional.one_hot(labels, 10).double() - 0.1
        for ridge in RIDGES:
            extra = torch.eye(p, dtype=torch.float64) * (ridge * N) ** 0.5
            design = torch.cat([phi, extra]) if p <= N else phi
            right = torch.cat([targets, torch.zeros(p, 10)]) if p <= N else targets
            for _ in STEPS:
                fit = torch.linalg.lstsq(design, right, rcond=1e-10, driver="gelsd").solution
                _ = ((probe @ fit).argmax(1) != y_test).double().mean()


def _ours(p: int) -> None:
    rf_curve(*_data(), p=(p,), n=(N,), ridge=RIDGES, steps=STEPS, noise=NOISES, seeds=(0,))


def _grid(p: int) -> Row:
    _ours(p)  # warm, as the peer's single run outlasts any start-up
    return timed_row(
        f"10 ridges x {len(STEPS)} epochs x 3 noises, n = {N}, p = {p}", partial(_ours, p),
        "one torch.linalg.lstsq a setting", TORCH, partial(_naive, p), target=0.05,
        repeats=1, warmup=0,
        note="the loop's solve for p > n leaves the ridge out, which makes it cheaper",
    )  # fmt: skip


def _ridges(p: int) -> Row:
    """The peer's own best: ``Ridge`` by Cholesky on the kernel, one fit a ridge and noise."""
    x, y, x_test, _ = _data()
    sample = nested_sample(len(x), N, 0)
    layer = random_features(x, p, generator=stream(0, "features 0"))
    phi, probe = layer(x[sample]).numpy(), layer(x_test).numpy()

    def theirs() -> None:
        for noise in NOISES:
            labels = noisy_labels(y, noise, num_classes=10, seed=0)[sample]
            targets = (torch.nn.functional.one_hot(labels, 10).double() - 0.1).numpy()
            for ridge in RIDGES:
                Ridge(alpha=ridge * N, fit_intercept=False).fit(phi, targets).predict(probe)

    def ours() -> None:
        rf_curve(*_data(), p=(p,), n=(N,), ridge=RIDGES, noise=NOISES, seeds=(0,))

    return timed_row(
        f"10 ridges x 3 noises, n = {N}, p = {p}", ours, "scikit-learn Ridge", sklearn.__version__,
        theirs,
        note="ours makes the features and checks the data too",
    )  # fmt: skip


def _tiny() -> Row:
    """Wall-clock of all trials of the tiny study, two at a time, with claims and figures."""
    trials = list(STUDY.trials(STUDY.scales["tiny"]))
    tasks = [Task(str(i), trial.function, trial.args) for i, trial in enumerate(trials)]
    start = time.perf_counter()
    ended = list(executor("processes", workers=2, threads=1)(tasks))
    seconds = time.perf_counter() - start
    failed = sum(outcome.error is not None for _, outcome in ended)
    computed = sum(outcome.seconds for _, outcome in ended)
    return Row(
        work=f"tiny study, {len(trials)} trials in two processes", peer="budget of 15 s",
        version="-", unit="s", addis=seconds, peer_value=15.0, ratio=seconds / 15.0, target=1.0,
        note=f"{failed} failed; {computed:.1f} s in the trials, the rest starts the processes",
    )  # fmt: skip


def _stacked(k: int, device: str, *, channels: int = 3, copies: int = 8) -> Row:
    """A step of eight copies against a step of each of eight nets, batch 128, 16x16, each its own
    data; the loop in the memory format that is faster for it. One channel, as in the study's small
    scale, only informs: the spec's bar is for the net on colour images.
    """
    x = torch.rand(copies, 128, channels, 16, 16, device=device)
    y = torch.randint(10, (copies, 128), device=device)
    net = partial(models.cnn5, k, 10, channels)
    seeds = list(range(copies))
    stacked = StackedTrainer(net, seeds=seeds, lr=0.1, device=device)

    def loop(layout: torch.memory_format) -> Callable[[], None]:
        nets = [models.cnn5(k, 10, channels).to(device).to(memory_format=layout) for _ in seeds]
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in nets]
        batches = [each.contiguous(memory_format=layout) for each in x]

        def step() -> None:
            for each, optimizer, inputs, targets in zip(nets, optimizers, batches, y, strict=True):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(each(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        return step

    plain, last = loop(torch.contiguous_format), loop(torch.channels_last)
    ours, *theirs = timed(
        lambda: stacked.step(x, y), plain, last, repeats=10, warmup=2, device=device
    )
    best = min(theirs)
    number = copies * 128
    bar = 0.5 if device == "cpu" else 0.1
    layouts = ("contiguous", "channels_last")
    layout, other = layouts if theirs[0] <= theirs[1] else layouts[::-1]
    return Row(
        work=f"training {copies} copies of cnn5({k}), batch 128, {channels}x16x16",
        peer="one by one", version=TORCH, unit="us an image", addis=ours / number * 1e6,
        peer_value=best / number * 1e6, ratio=ours / best, target=None if channels == 1 else bar,
        note=f"one thread, {stacked.backend}, "
        f"kernels of {'addis' if stacked.native else 'PyTorch'}; the loop in {layout}, "
        f"the ratio to that in {other} is {ours / max(theirs):.2f}",
    )  # fmt: skip
