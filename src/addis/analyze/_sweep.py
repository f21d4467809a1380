"""Sweeps of any training procedure along width, depth, epochs, samples, noise or a setting of one's
own.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292: model-wise,
epoch-wise and sample-wise curves.
Departures: the epoch-wise curve is recorded during one run a seed; samples and label noise are
nested within a seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from addis.analyze._curve import Curve, Failure, plain, seeds_of, sorted_axis
from addis.analyze._data import Labelled, nested_sample, take
from addis.analyze._label_noise import LabelNoise

__all__ = ["Config", "Plain", "sweep"]

Plain: TypeAlias = "int | float | str | bool | None"
Metrics: TypeAlias = "Mapping[str, float | Sequence[float]]"
Map = Callable[[Callable[[Any], Mapping[str, Any]], Sequence[Any]], Iterable[Mapping[str, Any]]]

_LEAST_VALUES = 5
_FAILED = "failed"  # the key under which a run says why it gave no metrics


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one run: plain data, so that any process or store can hold it.

    >>> config = Config(axis="width", value=8, seed=0, fixed=(("lr", 0.1),))
    >>> config["width"], config["lr"]
    (8, 0.1)

    Args:
        axis: The swept axis.
        value: Where on it; of an axis ``"epochs"`` the last value.
        seed: Of initialisation, data order and whatever else the procedure draws.
        fixed: The settings that all runs share.
        checkpoints: Of an axis ``"epochs"``: after which epochs to report, rising; else empty.
    """

    axis: str
    value: int | float
    seed: int
    fixed: tuple[tuple[str, Plain], ...] = ()
    checkpoints: tuple[int | float, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """The value of the axis or of a fixed setting.

        Raises:
            KeyError: There is no such setting.
        """
        if name == self.axis:
            return self.value
        settings = dict(self.fixed)
        if name not in settings:
            raise KeyError(f"no setting {name!r}; there are {[self.axis, *settings]}")
        return settings[name]


def sweep(
    procedure: Callable[[Any, Config], Metrics],
    dataset: Labelled,
    *,
    axis: str,
    values: Sequence[int | float],
    fixed: Mapping[str, Plain] | None = None,
    seeds: int | Sequence[int] = 3,
    map: Map = map,
) -> Curve:
    """Runs a training procedure at each value of an axis and each seed.

    Three axes have a meaning of their own, here and in ``fixed``. ``"samples"``: the procedure
    receives that many of the samples; of one seed the larger sample holds the smaller one.
    ``"noise"``: it receives the data set as a :class:`LabelNoise` with the run's seed (before the
    sample is drawn, so a sample's label does not depend on the sample's size). ``"epochs"``, as
    axis: one run a seed, which reports each metric after each of ``config.checkpoints``. Any other
    name is the procedure's own.

    A run that raises an exception, or returns NaN or what is no number, is recorded in ``failures``
    with NaN in its place, and the others go on. So is a run that leaves out a metric that another
    returned, with NaN for that metric.

    >>> from torch.utils.data import TensorDataset
    >>> import torch
    >>> def procedure(data, config):
    ...     gap = abs(config["width"] - len(data) / 10)
    ...     return {"test_error": 1 / (1 + gap)}
    >>> data = TensorDataset(torch.rand(40, 2), torch.arange(40) % 2)
    >>> curve = sweep(procedure, data, axis="width", values=[1, 2, 4, 8, 16])
    >>> curve.median("test_error").round(2).tolist()
    [0.25, 0.33, 1.0, 0.2, 0.08]

    Args:
        procedure: Takes a data set and a :class:`Config`, trains, and returns metrics by name:
            ``test_error``, ``train_error`` (on the labels it was given) and what else is of
            interest; lower is better. At module level if ``map`` sends it to other processes.
        dataset: Training data. Test data are the procedure's own, clean and apart, see
            :func:`check_disjoint`.
        axis: What varies.
        values: At least five different ones; sorted, with a warning, if they are not.
        fixed: Settings that all runs share.
        seeds: How many, or which, all different.
        map: Runs the points: ``map(function, points)`` gives results in order. Python's own runs
            them one by one; ``addis.study.mapper`` gives one over processes or Ray that keeps
            finished runs. The result of a run that failed has the one key ``"failed"``, with the
            reason: a map that keeps results must not keep that one, so that the run is tried again.

    Raises:
        ValueError: Fewer than five values, one that is not finite, samples beyond the data set,
            noise outside ``[0, 1)``, a seed twice, or the axis is among ``fixed``.
        RuntimeError: Every run failed; the message has the first reason.
    """
    shared = {name: plain(value) for name, value in (fixed or {}).items()}
    ordered = sorted_axis(axis, values, least=_LEAST_VALUES)
    _check_settings(axis, ordered, shared, len(dataset))
    runs = seeds_of(seeds)
    together = axis == "epochs"
    points = [
        Config(axis, value, seed, tuple(shared.items()), ordered if together else ())
        for value in (ordered[-1:] if together else ordered)
        for seed in runs
    ]
    work = functools.partial(_run, procedure=procedure, dataset=dataset)
    results = list(map(work, points))
    return _collected(axis, ordered, runs, points, results)


def _run(
    config: Config, *, procedure: Callable[[Any, Config], Metrics], dataset: Labelled
) -> dict[str, Any]:
    """One run's metrics, or why it failed."""
    settings: dict[str, Any] = {config.axis: config.value, **dict(config.fixed)}
    try:
        if "noise" in settings:
            dataset = LabelNoise(dataset, p=settings["noise"], seed=config.seed)
        if "samples" in settings:
            dataset = take(dataset, nested_sample(len(dataset), settings["samples"], config.seed))
        metrics = procedure(dataset, config)
        return {name: _number(name, value, config) for name, value in metrics.items()}
    except Exception as error:
        return {_FAILED: f"{type(error).__name__}: {error}"}


def _number(name: str, value: Any, config: Config) -> Any:
    if name == _FAILED:
        raise ValueError(f"a metric must not be named {_FAILED!r}")
    numbers = np.asarray(value, dtype=np.float64)
    shape = (len(config.checkpoints),) if config.checkpoints else ()
    if numbers.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} is {value}")
    return numbers if shape else float(numbers)


