"""The result of a sweep: metrics over an axis, over other settings and over seeds, with what
failed.
"""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Array", "Curve", "Failure", "Setting", "plain", "seeds_of", "sorted_axis"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Setting: TypeAlias = "int | float | None"


@dataclass(frozen=True, slots=True)
class Failure:
    """One run that gave no result.

    Args:
        axis: The swept axis.
        value: Where on the axis.
        seed: Of the run.
        reason: The exception, or what was wrong with the returned metrics.
    """

    axis: str
    value: float
    seed: int
    reason: str

    def __str__(self) -> str:
        return f"{self.axis} = {self.value:g}, seed {self.seed}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Metrics along one axis, for each combination of the other settings and each seed.

    Index letters: ``V`` values of the axis, ``G...`` values of the other settings in the order of
    ``grid``, ``S`` seeds. A setting ``None`` (no limit, as in ``steps=None``) is stored as
    infinity.

    >>> curve = Curve(axis="width", grid={"width": np.array([1.0, 2.0, 3.0])}, seeds=(0, 1),
    ...               metrics={"test_error": np.array([[0.4, 0.2], [0.6, 0.8], [0.1, 0.1]])})
    >>> curve.median("test_error").tolist()
    [0.3, 0.7, 0.1]

    Args:
        axis: Name of the swept axis, the first key of ``grid``.
        grid: Values of every setting, float64, rising.
        seeds: The runs of each point.
        metrics: Name to float64 ``(V, G..., S)``; NaN where a run failed.
        failures: What gave no result.
    """

    axis: str
    grid: Mapping[str, Array]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Array]
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        if next(iter(self.grid), None) != self.axis:
            raise ValueError(f"axis {self.axis!r} must be the first of grid, got {list(self.grid)}")
        shape = (*(len(values) for values in self.grid.values()), len(self.seeds))
        for name, metric in self.metrics.items():
            if metric.shape != shape:
                raise ValueError(f"metric {name!r} must have shape {shape}, got {metric.shape}")

    @property
    def values(self) -> Array:
        """The axis, ``(V,)``."""
        return self.grid[self.axis]

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, axis: str, metrics: Sequence[str], by: Sequence[str] = ()
    ) -> Curve:
        """A curve from one row a run, with columns for the axis, the other settings ``by``,
        ``seed`` and the metrics.

        Rows that are missing are NaN; a setting that is missing in a row is ``None``, no limit.

        Raises:
            ValueError: Two rows have the same settings and seed.
        """
        names = [axis, *by, "seed"]
        columns = [
            frame[name] if name == "seed" else frame[name].astype(float).fillna(math.inf)
            for name in names
        ]
        index = pd.MultiIndex.from_arrays(columns)
        if index.has_duplicates:
            raise ValueError(f"two rows have the same {names}: {index[index.duplicated()][0]}")
        levels = [np.unique(column.to_numpy()) for column in columns]
        shape = tuple(len(level) for level in levels)
        full = frame[list(metrics)].set_axis(index).reindex(pd.MultiIndex.from_product(levels))
        return cls(
            axis=axis,
            grid=dict(zip(names[:-1], levels[:-1], strict=True)),
            seeds=tuple(int(seed) for seed in levels[-1]),
            metrics={m: full[m].to_numpy(dtype=np.float64).reshape(shape) for m in metrics},
        )

    def at(self, **settings: Setting) -> Curve:
        """The part of the curve at one value of each named setting.

        Raises:
            ValueError: An unknown setting, or a value that was not swept.
        """
        metrics, grid = dict(self.metrics), dict(self.grid)
        for name, setting in settings.items():
            if name not in grid:
                raise ValueError(f"no setting {name!r}; the curve has {list(grid)}")
            wanted = math.inf if setting is None else float(setting)
            place = np.flatnonzero(grid[name] == wanted)
            if len(place) == 0:
                raise ValueError(f"{name} = {setting} was not swept; values: {grid[name].tolist()}")
            dim = list(grid).index(name)
            grid[name] = grid[name][place]
            metrics = {key: np.take(metric, place, axis=dim) for key, metric in metrics.items()}
        return self._with(grid, metrics)

    def along(self, axis: str) -> Curve:
        """The same numbers read along another setting: the sample-wise or epoch-wise view of a
        grid.

        Raises:
            ValueError: An unknown setting.
        """
        if axis not in self.grid:
            raise ValueError(f"no setting {axis!r}; the curve has {list(self.grid)}")
        dim = list(self.grid).index(axis)
        grid = {axis: self.grid[axis], **self.grid}
        metrics = {key: np.moveaxis(metric, dim, 0) for key, metric in self.metrics.items()}
        return self._with(grid, metrics)

    def lines(self) -> Iterator[Curve]:
        """One curve for each combination of the other settings, the first values first."""
        others = {name: values for name, values in self.grid.items() if name != self.axis}
        for combination in itertools.product(*others.values()):
            yield self.at(**dict(zip(others, combination, strict=True)))

    def best(self, setting: str, *, by: str) -> Curve:
        """Takes at each point and seed the value of a setting with the lowest metric ``by``, and
        drops the setting.

        With ``by="validation_error"`` this is the ridge or the stopping time that a user would have
        chosen.

        Raises:
            ValueError: An unknown setting or metric, or the setting is the axis.
        """
        if setting not in self.grid or setting == self.axis:
            raise ValueError(f"setting must be one of {list(self.grid)[1:]}, got {setting!r}")
        if by not in self.metrics:
            raise ValueError(f"by must be one of {sorted(self.metrics)}, got {by!r}")
        dim = list(self.grid).index(setting)
        score = np.where(np.isnan(self.metrics[by]), np.inf, self.metrics[by])
        chosen = np.expand_dims(score.argmin(axis=dim), dim)
        grid = {name: values for name, values in self.grid.items() if name != setting}
        metrics = {
            key: np.take_along_axis(metric, chosen, axis=dim).squeeze(dim)
            for key, metric in self.metrics.items()
        }
        return self._with(grid, metrics)

    def runs(self, metric: str) -> Array:
        """One metric of a curve that is a single line, ``(V, S)``.

        Raises:
            ValueError: An unknown metric, or the curve has several lines.
        """
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {sorted(self.metrics)}, got {metric!r}")
        several = {k: v.tolist() for k, v in self.grid.items() if k != self.axis and len(v) > 1}
        if several:
            raise ValueError(f"the curve has several lines, choose with at(...): {several}")
        return self.metrics[metric].reshape(len(self.values), len(self.seeds))

    def median(self, metric: str) -> Array:
        """Median over the seeds that gave a result, ``(V,)``; NaN where none did."""
        return nan_median(self.runs(metric))

    def frame(self) -> pd.DataFrame:
        """One row a point and seed: the settings, ``seed`` and the metrics."""
        index = pd.MultiIndex.from_product(
            [*self.grid.values(), self.seeds], names=[*self.grid, "seed"]
        )
        flat = {name: metric.ravel() for name, metric in self.metrics.items()}
        return pd.DataFrame(flat, index=index).reset_index()

    def describe(self) -> str:
        """The settings other than the axis, in words; empty if there is none."""
        others = [(name, values) for name, values in self.grid.items() if name != self.axis]
        return ", ".join(f"{name} = {_spoken(values)}" for name, values in others)

    def plot(
        self,
        path: str | Path | None = None,
        *,
        metrics: Sequence[str] = ("test_error", "train_error"),
    ) -> Figure:
        """Draws medians over seeds along the axis, one colour a line, with bands from the lowest to
        the highest seed.

        Args:
            path: Where to save the figure; by default it is only returned.
            metrics: The first is solid, the others dashed.
        """
        from addis.analyze._plot import draw_curve

        figure = draw_curve(self, metrics)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _with(self, grid: Mapping[str, Array], metrics: Mapping[str, Array]) -> Curve:
        return Curve(
            axis=next(iter(grid)), grid=grid, seeds=self.seeds, metrics=metrics,
            failures=self.failures,
        )  # fmt: skip


def nan_median(runs: Array) -> Array:
    """Median over the last axis of what is not NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        return np.asarray(np.nanmedian(runs, axis=-1), dtype=np.float64)


