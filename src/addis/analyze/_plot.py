"""The picture of a curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from addis.analyze._curve import Curve

__all__ = ["draw_curve"]

_STYLES = ("-", "--", ":", "-.")


def draw_curve(curve: Curve, metrics: Sequence[str]) -> Figure:
    """Medians over seeds with bands from the lowest to the highest, one colour a line of the curve.

    Raises:
        ValueError: A metric that the curve lacks, or more metrics than line styles.
    """
    from matplotlib.figure import Figure

    missing = [metric for metric in metrics if metric not in curve.metrics]
    if missing or not 1 <= len(metrics) <= len(_STYLES):
        raise ValueError(
            f"metrics must be 1 to {len(_STYLES)} of {sorted(curve.metrics)}, got {list(metrics)}"
        )
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, line in enumerate(curve.lines()):
        for metric, style in zip(metrics, _STYLES, strict=False):
            label = f"{metric.replace('_', ' ')} {line.describe()}".strip()
            colour, runs = f"C{number % 10}", line.runs(metric)
            axes.plot(
                line.values, line.median(metric), style, color=colour, marker=".", label=label
            )
            if style == "-" and len(line.seeds) > 1:
                known = ~np.isnan(runs).all(1)
                low, high = np.nanmin(runs[known], axis=1), np.nanmax(runs[known], axis=1)
                axes.fill_between(line.values[known], low, high, color=colour, alpha=0.15, lw=0)
    if curve.values[0] > 0 and curve.values[-1] / curve.values[0] > 20:
        axes.set_xscale("log")
    axes.set_xlabel(curve.axis)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure
