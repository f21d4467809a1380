"""Study 16: test error against width, samples and epochs, where it peaks and what removes the peak.

Paper: P. Nakkiran et al., "Deep Double Descent: Where Bigger Models and More Data Hurt", ICLR 2020,
arXiv:1912.02292.

The noise levels, epsilon, the widths and the sample sizes of the sample-wise curves are fixed here,
before any curve is seen: "critical regime" means nothing without them. The deep nets' sample size
and sample-wise width were chosen by the training error of single runs of another seed on other
images: with 1000 images a net of width 2 is fitted already, and one width would be left below the
threshold; with 4000 it is about width 3.

What removes the deep nets' peak is asked at its width and the neighbours, which the curve without
remedies had shown. Claim D4 and the strengths of weight decay were fixed before any net was trained
with them: the paper's 5e-4, and 5e-3, which over 8000 steps at these learning rates shrinks the
weights about as much as 5e-4 does over the paper's 500 000.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from addis.analyze._rf_curve import METHOD
from addis.studies._p16_claims import claims, tables
from addis.studies._p16_figures import figures
from addis.studies._p16_remedy import Remedy, remedy
from addis.studies._p16_trials import (
    Complexity,
    Deep,
    Epochs,
    Linear,
    Parts,
    Source,
    complexity,
    deep,
    epochs,
    linear,
    parts,
)
from addis.study import Study, Trial

__all__ = ["STUDY", "Config", "DeepConfig", "Treatment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """Nets that are trained again about the peak, as the others or with a remedy."""

    widths: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    weight_decay: float = 0.0
    clean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepConfig:
    """The part of the study that trains convolutional nets."""

    dataset: str = "fashion_mnist"
    side: int = 16
    pool: int = 4000
    model: str = "cnn5"
    widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 12, 16)
    n: int = 4000
    sample_width: int = 3
    samples: tuple[int, ...] = (500, 1000, 2000)
    noise: float = 0.2
    optimizer: str = "sgd"
    lr: float = 0.1
    batch_size: int = 128
    steps: int = 8000
    records: int = 24
    augment: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    stacked: int = 3
    treatments: tuple[Treatment, ...] = (
        Treatment(widths=(2, 3, 4), seeds=(0, 1, 2, 3, 4)),
        Treatment(widths=(2, 3), weight_decay=5e-4),
        Treatment(widths=(2, 3, 4), weight_decay=5e-3),
        Treatment(widths=(2, 3), clean=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One scale. ``deep=None`` leaves the convolutional nets out."""

    dataset: str = "digits"
    side: int = 8
    pool: int = 1078
    widths: tuple[int, ...] = (
        10, 20, 40, 60, 80, 120, 160, 200, 240, 270, 300, 330, 400, 500, 700, 1000, 2000, 4000,
    )  # fmt: skip
    n: int = 300
    noises: tuple[float, ...] = (0.0, 0.1, 0.2)
    ridges: tuple[float, ...] = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    steps: tuple[int, ...] = tuple(round(10 ** (6 * i / 19)) for i in range(20))
    members: int = 5
    sample_width: int = 200
    samples: tuple[int, ...] = (50, 100, 125, 150, 175, 200, 225, 250, 300, 400, 600, 1000)
    sample_noise: float = 0.1
    seeds: int = 5
    peak_seeds: int = 40
    emc_widths: tuple[int, ...] = (40, 80, 120, 200)
    emc_noise: float = 0.1
    eps: float = 0.1
    loss_eps: float = 1e-10
    trials: int = 3
    parts_widths: tuple[int, ...] = (20, 80, 160, 240, 300, 400, 700, 2000)
    draws: int = 4
    monte_carlo: int = 20
    monte_carlo_draws: int = 100
    monte_carlo_steps: int = 1500
    deep: DeepConfig | None = None
    device: str = "cpu"


def trials(config: Config) -> Iterator[Trial]:
    """Yields the deep trials first: they take longest."""
    if config.deep is not None:
        yield from _deep_trials(config.deep, config.device)
    source = Source(dataset=config.dataset, side=config.side, pool=config.pool)
    for seed in range(config.seeds):
        for p in config.widths:
            point = Linear(
                source=source, seed=seed, p=p, n=config.n, noises=config.noises,
                ridges=config.ridges, steps=config.steps, members=config.members, axis="p",
            )  # fmt: skip
            yield Trial(linear, point, cost=1 + p / 1000)
        for n in config.samples:
            point = Linear(
                source=source, seed=seed, p=config.sample_width, n=n, noises=(config.sample_noise,),
                ridges=config.ridges, steps=(), members=1, axis="n",
            )  # fmt: skip
            yield Trial(linear, point, cost=0.5)
    for seed in range(config.peak_seeds):
        point = Linear(
            source=source, seed=seed, p=config.n, n=config.n, noises=config.noises, ridges=(0.0,),
            steps=(), members=1, axis="peak",
        )  # fmt: skip
        yield Trial(linear, point, cost=0.5)
    for width in config.emc_widths:
        for criterion, eps, tolerance in (
            ("error", config.eps, 0.02),
            ("loss", config.loss_eps, 0.0),
        ):
            search = Complexity(
                source=source, width=width, noise=config.emc_noise, criterion=criterion, eps=eps,
                tolerance=tolerance, trials=config.trials,
            )  # fmt: skip
            yield Trial(complexity, search, cost=4)
    for width in config.parts_widths:
        crossed = Parts(
            source=source, width=width, samples=config.n, noise=config.noises[-1],
            draws=config.draws,
        )  # fmt: skip
        yield Trial(parts, crossed, cost=3)
    for seed in range(config.monte_carlo):
        batch = Epochs(seed=seed, draws=config.monte_carlo_draws, steps=config.monte_carlo_steps)
        yield Trial(epochs, batch)


