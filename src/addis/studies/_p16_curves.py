"""The curves of study 16, put together from the results of its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from addis.analyze import (
    Curve,
    Failure,
    Interval,
    Verdict,
    double_descent_verdict,
    interpolation_threshold,
)

__all__ = [
    "Curves",
    "deep_curve",
    "largest_rise",
    "listed",
    "of_trial",
    "points",
    "reach",
    "stacked_curve",
    "summary_row",
]

Array = np.ndarray[Any, np.dtype[np.float64]]


class Curves:
    """Random-feature curves along one axis, ``"p"`` or ``"n"``, over all noises.

    Args:
        results: The frame of all trials.
        axis: Whose trials to take; also ``"peak"``, the trials at p = n alone.

    Attributes:
        ridge: Converged, over ``noise`` and ``ridge``.
        steps: Without ridge, over ``noise`` and ``steps``; ``None`` where no steps were recorded.
        ensemble: Without ridge, over ``noise``; ``None`` without ensembles.
        fixed: The value of the other axis.
        members: Nets in an ensemble.
    """

    def __init__(self, results: pd.DataFrame, axis: str) -> None:
        rows = of_trial(results, "linear")
        rows = rows[rows["axis"] == axis]
        axis = "p" if axis == "peak" else axis
        done = rows[rows["error"].isna()]
        failures = tuple(
            Failure(axis, float(row[axis]), int(row["seed"]), str(row["error"]).splitlines()[-1])
            for _, row in rows[rows["error"].notna()].iterrows()
        )
        first = done.iloc[0]
        self.fixed = int(first["n" if axis == "p" else "p"])
        noises = {"noise": first["noises"]}
        self.ridge = _curve(done, axis, "ridge_", noises | {"ridge": first["ridges"]}, failures)
        steps = noises | {"steps": first["steps"]}
        self.steps = _curve(done, axis, "steps_", steps, failures) if first["steps"] else None
        self.members = int(first["members"])
        self.ensemble = (
            _curve(done, axis, "ensemble_", noises, failures, rename="test_error")
            if self.members > 1
            else None
        )

    @property
    def noises(self) -> list[float]:
        """The noise levels, rising."""
        return [float(noise) for noise in self.ridge.grid["noise"]]

    def plain(self, noise: float) -> Curve:
        """Least squares of least norm at one noise level."""
        return self.ridge.at(noise=noise, ridge=0.0)

    def remedies(self, noise: float) -> dict[str, Curve]:
        """Each remedy's curve at one noise level, settings chosen on clean validation images."""
        best = self.ridge.best("ridge", by="validation_error").at(noise=noise)
        found = {"ridge, chosen on validation": best}
        if self.steps is not None:
            stopped = self.steps.best("steps", by="validation_error").at(noise=noise)
            found["early stopping, chosen on validation"] = stopped
        if self.ensemble is not None:
            found["ensemble"] = self.ensemble.at(noise=noise)
        return found


def of_trial(results: pd.DataFrame, function: str) -> pd.DataFrame:
    """The rows of one trial function."""
    return results[results["function"] == function]


def _curve(
    rows: pd.DataFrame,
    axis: str,
    prefix: str,
    settings: Mapping[str, Sequence[float]],
    failures: tuple[Failure, ...],
    rename: str = "",
) -> Curve:
    values = np.unique(rows[axis].astype(float))
    seeds = sorted(int(seed) for seed in rows["seed"].unique())
    inner = tuple(len(setting) for setting in settings.values())
    metrics: dict[str, Array] = {}
    for column in (name for name in map(str, rows) if name.startswith(prefix)):
        metric = np.full((len(values), *inner, len(seeds)), np.nan)
        for _, row in rows[rows[column].notna()].iterrows():
            place = int(np.searchsorted(values, row[axis]))
            metric[place, ..., seeds.index(int(row["seed"]))] = np.reshape(row[column], inner)
        metrics[rename or column.removeprefix(prefix)] = metric
    grid = {axis: values} | {k: np.asarray(v, dtype=np.float64) for k, v in settings.items()}
    return Curve(axis=axis, grid=grid, seeds=tuple(seeds), metrics=metrics, failures=failures)


def deep_curve(results: pd.DataFrame, axis: str) -> Curve | None:
    """Deep nets along ``"k"`` or ``"samples"``, over ``steps``; ``None`` if there are none.

    Along samples, the point that the width axis has at the same width is one of them.
    """
    rows = of_trial(results, "deep")
    rows = rows[rows["error"].isna()] if len(rows) else rows
    if len(rows) == 0:
        return None
    if axis == "samples":
        own = rows[rows["axis"] == "samples"]
        rows = rows[rows["k"].isin(own["k"].unique())]
    else:
        rows = rows[rows["axis"] == "k"]
    return stacked_curve(rows, axis) if len(rows) else None


def stacked_curve(rows: pd.DataFrame, axis: str) -> Curve:
    """The curve over ``steps`` of trials whose seeds were stacked, from at least one row."""
    values = np.unique(rows[axis].astype(float))
    seeds = sorted({int(seed) for group in rows["seeds"] for seed in group})
    steps = np.asarray(rows.iloc[0]["checkpoints"], dtype=np.float64)
    metrics: dict[str, Array] = {}
    for column in (name for name in map(str, rows) if name.startswith("deep_")):
        metric = np.full((len(values), len(steps), len(seeds)), np.nan)
        for _, row in rows.iterrows():
            place = int(np.searchsorted(values, row[axis]))
            for seed, run in zip(row["seeds"], row[column], strict=True):
                metric[place, :, seeds.index(int(seed))] = run
        metrics[column.removeprefix("deep_")] = metric
    return Curve(
        axis=axis, grid={axis: values, "steps": steps}, seeds=tuple(seeds), metrics=metrics
    )


def largest_rise(medians: Array) -> float:
    """How much the curve rises at most from any point to any later one; 0 if it only falls."""
    lowest = np.minimum.accumulate(medians)
    return float(np.max(medians - lowest))


def points(curve: Curve, metric: str = "test_error") -> str:
    """A curve's medians with their places."""
    return listed(curve.median(metric), curve.values)


def listed(errors: Array, values: Array) -> str:
    """Errors with their places."""
    return ", ".join(f"{e:.2f} at {value:g}" for e, value in zip(errors, values, strict=True))


def reach(interval: Interval, threshold: float) -> str:
    """What a note must say where the interval leaves the verdict open."""
    open_ = interval.low <= threshold <= interval.high
    return "; the interval reaches over the threshold" if open_ else ""


def summary_row(name: str, curve: Curve) -> dict[str, Any]:
    """One curve's line in the table of the study."""
    verdict: Verdict = double_descent_verdict(curve)

    def text(interval: Interval | None) -> str:
        return "" if interval is None else f"{interval.value:g}"

    thresholds = verdict.thresholds
    return {
        "curve": name,
        "axis": curve.axis,
        "left minimum": f"{verdict.left.error:.3f} at {verdict.left.value:g}",
        "peak": f"{verdict.peak.error:.3f} at {verdict.peak.value:g}" if verdict.peak else "",
        "right end": f"{verdict.end.error:.3f}",
        "height": str(verdict.height or ""),
        "threshold, error 0.1": text(thresholds.get("error")),
        "threshold, error 0.01": text(interpolation_threshold(curve, 0.01)),
        "threshold, loss 0": text(thresholds.get("loss")),
        "verdict": verdict.outcome,
    }
