"""Intervals over seeds, and the interpolation threshold.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292: the smallest model,
longest training or largest sample at which the training error reaches epsilon (0.1 in the paper's
figures).
Departures: an interval by bootstrap over seeds, which the paper does not give; the training loss as
an alternative, which for least squares is what reaches zero at the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from addis.analyze._curve import Array, Curve, nan_median

__all__ = [
    "EPS",
    "Criterion",
    "Interval",
    "bootstrap",
    "interpolates_at_end",
    "interpolation_threshold",
]

Criterion = Literal["error", "loss"]

EPS: dict[Criterion, float] = {"error": 0.1, "loss": 1e-8}
"""Default epsilon: the paper's for the error; for a loss of order one, what only exact
interpolation reaches.
"""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its interval.

    Args:
        value: The estimate; infinite if the threshold lies beyond the swept values.
        low: Lower end.
        high: Upper end.
        level: Probability that the interval is built for.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[[Array], float],
    runs: Array,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of the medians over seeds, whole seeds drawn again
    together.

    With few seeds it is about the range of the seeds: three give at most what the lowest and the
    highest say.

    A seed is drawn with its failed runs, and the medians of a draw are over the runs that it has,
    as those of the estimate are (B. Efron, "Missing Data, Imputation, and the Bootstrap", JASA
    1994): the interval is of the statistic reported and wider for the runs that it lacks. A draw
    without any run at a place that the statistic uses tells nothing and does not count. That takes
    failures to be unrelated to the results: runs that fail because they diverge would have had the
    higher errors.

    Args:
        statistic: Of medians ``(V,)``; NaN if a median that it uses is NaN.
        runs: ``(V, S)``, NaN where a run failed.
        level: In ``(0, 1)``.
        draws: Number of bootstrap samples.
        seed: Of the draws.

    Returns:
        The interval; NaN throughout if no draw has a run at each place that the statistic uses.
    """
    count = runs.shape[1]
    picks = np.random.default_rng(seed).integers(count, size=(draws, count))
    medians = nan_median(runs[:, picks])  # (V, draws)
    found = np.asarray([statistic(medians[:, draw]) for draw in range(draws)])
    told = found[~np.isnan(found)]
    # Nearest-rank percentiles: a threshold may be infinite, and infinities do not interpolate.
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(told if len(told) else found, ends, method="inverted_cdf")
    return Interval(statistic(nan_median(runs)), float(low), float(high), level)


def interpolation_threshold(
    curve: Curve,
    eps: float | None = None,
    on: Criterion = "error",
    *,
    level: float = 0.95,
) -> Interval:
    """Where along the axis the training set is just fitted.

    On an axis that raises complexity (width, epochs) it is the smallest value at which the median
    training error is at most ``eps``; on one that lowers it (samples, noise: training error is
    higher at its upper end) the largest. Infinite, with the sign of the direction, if no value
    fits.

    >>> curve = Curve(axis="width", grid={"width": np.array([1.0, 2.0, 4.0])}, seeds=(0, 1, 2),
    ...               metrics={"train_error": np.array([[0.5] * 3, [0.2] * 3, [0.05] * 3])})
    >>> interpolation_threshold(curve).value
    4.0

    Args:
        curve: A single line with the metric ``train_error`` or ``train_loss``.
        eps: In ``(0, 1)``; by default the paper's 0.1 on the error and 1e-8 on the loss.
        on: Which training metric.
        level: Of the bootstrap interval over seeds.

    Raises:
        ValueError: ``eps`` outside ``(0, 1)``, a metric that the curve lacks, or several lines.
    """
    eps = check_eps(eps, on)
    runs = curve.runs(f"train_{on}")
    rising = interpolates_at_end(curve)

    def threshold(medians: Array) -> float:
        fits = curve.values[medians <= eps]
        if len(fits) == 0:
            return math.inf if rising else -math.inf
        return float(fits.min() if rising else fits.max())

    return bootstrap(threshold, runs, level=level)


def check_eps(eps: float | None, on: Criterion) -> float:
    """The default of the criterion, or ``eps`` if it is in ``(0, 1)``."""
    if on not in EPS:
        raise ValueError(f"criterion must be one of {list(EPS)}, got {on!r}")
    chosen = EPS[on] if eps is None else eps
    if not 0.0 < chosen < 1.0:
        raise ValueError(f"eps must be in (0, 1), got {eps}")
    return chosen


def interpolates_at_end(curve: Curve) -> bool:
    """Whether the training set is fitted better at the upper end of the axis; true where nothing
    tells.
    """
    for metric in ("train_error", "train_loss"):
        if metric in curve.metrics:
            medians = curve.median(metric)
            known = medians[~np.isnan(medians)]
            if len(known) and known[0] != known[-1]:
                return bool(known[-1] < known[0])
    return True
