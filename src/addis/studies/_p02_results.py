"""The results of study 02 as arrays over images, and paired comparisons of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from addis.study import mean_interval

__all__ = ["Results", "Tally"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tally:
    """Paired comparisons: the mean difference's interval is above 0, holds 0, or is below."""

    wins: int = 0
    ties: int = 0
    losses: int = 0

    def __str__(self) -> str:
        return f"{self.wins} wins, {self.ties} ties, {self.losses} losses"

    def plus(self, low: float, high: float) -> Tally:
        """Adds a comparison by its interval."""
        return Tally(
            self.wins + (low > 0), self.ties + (low <= 0 <= high), self.losses + (high < 0)
        )


def _place(method: str) -> tuple[int, int, str]:
    """Where a method stands in a table, whatever the order of the store's columns."""
    first = ("random", "saliency", "blurred saliency")
    if method in first:
        return 0, first.index(method), method
    beta = method.split()[1] if method.startswith("iba") else ""
    return (2, int(beta) if beta.isdigit() else 1000, method) if beta else (1, 0, method)


class Results:
    """Measures by scene, method and name.

    Args:
        frame: A row a trial; failed and skipped trials are left out.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        good = frame[frame["error"].isna()] if "error" in frame else frame
        self.reasons = (
            [str(r) for r in good["skipped"].dropna().unique()] if "skipped" in good else []
        )
        self.frame = good[good["skipped"].isna()] if "skipped" in good else good

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes with results."""
        return list(dict.fromkeys(self.frame["scene"])) if len(self.frame) else []

    def methods(self, scene: str, measure: str) -> list[str]:
        """Methods of a scene that have a measure: controls, baselines, bottlenecks."""
        columns = [c for c in self.frame.columns if c.endswith(f"/{measure}")]
        names = (column.removesuffix(f"/{measure}") for column in columns)
        return sorted((name for name in names if self.has(scene, name, measure)), key=_place)

    def has(self, scene: str, method: str, measure: str) -> bool:
        """Whether there is such a measure."""
        return bool(self.cells(scene, f"{method}/{measure}"))

    def cells(self, scene: str, column: str) -> list[Any]:
        """A column's values in the trials of a scene that have it."""
        if column not in self.frame or not len(self.frame):
            return []
        values = self.frame.loc[self.frame["scene"] == scene, column]
        return [v for v in values if isinstance(v, np.ndarray) or (v is not None and v == v)]

    def get(self, scene: str, method: str, measure: str) -> Array:
        """The measure over the images of all seeds, one after the other (along the last axis)."""
        cells = [np.atleast_1d(v) for v in self.cells(scene, f"{method}/{measure}")]
        if not cells:
            raise KeyError(f"{scene}: no {method}/{measure}")
        return np.concatenate(cells, axis=-1).astype(np.float64)

    def mean(self, scene: str, method: str, measure: str) -> float:
        """Mean over images; NaN without the measure."""
        found = self.cells(scene, f"{method}/{measure}")
        return float(np.mean(self.get(scene, method, measure))) if found else float("nan")

    def number(self, scene: str, name: str) -> float:
        """Mean of a column of a scene over seeds."""
        return float(np.mean(self.cells(scene, name)))

    def paired(
        self, scene: str, measure: str, ours: str, theirs: str
    ) -> tuple[float, tuple[float, float]]:
        """Mean of ours less theirs over the same images, and its interval."""
        difference = self.get(scene, ours, measure) - self.get(scene, theirs, measure)
        return float(difference.mean()), mean_interval(difference)

    def degradations(self) -> list[tuple[str, str]]:
        """Scenes of pretrained nets and their degradation measures: the settings of Table 1."""
        return [
            (scene, column.split("/")[1])
            for scene in self.scenes
            for column in self.frame.columns
            if column.startswith("iba 10/degradation")
            if scene != "digits" and self.cells(scene, column)
        ]
