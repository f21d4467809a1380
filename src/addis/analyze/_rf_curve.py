"""Double descent of random features, exactly: every ridge, epoch, and noise level of a width from
one decomposition.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292, random features
(appendix).
Departures: nested features and nested samples, so that one seed's curve is smooth; convergence is
the exact solution of least norm in place of a long run; the mean squared error is of centred
one-hot targets, ``Y - 1 / K``.

Index letters: ``N`` samples at hand, ``n`` of them in the sample, ``p`` features, ``m`` probe
samples (test, then validation), ``r`` rank, ``L`` noise levels, ``R`` ridges, ``T`` step counts,
``F = R T`` filters, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from addis.analyze._curve import Array, Curve, seeds_of, sorted_axis
from addis.analyze._data import check_disjoint, nested_sample, stream
from addis.analyze._label_noise import noisy_labels
from addis.analyze._least_squares import Spectrum, filters, near_square
from addis.analyze._random_features import FeatureKind, Features, random_features
from addis.methods import Method

__all__ = ["METHOD", "Problem", "rf_curve"]

METHOD = Method(
    name="double-descent",
    verb="analyze",
    title="Deep Double Descent: Where Bigger Models and More Data Hurt",
    arxiv="1912.02292",
    study="16",
    venue="ICLR 2020",
    summary="Finds where a model's test error peaks along width, epochs or samples, and why.",
)

_CHUNK = 2**20  # largest number of predictions held at once: 8 MiB, which a cache can hold
_BLOCK = 1024  # features made at a time beyond the square design


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Problem:
    """Data of a random-feature classification, checked.

    Args:
        X: Training inputs at hand, float64 ``(N, D)``.
        y: Their labels, int64 ``(N,)``.
        probe: Test inputs, then validation inputs, ``(m, D)``.
        y_probe: Their labels, ``(m,)``.
        tests: How many of the probe samples are test samples.
        num_classes: ``K``.
    """

    X: Tensor
    y: Tensor
    probe: Tensor
    y_probe: Tensor
    tests: int
    num_classes: int

    @classmethod
    def of(
        cls, X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor,
        validation: tuple[Tensor, Tensor] | None,
    ) -> Problem:  # fmt: skip
        """Checks the arguments of :func:`rf_curve`."""
        pairs = {"X": (X, y), "X_test": (X_test, y_test)}
        if validation is not None:
            pairs["validation"] = validation
        for name, (inputs, labels) in pairs.items():
            _check_pair(name, inputs, labels)
        for name, (inputs, _) in list(pairs.items())[1:]:
            check_disjoint(X, inputs, name=name)
        probes = list(pairs.values())[1:]
        labels = torch.cat([pair[1] for pair in pairs.values()])
        return cls(
            X=X.flatten(1).double(), y=y, tests=len(X_test), num_classes=int(labels.max()) + 1,
            probe=torch.cat([pair[0].flatten(1).double() for pair in probes]),
            y_probe=torch.cat([pair[1] for pair in probes]),
        )  # fmt: skip

    def one_hot(self, labels: Tensor) -> Tensor:
        """Centred one-hot targets, ``(..., K)``: each row sums to 0 but for one class alone."""
        hot = torch.nn.functional.one_hot(labels, self.num_classes)
        return hot.double() - 1 / self.num_classes


def rf_curve(
    X: Tensor,
    y: Tensor,
    X_test: Tensor,
    y_test: Tensor,
    *,
    p: Sequence[int],
    n: Sequence[int] | None = None,
    ridge: Sequence[float] = (0.0,),
    steps: Sequence[int | None] = (None,),
    noise: Sequence[float] = (0.0,),
    seeds: int | Sequence[int] = 5,
    kind: FeatureKind = "relu",
    scale: float = 3.0,
    lr: float | None = None,
    members: int = 1,
    validation: tuple[Tensor, Tensor] | None = None,
) -> Curve:
    """Test and training error of least squares on random features over width, samples, epochs,
    ridge and noise.

    Each seed draws its features, its sample and its label noise once and nested: a wider model has
    the narrower one's features, a larger sample holds the smaller one, and more noise keeps the
    labels already wrong. One decomposition at each (seed, n, p) serves all of ``noise``, ``ridge``
    and ``steps``.

    Metrics: ``test_error`` and ``test_loss`` (clean labels), ``train_error`` and ``train_loss``
    (labels with noise), ``validation_error`` where ``validation`` is given, ``norm`` (Frobenius, of
    the coefficients), and ``parameters_train`` and ``parameters_test``, the effective parameters
    (Curth et al. 2023). The losses are ``||Phi B - Y||^2 / n``: summed over classes, a mean over
    samples; predicting nothing has ``1 - 1 / K``.

    >>> X = torch.rand(400, 16, generator=torch.Generator().manual_seed(0))
    >>> y = (X[:, 0] > X[:, 1]).long()
    >>> curve = rf_curve(X[:200], y[:200], X[200:], y[200:], p=(10, 50, 100, 400), n=(100,))
    >>> bool(curve.median("train_loss")[2:].max() < 1e-12)  # interpolates from p = n on
    True

    Args:
        X: ``(N, ...)``, float; promoted to float64, computed with on its own device.
        y: int64 ``(N,)``.
        X_test: ``(m, ...)``, none of its samples in ``X``.
        y_test: int64 ``(m,)``.
        p: Numbers of features, whole, ``>= 1``. They are the curve's axis if there are several,
            else ``n`` is.
        n: Sample sizes, whole, in ``1 ... N``; all of ``X`` by default.
        ridge: Penalties of the mean loss, ``>= 0``.
        steps: Numbers of full-batch gradient steps from zero; ``None`` is convergence.
        noise: Probabilities of a wrong label, in ``[0, 1)``; symmetric.
        seeds: How many, or which, all different.
        kind: Non-linearity of the features.
        scale: See :func:`random_features`.
        lr: Step size; by default one over the largest curvature at each point.
        members: Number of models with features of their own whose predictions are averaged: an
            ensemble on the same sample. Effective parameters and norm are then NaN.
        validation: Clean samples to choose settings by, see :meth:`Curve.best`.

    Raises:
        TypeError: Labels that are not int64, inputs that are not floats.
        ValueError: A value outside its range, ``n`` above ``N``, a ``p`` or ``n`` that is not
            whole, a seed twice, one class with noise, or a test or validation sample that is in
            ``X``.
    """
    problem = Problem.of(X, y, X_test, y_test, validation)
    widths = _whole("p", sorted_axis("p", p))
    sizes = _whole("n", sorted_axis("n", [len(X)] if n is None else n))
    levels, ridges = sorted_axis("noise", noise), sorted_axis("ridge", ridge)
    counts = sorted(set(steps), key=lambda t: math.inf if t is None else t)
    _check_ranges(widths, sizes, levels, len(X), members)
    runs = seeds_of(seeds)
    if not counts:
        raise ValueError("steps must not be empty")
    sweep = _Sweep(problem, levels, ridges, tuple(counts), kind, scale, lr, members)
    points = [
        [list(sweep.widths(seed, size, widths)) for size in sizes] for seed in runs
    ]  # metrics by seed, n, p, each (L, R, T)
    metrics = {
        name: np.stack([[[at[name] for at in row] for row in rows] for rows in points], axis=-1)
        for name in points[0][0][0]
    }  # (n, p, L, R, T, S)
    grid = {"n": sizes, "p": widths, "noise": levels, "ridge": ridges,
            "steps": [math.inf if t is None else t for t in counts]}  # fmt: skip
    curve = Curve(
        axis="n", grid={name: np.asarray(v, dtype=np.float64) for name, v in grid.items()},
        seeds=runs, metrics=metrics,
    )  # fmt: skip
    return curve if len(widths) == 1 and len(sizes) > 1 else curve.along("p")


@dataclass(frozen=True, slots=True, eq=False)
class _Sweep:
    """The settings that do not change from one (seed, n, p) to the next."""

    problem: Problem
    noise: Sequence[float]
    ridge: Sequence[float]
    steps: Sequence[int | None]
    kind: FeatureKind
    scale: float
    lr: float | None
    members: int

    def widths(self, seed: int, n: int, widths: Sequence[int]) -> Iterator[Mapping[str, Array]]:
        """The metrics ``(L, R, T)`` of one seed and sample size, for each width."""
        problem = self.problem
        sample = nested_sample(len(problem.X), n, seed).to(problem.X.device)
        labels = torch.stack(
            [
                noisy_labels(problem.y, level, num_classes=problem.num_classes, seed=seed)[sample]
                for level in self.noise
            ]
        )  # (L, n)
        layers = [
            random_features(
                problem.X, widths[-1], kind=self.kind, scale=self.scale,
                generator=stream(seed, f"features {member}"),
            )
            for member in range(self.members)
        ]  # fmt: skip
        growing = [_growing(layer, problem.X[sample], problem.probe, widths) for layer in layers]
        for spectra in zip(*growing, strict=True):
            yield self._metrics(spectra, labels)

    def _metrics(self, spectra: Sequence[Spectrum], labels: Tensor) -> dict[str, Array]:
        """Scores of the mean prediction of the models behind ``spectra``, each metric ``(L, R,
        T)``.
        """
        problem, (levels, n) = self.problem, labels.shape
        hot = problem.one_hot(labels)  # (L, n, K)
        targets = hot.transpose(0, 1).reshape(n, -1)  # (n, L K)
        kept = [
            filters(s.values, n, ridge=self.ridge, steps=self.steps, lr=self.lr).flatten(0, 1)
            for s in spectra
        ]  # each (F, r)
        projected = [s.left.T @ targets for s in spectra]  # each (r, L K)
        # The mean over models is one product: their modes one below the other, r the sum of ranks.
        f, a = torch.cat(kept, 1) / len(spectra), torch.cat(projected)  # (F, r), (r, L K)
        on_train = torch.cat([s.left * s.values for s in spectra], 1)  # (n, r)
        on_probe = torch.cat([s.probe for s in spectra], 1)  # (m, r)
        size = max(1, _CHUNK // ((n + len(problem.probe)) * targets.shape[1]))
        shape = (-1, levels, problem.num_classes)
        scores: list[dict[str, Tensor]] = []
        for start in range(0, len(f), size):
            modes = (f[start : start + size, :, None] * a).transpose(0, 1).flatten(1)  # (r, F L K)
            train = (on_train @ modes).reshape(n, *shape)
            probe = (on_probe @ modes).reshape(len(on_probe), *shape)
            scores.append(self._score(train, probe, hot))
        found = {name: torch.cat([score[name] for score in scores]) for name in scores[0]}  # (F, L)
        found |= self._sizes(spectra, kept, projected, levels)
        grid = (levels, len(self.ridge), len(self.steps))
        return {name: value.T.reshape(grid).cpu().numpy() for name, value in found.items()}

    def _score(self, train: Tensor, probe: Tensor, hot: Tensor) -> dict[str, Tensor]:
        """Errors and losses ``(F, L)`` of predictions ``(n, F, L, K)`` and ``(m, F, L, K)``.

        The predictions are overwritten: the grid is larger than a cache, and each pass counts.
        """
        problem, tests = self.problem, self.problem.tests
        fitted = hot.transpose(0, 1)[:, None]  # (n, 1, L, K)
        clean = problem.one_hot(problem.y_probe)[:tests, None, None]  # (m, 1, 1, K)
        wrong = (probe.argmax(-1) != problem.y_probe[:, None, None]).double()  # (m, F, L)
        unfitted = (train.argmax(-1) != fitted.argmax(-1)).double()  # (n, F, L)
        scores = {
            "test_error": wrong[:tests].mean(0),
            "test_loss": _mean_square(probe[:tests].sub_(clean)),
            "train_error": unfitted.mean(0),
            "train_loss": _mean_square(train.sub_(fitted)),
        }
        if tests < len(wrong):
            scores["validation_error"] = wrong[tests:].mean(0)
        return scores

    def _sizes(
        self, spectra: Sequence[Spectrum], kept: list[Tensor], projected: list[Tensor], levels: int
    ) -> dict[str, Tensor]:
        """Norm of the coefficients and effective parameters, ``(F, L)``; NaN for an ensemble."""
        problem, spectrum, filter_, modes = self.problem, spectra[0], kept[0], projected[0]
        tests = Spectrum(
            spectrum.left, spectrum.values, spectrum.probe[: problem.tests], spectrum.route
        )
        train, test = tests.effective_parameters(filter_)  # (F,) each
        energy = modes.square().reshape(-1, levels, problem.num_classes).sum(-1)  # (r, L)
        sizes = {
            "norm": (filter_.square() @ energy).sqrt(),
            "parameters_train": train[:, None].expand(-1, levels),
            "parameters_test": test[:, None].expand(-1, levels),
        }
        alone = 1.0 if len(spectra) == 1 else math.nan
        return {name: value * alone for name, value in sizes.items()}


def _mean_square(residual: Tensor) -> Tensor:
    """Of ``(m, F, L, K)``: the sum of squares over K, averaged over m, ``(F, L)``."""
    norm: Tensor = torch.linalg.vector_norm(residual, dim=(0, -1))
    return norm.square() / len(residual)


def _growing(
    features: Features, X: Tensor, probe: Tensor, widths: Sequence[int]
) -> Iterator[Spectrum]:
    """The spectra of one sample as features are added: Gram matrices grow where they can, the SVD
    where it must.

    Beyond the square design ``Phi Phi^T`` needs only the new features at each width, cost ``n^2`` a
    feature, then ``n^3`` a width, and no design matrix is held.
    """
    n, done = len(X), 0
    gram, cross = X.new_zeros(n, n), X.new_zeros(len(probe), n)
    for p in widths:
        if p < n or near_square(n, p):
            yield Spectrum.of(features(X, p), features(probe, p))
            continue
        for start in range(done, p, _BLOCK):
            stop = min(start + _BLOCK, p)
            new = features.unscaled(X, start, stop)
            gram.addmm_(new, new.T)
            cross.addmm_(features.unscaled(probe, start, stop), new.T)
        done = p
        spectrum = Spectrum.of_gram(gram / p, cross / p)
        yield spectrum or Spectrum.of(features(X, p), features(probe, p))


def _check_pair(name: str, inputs: Tensor, labels: Tensor) -> None:
    if not inputs.is_floating_point():
        raise TypeError(f"{name} must be a float tensor, got {inputs.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels of {name} must be int64 classes, got {labels.dtype}")
    if inputs.dim() < 2 or len(inputs) == 0 or labels.shape != (len(inputs),):
        raise ValueError(
            f"{name} must be (N, ...) with N labels, "
            f"got {tuple(inputs.shape)} and {tuple(labels.shape)}"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if int(labels.min()) < 0:
        raise ValueError(f"labels of {name} must be >= 0, got {int(labels.min())}")


def _whole(name: str, values: Sequence[int | float]) -> list[int]:
    if any(value != int(value) for value in values):
        raise ValueError(f"{name} must be whole numbers, got {list(values)}")
    return [int(value) for value in values]


def _check_ranges(
    widths: Sequence[int], sizes: Sequence[int], noise: Sequence[float], size: int, members: int
) -> None:
    if widths[0] < 1:
        raise ValueError(f"p must be >= 1, got {widths[0]}")
    if not 1 <= sizes[0] <= sizes[-1] <= size:
        raise ValueError(f"n must be in 1 ... {size}, the samples of X, got {sizes}")
    if not 0.0 <= noise[0] <= noise[-1] < 1.0:
        raise ValueError(f"noise must be in [0, 1), got {noise}")
    if members < 1:
        raise ValueError(f"members must be >= 1, got {members}")
