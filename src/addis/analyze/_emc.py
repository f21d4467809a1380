"""Effective model complexity, by its definition.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292, definition 1:
``EMC(T) = max { n : E_S [training error of T on S] <= eps }`` over samples ``S`` of ``n``.
Departures: the paper never computes it; here it is found by bracketing and bisection over ``n``
with samples that are nested within a trial, and it has an interval. The training loss is an
alternative criterion: for least squares the training *error* of a classifier is at epsilon far from
where its loss, and its test error, peak.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats

from addis.analyze._data import Labelled, nested_sample, take
from addis.analyze._intervals import Criterion, check_eps

__all__ = ["EMCPoint", "EMCResult", "effective_model_complexity"]

Status = Literal["bracketed", "above n_max", "below n_min"]
Map = Callable[[Callable[[Any], Mapping[str, Any]], Sequence[Any]], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class EMCPoint:
    """One training run of the search.

    Args:
        n: Size of its sample.
        seed: Of the sample and of the procedure.
    """

    n: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EMCResult:
    """An effective model complexity.

    Args:
        n: The largest evaluated sample size whose mean training metric is at most ``eps``, with the
            next size above it; ``n_max`` if even that is fitted; ``n_min - 1`` if not even
            ``n_min`` is.
        interval: The sizes that ``trials`` runs cannot tell from it: up to its lower end the upper
            confidence bound of the mean is at most ``eps``, above its upper end the lower bound
            exceeds ``eps``.
        status: ``"bracketed"``; ``"above n_max"``: the complexity is ``n_max`` or more, perhaps
            infinite; ``"below n_min"``.
        monotone: Whether the mean metric rose with ``n`` at all evaluated sizes. If not, a larger
            size than ``n`` may be fitted too, since the search halves one bracket.
        eps: The threshold used.
        criterion: What was compared with it.
        means: Evaluated size to mean training metric.
    """

    n: int
    interval: tuple[int, int]
    status: Status
    monotone: bool
    eps: float
    criterion: Criterion
    means: Mapping[int, float]


def effective_model_complexity(
    procedure: Callable[[Any, int], float],
    dataset: Labelled,
    *,
    eps: float | None = None,
    n_min: int = 16,
    n_max: int | None = None,
    trials: int = 3,
    criterion: Criterion = "error",
    level: float = 0.95,
    tolerance: float = 0.0,
    map: Map = map,
) -> EMCResult:
    """The largest sample size that a training procedure fits.

    Doubles ``n`` from ``n_min`` until the mean training metric exceeds ``eps``, then bisects: about
    ``2 log2(n)`` sizes, and a few more for the interval, which inverts a Student t interval of the
    mean. The sample of a trial at a larger ``n`` holds its sample at a smaller one.

    >>> from torch import arange
    >>> from torch.utils.data import TensorDataset
    >>> def memory_of_forty(sample, seed):  # learns forty samples by heart and misses the others
    ...     return max(0, len(sample) - 40) / len(sample)
    >>> data = TensorDataset(arange(1000.0), arange(1000) % 10)
    >>> effective_model_complexity(memory_of_forty, data, eps=0.1).n  # 4 of 44 missed, 9.1 %
    44

    Args:
        procedure: Takes a sample (a data set of ``n`` of the samples, with its labels, noise
            included) and a seed, trains from scratch, and returns the training error or loss at the
            end. It is the whole procedure: architecture, optimiser, schedule, steps and
            augmentation are part of what is measured.
        dataset: What the samples are drawn from, without replacement.
        eps: In ``(0, 1)``; by default the paper's 0.1 for the error and 1e-8 for the loss.
        n_min: Smallest size, ``>= 1``.
        n_max: Largest size; the whole data set by default.
        trials: Runs at each size, ``>= 2``.
        criterion: ``"error"`` or ``"loss"``: what ``procedure`` returns.
        level: Of the interval.
        tolerance: Fraction of a size, in ``[0, 1)``, to within which ``n`` and the ends of the
            interval are found; 0 finds them exactly. Each halving costs ``trials`` runs.
        map: Runs the trials of one size: ``map(function, points)`` gives results in order.

    Raises:
        TypeError: ``procedure`` returned no number.
        ValueError: A size, ``eps``, ``trials`` or ``level`` outside its range; a returned value
            that is NaN, negative, or above 1 as an error.
    """
    n_max = len(dataset) if n_max is None else n_max
    if not 1 <= n_min <= n_max <= len(dataset):
        raise ValueError(
            f"need 1 <= n_min <= n_max <= {len(dataset)}, the size of the dataset, "
            f"got {n_min} and {n_max}"
        )
    if trials < 2 or not 0 < level < 1:
        raise ValueError(f"need trials >= 2 and level in (0, 1), got {trials} and {level}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")
    eps = check_eps(eps, criterion)
    work = functools.partial(_run, procedure=procedure, dataset=dataset)
    seen: dict[int, float] = {}

    @functools.cache
    def bounds(n: int) -> tuple[float, float, float]:
        """Lower confidence bound, mean and upper confidence bound of the training metric at size
        ``n``.
        """
        points = [EMCPoint(n, seed) for seed in range(trials)]
        values = [_checked(result["value"], n, criterion) for result in map(work, points)]
        seen[n] = mean = statistics.mean(values)  # exact: equal values have just their value
        error = statistics.stdev(values) / math.sqrt(trials)
        half = float(stats.t.ppf((1 + level) / 2, trials - 1)) * error
        return mean - half, mean, mean + half

    def fits(bound: int) -> Callable[[int], bool]:
        return lambda size: bounds(size)[bound] <= eps

    first = n_min if fits(1)(n_min) else n_min - 1
    n = _last_above(fits(1), first, n_max, n_min, tolerance) if first == n_min else first
    near = max(1, int(tolerance * n))
    sure = _last_below(fits(2), n_min - 1, n, near, tolerance)
    possible = _last_above(fits(0), n, n_max, near, tolerance)
    status: Status = "above n_max" if n == n_max else "below n_min" if n < n_min else "bracketed"
    means = dict(sorted(seen.items()))
    values = list(means.values())
    return EMCResult(
        n=n, interval=(sure, possible), status=status, eps=eps, criterion=criterion, means=means,
        monotone=all(a <= b for a, b in itertools.pairwise(values)),
    )  # fmt: skip


def _last_above(
    fits: Callable[[int], bool], good: int, high: int, step: int, tolerance: float
) -> int:
    """The last of ``good ... high`` that fits, given that ``good`` does: growing steps up, then
    bisection.
    """
    while good < high:
        bad = min(good + step, high)
        if not fits(bad):
            return _bisected(fits, good, bad, tolerance)
        good, step = bad, 2 * step
    return good


def _last_below(
    fits: Callable[[int], bool], low: int, bad: int, step: int, tolerance: float
) -> int:
    """The last of ``low ... bad`` that fits, given that ``low`` does: growing steps down, then
    bisection.
    """
    if bad <= low or fits(bad):
        return max(bad, low)
    while (good := max(bad - step, low)) > low and not fits(good):
        bad, step = good, 2 * step
    return _bisected(fits, good, bad, tolerance)


def _bisected(fits: Callable[[int], bool], good: int, bad: int, tolerance: float) -> int:
    while bad - good > max(1, tolerance * good):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _run(
    point: EMCPoint, *, procedure: Callable[[Any, int], float], dataset: Labelled
) -> dict[str, float]:
    sample = take(dataset, nested_sample(len(dataset), point.n, point.seed))
    value = procedure(sample, point.seed)
    try:
        return {"value": float(value)}
    except (TypeError, ValueError) as error:
        raise TypeError(f"procedure must return a number, got {type(value).__name__}") from error


def _checked(value: float, n: int, criterion: Criterion) -> float:
    top = 1.0 if criterion == "error" else math.inf
    if not 0.0 <= value <= top or math.isinf(value):
        raise ValueError(
            f"procedure must return a training {criterion} in [0, {top}], got {value} at n = {n}"
        )
    return value
