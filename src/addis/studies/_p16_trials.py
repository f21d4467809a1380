"""The trials of study 16: random features, effective complexity, epochs on paper, and deep nets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from addis import data, models
from addis.analyze import (
    TWO_SPEEDS,
    LabelNoise,
    effective_model_complexity,
    least_squares_path,
    noisy_labels,
    random_features,
    rf_curve,
    rf_decomposition,
    simulated_epoch_risk,
)
from addis.study import Value
from addis.train import StackedBatches, StackedTrainer, schedules

__all__ = [
    "Complexity",
    "Deep",
    "Epochs",
    "Linear",
    "Parts",
    "Source",
    "complexity",
    "deep",
    "epochs",
    "images",
    "linear",
    "parts",
    "trained",
]

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Clean images, apart: to train on, to choose settings by, to report on; float32 inputs."""

    pool: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Source(NamedTuple):
    """Which images.

    Args:
        dataset: Its name in ``addis.data``.
        side: Pixels that the images are pooled to.
        pool: Training images that samples are drawn from.
    """

    dataset: str
    side: int
    pool: int


@functools.cache
def images(source: Source) -> Images:
    """The first training images, pooled, and two clean sets apart.

    Digits: every fourth training image is for validation. Else: the first fifth of the test set.
    """
    name, side, pool = source.dataset, source.side, source.pool
    train, test = _load(name, "train"), _load(name, "test")
    if name == "digits":
        index = torch.arange(len(train))
        held, kept = index[index % 4 == 3], index[index % 4 != 3][:pool]
        return Images(
            pool=_pooled(train, kept, side), validation=_pooled(train, held, side),
            test=_pooled(test, torch.arange(len(test)), side),
        )  # fmt: skip
    order = torch.arange(len(test))
    cut = len(test) // 5
    return Images(
        pool=_pooled(train, torch.arange(pool), side),
        validation=_pooled(test, order[:cut], side),
        test=_pooled(test, order[cut:], side),
    )


def _load(name: str, split: Literal["train", "test"]) -> data.Images:
    loaded = data.load(name, split)
    if not isinstance(loaded, data.Images):
        raise TypeError(f"{name!r} must be a set of images, got {type(loaded).__name__}")
    return loaded