def _collected(
    axis: str,
    values: Sequence[int | float],
    seeds: tuple[int, ...],
    points: Sequence[Config],
    results: Sequence[Mapping[str, Any]],
) -> Curve:
    if len(results) != len(points):
        raise RuntimeError(f"map must give {len(points)} results, got {len(results)}")
    names = list(dict.fromkeys(name for result in results for name in result if name != _FAILED))
    reasons = [_why_failed(result, names) for result in results]
    failures = tuple(
        Failure(axis, float(point.value), point.seed, reason)
        for point, reason in zip(points, reasons, strict=True)
        if reason
    )
    if not names:
        raise RuntimeError(f"every run failed, first {failures[0] if failures else 'no metrics'}")
    metrics = {name: np.full((len(values), len(seeds)), math.nan) for name in names}
    for point, result in zip(points, results, strict=True):
        row = slice(None) if point.checkpoints else values.index(point.value)
        for name, value in result.items():
            if name != _FAILED:
                metrics[name][row, seeds.index(point.seed)] = value
    return Curve(
        axis=axis, grid={axis: np.asarray(values, dtype=np.float64)}, seeds=seeds, metrics=metrics,
        failures=failures,
    )  # fmt: skip


def _why_failed(result: Mapping[str, Any], names: Sequence[str]) -> str:
    """Why a run gave none or not all of the metrics; empty if it gave them."""
    if _FAILED in result:
        return str(result[_FAILED])
    absent = [name for name in names if name not in result]
    return f"it returned no {', '.join(absent)}" if absent else ""


def _check_settings(
    axis: str, values: Sequence[int | float], fixed: Mapping[str, Plain], size: int
) -> None:
    """Refuses values of the settings that this module acts on."""
    if axis in fixed:
        raise ValueError(f"axis {axis!r} must not be among fixed, got {list(fixed)}")
    settings: dict[str, Sequence[Any]] = {name: [value] for name, value in fixed.items()}
    settings[axis] = values
    for samples in settings.get("samples", ()):
        if not isinstance(samples, int) or not 1 <= samples <= size:
            raise ValueError(
                f"samples must be whole and in 1 ... {size}, the data set, got {samples}"
            )
    for noise in settings.get("noise", ()):
        if not 0.0 <= noise < 1.0:
            raise ValueError(f"noise must be in [0, 1), got {noise}")