def _deep_trials(config: DeepConfig, device: str) -> Iterator[Trial]:
    points = [("k", k, config.n) for k in config.widths]
    points += [("samples", config.sample_width, n) for n in config.samples]
    last = config.steps
    stops = {max(1, round(last ** (i / (config.records - 1)))) for i in range(config.records)}
    groups = [
        config.seeds[i : i + config.stacked] for i in range(0, len(config.seeds), config.stacked)
    ]
    shared: dict[str, Any] = {
        "source": Source(dataset=config.dataset, side=config.side, pool=config.pool),
        "model": config.model, "optimizer": config.optimizer, "lr": config.lr,
        "batch_size": config.batch_size, "checkpoints": tuple(sorted(stops)),
        "augment": config.augment, "device": device,
    }  # fmt: skip
    for axis, k, n in sorted(points, key=lambda point: -point[1]):
        for seeds in groups:
            args = Deep(**shared, k=k, samples=n, noise=config.noise, seeds=seeds, axis=axis)
            yield Trial(deep, args, cost=config.steps * k**1.1 / 5)
    for treatment in config.treatments:
        for k in treatment.widths:
            treated = Remedy(
                **shared, k=k, samples=config.n, noise=0.0 if treatment.clean else config.noise,
                seeds=treatment.seeds, axis="k", weight_decay=treatment.weight_decay,
            )  # fmt: skip
            cost = config.steps * k**1.1 / 15 * len(treatment.seeds)
            yield Trial(remedy, treated, cost=cost)


_SMALL = Config(
    dataset="fashion_mnist", side=16, pool=4000, n=1000,
    widths=(30, 60, 100, 200, 300, 400, 600, 800, 900, 1000, 1100, 1300, 1600, 2000, 3000, 5000,
            10_000),
    sample_width=500, samples=(125, 250, 300, 400, 450, 500, 550, 600, 700, 1000, 2000, 4000),
    emc_widths=(100, 300, 500), parts_widths=(100, 300, 600, 900, 1000, 1300, 2000, 5000),
    seeds=3, peak_seeds=20, monte_carlo=40, deep=DeepConfig(),
)  # fmt: skip

_PAPER_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 56, 64)

_PAPER = Config(
    dataset="fashion_mnist", side=16, pool=4000, n=1000, widths=_SMALL.widths,
    sample_width=500, samples=_SMALL.samples, emc_widths=_SMALL.emc_widths,
    parts_widths=_SMALL.parts_widths, monte_carlo=100, device="cuda",
    deep=DeepConfig(
        dataset="cifar10", side=32, pool=50_000, model="preact_resnet18", n=50_000, noise=0.15,
        widths=_PAPER_WIDTHS,
        sample_width=8, samples=(5000, 10_000, 20_000, 30_000), optimizer="adam", lr=1e-4,
        steps=4000 * 391, records=48, augment=True, seeds=(0, 1, 2, 3, 4), stacked=5,
        treatments=tuple(
            Treatment(widths=_PAPER_WIDTHS, seeds=(0, 1, 2, 3, 4), weight_decay=decay, clean=clean)
            for decay, clean in ((0.0, False), (5e-4, False), (0.0, True))
        ),
    ),
)  # fmt: skip

STUDY = Study(
    method=METHOD,
    problem=(
        "Test error as a function of model size, of training time or of the number of samples can "
        "go down, up and down again, with the peak where the training procedure is just able to "
        "fit its training set. Whoever picks a width, an early-stopping rule or a labelling budget "
        "near that point is misled: bigger is worse, more data hurt, it has started to overfit. "
        "The tool sweeps one axis, finds the threshold and the peak, says in which regime each "
        "point is, and what removes the bump."
    ),
    scales={"tiny": Config(), "small": _SMALL, "paper": _PAPER},
    trials=trials,
    claims=claims,
    figures=figures,
    tables=tables,
    notes=(
        "Optimal regularisation removes the model-wise and the sample-wise bump (Nakkiran et al. "
        "2020, arXiv:2003.01897): M3 and S2 measure it.",
        "Epoch-wise bumps come from features learnt at different speeds, not from one threshold "
        "(Heckel and Yilmaz, ICLR 2021): E1 and E2.",
        "The width axis of random features glues two axes together; against effective parameters "
        "the second descent folds back into one curve (Curth et al., NeurIPS 2023).",
        "Effective model complexity is a definition with a free epsilon and a free procedure, so "
        "'critical regime' cannot be refuted unless both are fixed beforehand: this study's config "
        "fixes them.",
        "For least squares the peak is where the training loss reaches zero, p = n. The training "
        "error of the same classifier is at 0.1 far to the left of it: complexity must be measured "
        "with the loss that the procedure drives to zero.",
        "All curves are medians over seeds: at p = n the smallest singular value sets the height, "
        "and its inverse has heavy tails.",
        "The deep nets' training error is measured in evaluation mode on unaugmented images and "
        "the labels with noise. Their validation images are clean, as in the paper; a practitioner "
        "with noisy labels would stop by noisy ones.",
        "The deep nets of an ensemble see the same images, each with label noise, initialisation "
        "and order of its own, and vote, as in the paper. With one ensemble a width, its interval "
        "comes from leaving out each net in turn.",
    ),
)
