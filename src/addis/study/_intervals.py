"""Intervals for claims about means over images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_interval"]


def mean_interval(values: NDArray[Any], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over images, always from the same draws.

    For two methods on the same images give the differences: that interval is the paired one.

    Args:
        values: One an image, ``(N,)``.
        level: Probability that the interval is built for.

    Example:
        >>> low, high = mean_interval(np.array([0.1, 0.3, 0.2, 0.4]))
        >>> 0.1 <= low < 0.25 < high <= 0.4
        True
    """
    if len(values) < 2 or np.ptp(values) == 0:
        mean = float(np.mean(values))
        return mean, mean
    from scipy import stats  # a second to import

    found = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, batch=500, confidence_level=level,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
