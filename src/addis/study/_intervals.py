"""Intervals for claims about means, over many images or few seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["half_width", "mean_interval"]


def mean_interval(values: NDArray[Any], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over images, always from the same draws.

    For two methods on the same images give the differences: that interval is the paired one. A
    single image has no interval: it is the whole line.

    Args:
        values: One an image, ``(N,)``.
        level: Probability that the interval is built for.

    Example:
        >>> low, high = mean_interval(np.array([0.1, 0.3, 0.2, 0.4]))
        >>> 0.1 <= low < 0.25 < high <= 0.4
        True
    """
    if len(values) < 2:
        return -math.inf, math.inf
    if np.ptp(values) == 0:  # which scipy calls degenerate
        return float(values[0]), float(values[0])
    from scipy import stats  # a second to import

    found = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, batch=500, confidence_level=level,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def half_width(values: NDArray[Any], *, level: float = 0.95) -> float:
    """Half the width of the Student interval of a mean over seeds; infinite for a single seed.

    Args:
        values: One a seed, ``(S,)``.
        level: Probability that the interval is built for.

    Example:
        >>> half_width(np.array([1.0, 2.0, 3.0]))  # 4.30 standard errors: three seeds say little
        2.484
    """
    from scipy import stats

    if len(values) < 2:
        return math.inf
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1) * error)
