"""Where a model's error comes from: bias, and the variance due to initialisation, sampling and
label noise.

Papers: B. Adlam and J. Pennington, "Understanding Double Descent Requires a Fine-Grained
Bias-Variance Decomposition", NeurIPS 2020, arXiv:2011.03321 (the symmetric analysis of variance);
on random features it shows which source the peak of P. Nakkiran et al., ICLR 2020, is made of.
Departures: plug-in values of a crossed design, an exact identity on the runs made; with few draws a
factor the bias keeps about one part in the number of draws of the variance.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from addis.analyze._data import nested_sample, stream
from addis.analyze._label_noise import noisy_labels
from addis.analyze._least_squares import Spectrum, filters
from addis.analyze._random_features import FeatureKind, random_features
from addis.analyze._rf_curve import Problem

__all__ = ["Decomposition", "decompose_error", "rf_decomposition"]

FACTORS = ("initialisation", "sampling", "noise")


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Mean squared error of a set of runs, split.

    Args:
        total: Mean over runs and samples of the squared distance to the truth, summed over outputs.
        bias: Squared distance of the mean prediction to the truth.
        variance: By source, ``"initialisation"`` alone or ``"initialisation x noise"`` for an
            interaction; ``bias`` and all of these sum to ``total``.
    """

    total: float
    bias: float
    variance: Mapping[str, float]


def decompose_error(
    predictions: Tensor, truth: Tensor, factors: Sequence[str] = FACTORS
) -> Decomposition:
    """Splits the squared error of runs in a crossed design: every level with every other's.

    The part of a set of factors is the mean square of what the mean over all other factors has
    beyond the parts of its subsets; these parts are orthogonal, so they sum to the variance.

    >>> runs = torch.tensor([[1.0, 1.0], [3.0, 3.0]])[..., None, None]  # two rows: initialisations
    >>> decompose_error(runs, torch.zeros(1, 1), ("initialisation", "noise"))
    Decomposition(total=5.0, bias=4.0,
                  variance={'initialisation': 1.0, 'noise': 0.0, 'initialisation x noise': 0.0})

    Args:
        predictions: ``(A, B, ..., m, M)``, one leading dimension a factor, in the order of
            ``factors``.
        truth: ``(m, M)``, without noise.
        factors: Names of the leading dimensions.

    Raises:
        ValueError: Shapes that do not match.
    """
    count = len(factors)
    if predictions.dim() != count + 2 or predictions.shape[count:] != truth.shape:
        raise ValueError(
            f"predictions must be {count} factors and {tuple(truth.shape)}, "
            f"got {tuple(predictions.shape)}"
        )

    def energy(values: Tensor) -> float:
        return float(values.square().sum(-1).mean())

    runs = predictions.double()
    parts: dict[tuple[int, ...], Tensor] = {}
    for size in range(count + 1):
        for kept in itertools.combinations(range(count), size):
            rest = [dim for dim in range(count) if dim not in kept]
            mean = runs.mean(rest, keepdim=True) if rest else runs
            inside = (part for subset, part in parts.items() if set(subset) <= set(kept))
            parts[kept] = mean - sum(inside, start=torch.zeros(()))
    variance = {
        " x ".join(factors[dim] for dim in kept): energy(part)
        for kept, part in parts.items()
        if kept
    }
    return Decomposition(energy(runs - truth), energy(parts[()] - truth), variance)


def rf_decomposition(
    X: Tensor,
    y: Tensor,
    X_test: Tensor,
    y_test: Tensor,
    *,
    p: int,
    n: int,
    noise: float,
    ridge: float = 0.0,
    draws: int = 5,
    seed: int = 0,
    kind: FeatureKind = "relu",
    scale: float = 3.0,
) -> Decomposition:
    """Decomposes the test loss of :func:`rf_curve` at one width over ``draws`` features, samples
    and label noises.

    The ``draws^3`` runs cost ``draws^2`` decompositions: label noise enters linearly.

    Args:
        X: ``(N, ...)``, float.
        y: int64 ``(N,)``.
        X_test: ``(m, ...)``, none of its samples in ``X``.
        y_test: int64 ``(m,)``; the truth is the centred one-hot of it.
        p: Number of features, ``>= 1``.
        n: Sample size, ``1 ... N``.
        noise: Probability of a wrong label, in ``[0, 1)``.
        ridge: Penalty of the mean loss, ``>= 0``.
        draws: Levels of each factor, ``>= 2``.
        seed: Of all draws.
        kind: Non-linearity of the features.
        scale: See :func:`random_features`.

    Raises:
        ValueError: As :func:`rf_curve`; ``draws < 2``.
    """
    if draws < 2:
        raise ValueError(f"draws must be >= 2, got {draws}")
    problem = Problem.of(X, y, X_test, y_test, None)
    noisy = [
        noisy_labels(y, noise, num_classes=problem.num_classes, seed=seed * draws + c)
        for c in range(draws)
    ]
    targets = problem.one_hot(torch.stack(noisy))  # (C, N, K)
    rows = []
    for a in range(draws):
        source = stream(seed * draws + a, "features 0")
        layer = random_features(problem.X, p, kind=kind, scale=scale, generator=source)
        for b in range(draws):
            sample = nested_sample(len(X), n, seed * draws + b).to(problem.X.device)
            spectrum = Spectrum.of(layer(problem.X[sample]), layer(problem.probe))
            f = filters(spectrum.values, n, ridge=(ridge,))[0, 0]
            modes = f[:, None] * (spectrum.left.T @ targets[:, sample])  # (C, r, K)
            rows.append(spectrum.probe @ modes)
    runs = torch.stack(rows).reshape(draws, draws, *rows[0].shape)  # (A, B, C, m, K)
    return decompose_error(runs, problem.one_hot(problem.y_probe))
