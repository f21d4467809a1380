"""Slow, literal versions of what ``addis.analyze`` computes fast, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def ridge(design: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """``(Phi^T Phi + penalty n I)^-1 Phi^T Y``; the pseudo-inverse without a penalty."""
    if penalty == 0:
        return torch.linalg.pinv(design, rtol=1e-10) @ targets
    n, p = design.shape
    gram = design.T @ design + penalty * n * torch.eye(p, dtype=torch.float64)
    return torch.linalg.solve(gram, design.T @ targets)


def descent(design: Tensor, targets: Tensor, penalty: float, steps: int, lr: float) -> Tensor:
    """Steps from zero on ``(1 / 2n) ||Phi B - Y||^2 + (penalty / 2) ||B||^2``."""
    weights = torch.zeros(design.shape[1], targets.shape[1], dtype=torch.float64)
    for _ in range(steps):
        gradient = design.T @ (design @ weights - targets) / len(design) + penalty * weights
        weights = weights - lr * gradient
    return weights


def smoother(design: Tensor, probe: Tensor, penalty: float) -> Tensor:
    """The matrix ``S`` with ``prediction = S Y``, one column a unit target vector."""
    return probe @ ridge(design, torch.eye(len(design), dtype=torch.float64), penalty)


def isotropic_risk(n: int, p: int, signal: float, sigma: float) -> float:
    """Excess risk of least squares of least norm, ``x ~ N(0, I_p)`` (Hastie et al. 2022)."""
    if p < n - 1:
        return sigma**2 * p / (n - p - 1)
    return signal * (1 - n / p) + sigma**2 * n / (p - n - 1)


def complexity(
    metric: Callable[[int, int], float], sizes: Sequence[int], eps: float, trials: int
) -> int:
    """The definition of effective model complexity: every size is tried."""
    fitted = [n for n in sizes if sum(metric(n, t) for t in range(trials)) / trials <= eps]
    return max(fitted, default=sizes[0] - 1)


def most_prominent(medians: Sequence[float]) -> tuple[int, float] | None:
    """Place and prominence of the highest interior point above the minima of both its sides."""
    found = [
        (middle, min(medians[middle] - medians[a], medians[middle] - medians[b]))
        for middle in range(1, len(medians) - 1)
        for a in [min(range(middle), key=medians.__getitem__)]
        for b in [min(range(middle + 1, len(medians)), key=medians.__getitem__)]
    ]
    best = max(found, key=lambda pair: pair[1])
    return best if best[1] > 0 else None


def epoch_risk(
    scales: Sequence[float], theta: Sequence[float], sigma: float, n: int, lr: float, steps: int
) -> float:
    """Carries the mean and the noise factor of each weight step by step; the expected risk."""
    total = 0.0
    for s, w in zip(scales, theta, strict=True):
        mean, noise = 0.0, 0.0
        for _ in range(steps):
            mean -= lr * s * s * (mean - w)
            noise -= lr * (s * s * noise - s * sigma / math.sqrt(n))
        total += s * s * ((mean - w) ** 2 + noise**2)
    return total


def analysis_of_variance(runs: Tensor) -> dict[tuple[int, ...], float]:
    """Variance parts of ``(A, B, C, m, M)`` by inclusion and exclusion."""
    dims = (0, 1, 2)

    def explained(kept: tuple[int, ...]) -> float:
        """Variance over the levels of ``kept`` of the mean over the other factors."""
        cells = itertools.product(*(range(runs.shape[d]) for d in kept))
        means = []
        for cell in cells:
            index = tuple(cell[kept.index(d)] if d in kept else slice(None) for d in dims)
            part = runs[index]
            rest = part.dim() - 2
            means.append(part.reshape(-1, *part.shape[rest:]).mean(0))
        stacked = torch.stack(means)
        return float((stacked - stacked.mean(0)).square().sum(-1).mean())

    parts: dict[tuple[int, ...], float] = {}
    for size in (1, 2, 3):
        for kept in itertools.combinations(dims, size):
            inside = sum(v for subset, v in parts.items() if set(subset) < set(kept))
            parts[kept] = explained(kept) - inside
    return parts
