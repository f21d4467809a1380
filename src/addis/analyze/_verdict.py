"""Is there a double descent, where, how high, and on which side of it does each point stand?

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292, hypothesis 1. The
paper gives the critical interval no formal width.
Departures: a peak needs a least height over *both* sides and an interval over seeds that excludes
zero, and the critical interval is where the error stands above half the peak's height.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from addis.analyze._curve import Array, Curve, Failure
from addis.analyze._intervals import (
    Criterion,
    Interval,
    bootstrap,
    interpolates_at_end,
    interpolation_threshold,
)

__all__ = [
    "Mitigation",
    "Point",
    "Regime",
    "Verdict",
    "double_descent_verdict",
    "mitigation_panel",
]

Regime = Literal["under-parameterised", "critical", "over-parameterised", "unknown"]
Outcome = Literal["double descent", "no peak found", "insufficient seeds"]

_LEAST_VALUES = 5
_LEAST_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a median curve.

    Args:
        value: On the axis.
        error: Median over seeds.
    """

    value: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a curve says. ``print`` it for the sentence.

    Args:
        outcome: ``"double descent"``; ``"no peak found"``; ``"insufficient seeds"`` if fewer than
            three have a result at all of left minimum, peak and right minimum, or, without a peak,
            if fewer than five values have the results of three.
        axis: The swept axis.
        settings: The line that was judged, in words.
        metric: The metric that was judged.
        peak: The interior maximum that stands out most; ``None`` if no interior point is above both
            sides.
        left: Minimum to the left of the peak (without a peak: of all).
        right: Minimum to its right.
        end: The last point of the axis.
        height: ``peak - left``, with its interval over seeds; ``None`` without a peak.
        prominence: ``peak - max(left, right)``, what the verdict is about; ``None`` without a peak.
        thresholds: By criterion, where the training set is just fitted.
        regimes: Of each value of the axis.
        failures: Runs that gave no result; they count in no median.
    """

    outcome: Outcome
    axis: str
    settings: str
    metric: str
    peak: Point | None
    left: Point
    right: Point | None
    end: Point
    height: Interval | None
    prominence: Interval | None
    thresholds: Mapping[Criterion, Interval]
    regimes: Mapping[float, Regime]
    failures: tuple[Failure, ...] = ()

    def __str__(self) -> str:
        where = f"{self.metric} along {self.axis}" + (
            f" ({self.settings})" if self.settings else ""
        )
        lines = [f"{self.outcome}: {where}"]
        lines += [f"  {name:<18} {text}" for name, text in self._rows()]
        lines += [f"  failed             {failure}" for failure in self.failures]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        def at(point: Point) -> str:
            return f"{point.error:.4g} at {self.axis} = {point.value:g}"

        if self.peak is None or self.right is None:
            rows = [("minimum", at(self.left))]
        else:
            rows = [
                ("left minimum", at(self.left)), ("peak", at(self.peak)),
                ("right minimum", at(self.right)), ("height", str(self.height)),
                ("prominence", str(self.prominence)),
            ]  # fmt: skip
        rows.append(("last point", at(self.end)))
        rows += [(f"threshold ({on})", str(found)) for on, found in self.thresholds.items()]
        critical = [f"{v:g}" for v, regime in self.regimes.items() if regime == "critical"]
        return [*rows, ("critical", ", ".join(critical))] if critical else rows


def double_descent_verdict(
    curve: Curve,
    *,
    min_height: float = 0.02,
    metric: str = "test_error",
    eps: float | None = None,
    level: float = 0.95,
) -> Verdict:
    """Judges whether the metric goes down, up and down again along the axis.

    The peak is the interior point that stands highest over both the minimum to its left and the
    minimum to its right, on medians over seeds. It counts if that prominence is at least
    ``min_height`` and its interval, bootstrapped over seeds with the three places held, is above
    zero. The places are chosen on the same seeds, so the interval is optimistic for a prominence
    near ``min_height``. Failed runs count nowhere: medians are over the others, and it is the seeds
    with a result at the three places that must be three, see :class:`Verdict`.

    A curve of several lines is judged on its least regularised one: every other setting at its
    first value, ``steps`` at its last. For another, pass ``curve.at(...)``.

    Args:
        curve: With at least five values on its axis.
        min_height: Least prominence, in units of the metric, ``> 0``.
        metric: What to judge; lower is better.
        eps: Of the interpolation threshold on the training error, in ``(0, 1)``; the paper's 0.1 by
            default.
        level: Of the intervals.

    Raises:
        ValueError: Fewer than five values with a result, ``min_height <= 0``, an unknown metric.
    """
    if not min_height > 0:
        raise ValueError(f"min_height must be > 0, got {min_height}")
    line = _base_line(curve)
    runs, medians = line.runs(metric), line.median(metric)
    known = ~np.isnan(medians)
    if known.sum() < _LEAST_VALUES:
        raise ValueError(
            f"a verdict needs at least {_LEAST_VALUES} values of {line.axis} with a result, "
            f"got {known.sum()}"
        )
    values, runs, medians = line.values[known], runs[known], medians[known]
    place = _peak(medians)
    height = prominence = None
    if place is not None:
        a, b, c = place
        height = bootstrap(lambda m: float(m[b] - m[a]), runs, level=level)
        prominence = bootstrap(lambda m: float(m[b] - m[[a, c]].max()), runs, level=level)
    outcome: Outcome = "no peak found"
    if _seeds_that_tell(runs, place) < _LEAST_SEEDS:
        outcome = "insufficient seeds"
    elif prominence is not None and prominence.value >= min_height and prominence.low > 0:
        outcome = "double descent"
    points = [Point(float(v), float(m)) for v, m in zip(values, medians, strict=True)]
    thresholds = _thresholds(line, eps, level)
    found = place if outcome == "double descent" else None
    return Verdict(
        outcome=outcome, axis=line.axis, settings=line.describe(), metric=metric,
        peak=points[place[1]] if place else None,
        left=points[place[0]] if place else points[int(medians.argmin())],
        right=points[place[2]] if place else None,
        end=points[-1], height=height, prominence=prominence, thresholds=thresholds,
        regimes=_regimes(line, values, medians, found, thresholds), failures=line.failures,
    )  # fmt: skip


def _base_line(curve: Curve) -> Curve:
    settings = {
        name: float(values[-1 if name == "steps" else 0])
        for name, values in curve.grid.items()
        if name != curve.axis
    }
    return curve.at(**settings)


def _peak(medians: Array) -> tuple[int, int, int] | None:
    """Places of the left minimum, the peak and the right minimum; ``None`` if nothing is above both
    its sides.
    """
    best, found = 0.0, None
    for middle in range(1, len(medians) - 1):
        left = int(medians[:middle].argmin())
        right = middle + 1 + int(medians[middle + 1 :].argmin())
        prominence = float(medians[middle] - max(medians[left], medians[right]))
        if prominence > best:
            best, found = prominence, (left, middle, right)
    return found


def _seeds_that_tell(runs: Array, place: tuple[int, int, int] | None) -> int:
    """How many seeds have a result at all three places; without a peak, the number of results that
    the least number of values for a verdict have.
    """
    given = ~np.isnan(runs)
    if place is not None:
        return int(given[list(place)].all(0).sum())
    return int(np.sort(given.sum(1))[-_LEAST_VALUES])


def _thresholds(line: Curve, eps: float | None, level: float) -> dict[Criterion, Interval]:
    found: dict[Criterion, Interval] = {}
    if "train_error" in line.metrics:
        found["error"] = interpolation_threshold(line, eps, "error", level=level)
    if "train_loss" in line.metrics:
        found["loss"] = interpolation_threshold(line, None, "loss", level=level)
    return found


def _regimes(
    line: Curve,
    values: Array,
    medians: Array,
    place: tuple[int, int, int] | None,
    thresholds: Mapping[Criterion, Interval],
) -> dict[float, Regime]:
    """Around a peak, above half its height is critical; without one, the training error tells."""
    rising = interpolates_at_end(line)
    sides: tuple[Regime, Regime] = ("under-parameterised", "over-parameterised")
    before, after = sides if rising else sides[::-1]
    if place is None:
        if "error" not in thresholds:
            return dict.fromkeys(map(float, values), "unknown")
        cut = thresholds["error"].value
        return {float(v): after if (v >= cut if rising else v > cut) else before for v in values}
    left, peak, right = place
    first = last = peak
    while first > left and medians[first - 1] > (medians[peak] + medians[left]) / 2:
        first -= 1
    while last < right and medians[last + 1] > (medians[peak] + medians[right]) / 2:
        last += 1
    return {
        float(value): before if i < first else after if i > last else "critical"
        for i, value in enumerate(values)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Mitigation:
    """What one remedy does to a peak.

    Args:
        name: Of the remedy.
        at_peak: Its median error where the base curve peaks; NaN if every run failed there.
        worst: Its largest median error from the base curve's left minimum onwards, across the peak;
            NaN if every run failed.
        excess: ``worst`` minus the base curve's left minimum, with its interval over seeds.
        outcome: The verdict on the remedy's own curve; ``"insufficient seeds"`` also if fewer than
            five of its values have a result.
        removed: Whether ``excess`` is at most the tolerance; ``None`` if it is, but every run of
            some value from the left minimum onwards failed: there the peak may stand.
    """

    name: str
    at_peak: float
    worst: Point
    excess: Interval
    outcome: Outcome
    removed: bool | None


def mitigation_panel(
    base: Curve,
    remedies: Mapping[str, Curve],
    *,
    metric: str = "test_error",
    tolerance: float = 0.03,
    level: float = 0.95,
) -> tuple[Mitigation, ...]:
    """Compares remedies (ridge or weight decay, early stopping, ensembles, cleaner labels) on one
    axis. Runs of a remedy that failed leave the question open at most for that remedy.

    Args:
        base: The curve with the peak.
        remedies: Name to a curve on the same axis values and seeds; choose settings inside each
            with :meth:`Curve.best` or :meth:`Curve.at`.
        metric: What to judge; lower is better.
        tolerance: Excess over the base curve's left minimum up to which the peak counts as removed,
            ``>= 0``.
        level: Of the intervals.

    Raises:
        ValueError: The base curve has no point above both its sides, or a remedy has other axis
            values or seeds.
    """
    judged = double_descent_verdict(base, metric=metric, level=level)
    if judged.peak is None:
        raise ValueError("base must have a peak to remove; double_descent_verdict found none")
    line = _base_line(base)
    left = int(np.flatnonzero(line.values == judged.left.value)[0])
    peak = int(np.flatnonzero(line.values == judged.peak.value)[0])
    reference = line.runs(metric)[left]
    rows = []
    for name, remedy in remedies.items():
        if not np.array_equal(remedy.values, line.values) or remedy.seeds != line.seeds:
            raise ValueError(f"remedy {name!r} must have the axis values and seeds of base")
        runs, medians = remedy.runs(metric), remedy.median(metric)
        known = ~np.isnan(medians)
        worst = left + int(np.where(known, medians, -np.inf)[left:].argmax())
        pair = np.stack([runs[worst], reference])
        excess = bootstrap(lambda m: float(m[0] - m[1]), pair, level=level)
        outcome: Outcome = "insufficient seeds"
        if known.sum() >= _LEAST_VALUES:
            outcome = double_descent_verdict(remedy, metric=metric, level=level).outcome
        rows.append(
            Mitigation(
                name=name,
                at_peak=float(medians[peak]),
                excess=excess,
                worst=Point(float(remedy.values[worst]), float(medians[worst])),
                outcome=outcome,
                removed=_removed(excess.value, tolerance, complete=bool(known[left:].all())),
            )
        )
    return tuple(rows)


def _removed(excess: float, tolerance: float, *, complete: bool) -> bool | None:
    if excess > tolerance:
        return False
    return True if complete else None