def plain(value: Any) -> Any:
    """A scalar of NumPy or torch as Python's, whatever else as it is: what a store can hold."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def seeds_of(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds of a curve: ``0 ... seeds - 1``, or those given.

    Raises:
        TypeError: A seed that is no integer.
        ValueError: No seed, or one twice.
    """
    given = plain(seeds)
    runs = tuple(map(operator.index, range(given) if isinstance(given, int) else given))
    if not runs or len(set(runs)) < len(runs):
        raise ValueError(f"seeds must be at least one and all different, got {seeds}")
    return runs


def sorted_axis(
    name: str, values: Sequence[int | float], *, least: int = 1
) -> tuple[int | float, ...]:
    """The values as Python's numbers, rising and each once, with a warning if they were not given
    so.

    Raises:
        ValueError: Fewer than ``least`` different values, or a value that is not finite.
    """
    given = [plain(value) for value in values]
    if not all(math.isfinite(value) for value in given):
        raise ValueError(f"{name} must be finite, got {given}")
    ordered = sorted(set(given))
    if ordered != given:
        warnings.warn(f"{name} was sorted and repeated values dropped: {given}", stacklevel=3)
    if len(ordered) < least:
        raise ValueError(f"{name} needs at least {least} different values, got {ordered}")
    return tuple(ordered)


def _spoken(values: Array) -> str:
    spoken = ["no limit" if math.isinf(value) else f"{value:g}" for value in values]
    return spoken[0] if len(spoken) == 1 else "(" + ", ".join(spoken) + ")"