def _pooled(source: data.Images, index: Tensor, side: int) -> tuple[Tensor, Tensor]:
    x = source.floats(index)
    if x.shape[-1] != side:
        x = F.adaptive_avg_pool2d(x, side)
    return x, source.targets[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One width and sample size of random features, all noises, ridges and step counts."""

    source: Source
    seed: int
    p: int
    n: int
    noises: tuple[float, ...]
    ridges: tuple[float, ...]
    steps: tuple[int, ...]
    members: int
    axis: str
    """``"p"`` or ``"n"``: the curve that the trial is a point of; ``"peak"``: p = n alone."""


METRICS = (
    "test_error", "test_loss", "validation_error", "train_error", "train_loss", "parameters_test",
)  # fmt: skip


def linear(args: Linear) -> Mapping[str, Value]:
    """Metrics over ridges ``ridge_*`` ``(L, R)``, over steps ``steps_*`` ``(L, T)``, of an ensemble
    ``ensemble_error`` ``(L,)``.
    """
    source = images(args.source)
    fit = functools.partial(
        rf_curve, *source.pool, *source.test, validation=source.validation, p=(args.p,),
        n=(args.n,), noise=args.noises, seeds=(args.seed,),
    )  # fmt: skip
    found: dict[str, Value] = {}
    levels = len(args.noises)
    ridges = fit(ridge=args.ridges)
    for metric in METRICS:
        found[f"ridge_{metric}"] = ridges.metrics[metric].reshape(levels, -1)
    if args.steps:
        steps = fit(steps=args.steps)
        for metric in ("test_error", "validation_error", "train_error"):
            found[f"steps_{metric}"] = steps.metrics[metric].reshape(levels, -1)
    if args.members > 1:
        ensemble = fit(members=args.members)
        found["ensemble_error"] = ensemble.metrics["test_error"].reshape(levels)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity:
    """Effective complexity of least squares on ``width`` random features."""

    source: Source
    width: int
    noise: float
    criterion: str
    """``"error"`` or ``"loss"``."""
    eps: float
    tolerance: float
    trials: int


def complexity(args: Complexity) -> Mapping[str, Value]:
    """The complexity, its interval and how many sizes were tried."""
    x, y = images(args.source).pool
    noisy = LabelNoise(TensorDataset(x, y), p=args.noise, seed=0)
    found = effective_model_complexity(
        functools.partial(_least_squares, args=args), TensorDataset(*noisy.xy), eps=args.eps,
        criterion="loss" if args.criterion == "loss" else "error", trials=args.trials,
        tolerance=args.tolerance,
    )  # fmt: skip
    return {
        "emc": found.n, "emc_low": found.interval[0], "emc_high": found.interval[1],
        "status": found.status, "monotone": found.monotone, "sizes": len(found.means),
    }  # fmt: skip


def _least_squares(sample: TensorDataset, seed: int, *, args: Complexity) -> float:
    """Training error or mean squared loss of the least-norm fit."""
    x, y = sample.tensors
    whole, _ = images(args.source).pool
    source = torch.Generator().manual_seed(seed)
    phi = random_features(whole, args.width, generator=source)(x)
    targets = F.one_hot(y, 10).double() - 0.1
    fit = least_squares_path(phi, targets).predict(phi)[0, 0]
    if args.criterion == "loss":
        return float((fit - targets).square().sum(1).mean())
    return float((fit.argmax(1) != y).double().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bias and variance of one width over crossed initialisations, samples and label noises."""

    source: Source
    width: int
    samples: int
    noise: float
    draws: int


def parts(args: Parts) -> Mapping[str, Value]:
    """The parts of the test loss by name, ``part_*``."""
    source = images(args.source)
    found = rf_decomposition(
        *source.pool, *source.test, p=args.width, n=args.samples, noise=args.noise,
        draws=args.draws,
    )  # fmt: skip
    variance = {f"part_{name.replace(' ', '')}": part for name, part in found.variance.items()}
    return {"total": found.total, "part_bias": found.bias, **variance}


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """A batch of Monte Carlo draws of the two-speed regression."""

    seed: int
    draws: int
    steps: int


def epochs(args: Epochs) -> Mapping[str, Value]:
    """Mean risk over the draws after each step, ``risk`` ``(T + 1,)``."""
    source = torch.Generator().manual_seed(args.seed)
    runs = simulated_epoch_risk(TWO_SPEEDS, steps=args.steps, draws=args.draws, generator=source)
    return {"risk": runs.mean(0).numpy()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deep:
    """Copies of one convolutional net, side by side, each with its own sample, noise and order."""

    source: Source
    model: str
    """``"cnn5"`` or ``"preact_resnet18"``."""
    k: int
    samples: int
    noise: float
    optimizer: str
    """``"sgd"``, no momentum, inverse-root schedule; or ``"adam"``, constant rate."""
    lr: float
    batch_size: int
    checkpoints: tuple[int, ...]
    """Gradient steps after which the nets are evaluated; the last is where training ends."""
    augment: bool
    seeds: tuple[int, ...]
    axis: str
    """``"k"`` or ``"samples"``: the curve that the trial is a point of."""
    device: str


def deep(args: Deep) -> Mapping[str, Value]:
    """Errors after each checkpoint, ``(E, T)``: on test, validation and the noisy training labels.

    The training error is measured in evaluation mode, without augmentation. Batches are full: a
    last small one in an epoch would move the batch-norm statistics that it is measured with.
    """
    _, errors = trained(args)
    return errors


def trained(
    args: Deep, weight_decay: float | None = None
) -> tuple[StackedTrainer, dict[str, Array]]:
    """The copies at the end of training, and their errors by name as :func:`deep` gives them."""
    source = images(args.source)
    x, y = _samples(args, source.pool)
    whole = args.samples == args.source.pool
    trainer = _trainer(args, x.shape[-3], weight_decay)
    batches = StackedBatches(
        (x, y), args.batch_size, seeds=args.seeds, own="targets" if whole else "data",
        drop_last=args.samples >= args.batch_size,
        transform=_augment if args.augment else None, device=args.device,
    )  # fmt: skip
    found: dict[str, list[Array]] = {}
    stops = iter(args.checkpoints)
    stop = next(stops)
    while trainer.steps < args.checkpoints[-1]:
        for batch in batches:
            trainer.step(*batch)
            if trainer.steps == stop:
                train = (x.expand(len(args.seeds), *x.shape) if whole else x, y)
                for name, error in _errors(trainer, source, train).items():
                    found.setdefault(name, []).append(error)
                stop = next(stops, 0)
            if stop == 0:
                break
    return trainer, {name: np.stack(errors, axis=1) for name, errors in found.items()}


def _samples(args: Deep, pool: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Each copy's inputs ``(E, n, C, H, W)``, or the shared pool, and noisy labels ``(E, n)``."""
    x, y = pool
    noisy = torch.stack(
        [noisy_labels(y, args.noise, num_classes=10, seed=seed) for seed in args.seeds]
    )
    if args.samples == args.source.pool:
        return x, noisy
    orders = torch.stack(
        [
            torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: args.samples]
            for seed in args.seeds
        ]
    )
    return x[orders], noisy.gather(1, orders)


def _trainer(args: Deep, channels: int, weight_decay: float | None) -> StackedTrainer:
    build = {"cnn5": models.cnn5, "preact_resnet18": models.preact_resnet18}[args.model]
    sgd = args.optimizer == "sgd"

    def net() -> nn.Module:
        return build(args.k, 10, channels)

    return StackedTrainer(
        net, seeds=args.seeds, optimizer=torch.optim.SGD if sgd else torch.optim.Adam, lr=args.lr,
        weight_decay=weight_decay, schedule=schedules.inverse_root(512) if sgd else None,
        device=args.device,
    )  # fmt: skip


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    cropped = data.random_crop(x, 4, generator=generator)
    return data.random_flip(cropped, generator=generator)


def _errors(
    trainer: StackedTrainer, source: Images, train: tuple[Tensor, Tensor]
) -> dict[str, Array]:
    scores = {
        "deep_test_error": trainer.evaluate(*source.test),
        "deep_validation_error": trainer.evaluate(*source.validation),
        "deep_train_error": trainer.evaluate(*train, shared=False),
    }
    errors = {name: 1 - score.accuracy.double().cpu().numpy() for name, score in scores.items()}
    errors["deep_train_loss"] = scores["deep_train_error"].loss.double().cpu().numpy()
    return errors
