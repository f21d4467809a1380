"""The figures of study 16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from addis.analyze import (
    TWO_SPEEDS,
    Curve,
    double_descent_verdict,
    interpolation_threshold,
)
from addis.studies._p16_bump import Bump, final, read_bump
from addis.studies._p16_curves import Curves, deep_curve, listed, of_trial, points
from addis.study import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["figures"]

_TEST, _TRAIN, _RIDGE, _STOP, _ENSEMBLE = "C3", "0.45", "C0", "C2", "C1"


def figures(results: pd.DataFrame) -> list[Figure]:
    """The deep nets where run, the paper's views on random features, and two later ones."""
    widths, samples = Curves(results, "p"), Curves(results, "n")
    drawn = []
    deep = deep_curve(results, "k")
    if deep is not None:
        drawn += [_deep_widths(deep), _deep_epochs(deep)]
    more = deep_curve(results, "samples")
    if more is not None:
        drawn.append(_deep_samples(more))
    drawn += [_model_wise(widths), _heat_map(widths), _sample_wise(samples)]
    drawn += [_effective(widths), _epoch_wise(results), _decomposition(results, widths.fixed)]
    bump = read_bump(results)
    return drawn if bump is None else [*drawn, _deep_remedies(bump)]


def _canvas(columns: int, height: float = 3.2) -> tuple[MatplotlibFigure, list[Axes]]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(3.4 * columns if columns > 1 else 5.2, height), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes in panels:
        axes.grid(alpha=0.25)
    return figure, list(panels)


def _line(
    axes: Axes, curve: Curve, metric: str, style: str, colour: str, label: str, **options: Any
) -> None:
    """Median over seeds, with a band from the lowest to the highest."""
    runs = curve.runs(metric)
    axes.plot(curve.values, curve.median(metric), style, color=colour, label=label, **options)
    axes.fill_between(
        curve.values, np.nanmin(runs, 1), np.nanmax(runs, 1), color=colour, alpha=0.13, lw=0
    )


def _log_ticks(axes: Axes, places: Iterable[float]) -> None:
    """Ticks at these places alone, written out."""
    chosen = list(places)
    axes.set_xticks(chosen, [f"{place:g}" for place in chosen])
    axes.minorticks_off()


def _told(curve: Curve) -> str:
    """Where a curve of test errors starts, peaks and ends."""
    verdict = double_descent_verdict(curve)
    left, peak, end = verdict.left, verdict.peak, verdict.end
    middle = f"a peak of {peak.error:.2f} at {peak.value:g}" if peak else "no peak"
    return f"{left.error:.2f} at {left.value:g}, {middle}, {end.error:.2f} at {end.value:g}"


def _model_wise(curves: Curves) -> Figure:
    figure, panels = _canvas(len(curves.noises), 3.4)
    for axes, noise in zip(panels, curves.noises, strict=True):
        plain = curves.plain(noise)
        _line(axes, plain, "test_error", "o-", _TEST, "test, least squares", ms=3)
        _line(axes, plain, "train_error", "-", _TRAIN, "train, least squares", lw=1)
        names = ("test, ridge", "test, early stopping", f"test, ensemble of {curves.members}")
        for name, colour, (_, remedy) in zip(
            names, (_RIDGE, _STOP, _ENSEMBLE), curves.remedies(noise).items(), strict=False
        ):
            axes.plot(remedy.values, remedy.median("test_error"), "--", color=colour, label=name)
        axes.axvline(curves.fixed, color="k", lw=0.8, ls=":")
        fitted = interpolation_threshold(plain).value
        if np.isfinite(fitted):
            axes.axvline(fitted, color=_TRAIN, lw=0.8, ls=":")
        axes.set(xscale="log", xlabel="features p", ylim=(0, 1), title=f"label noise {noise:.0%}")
    panels[0].set_ylabel("error")
    panels[-1].legend(fontsize="x-small")
    return Figure(
        name="d_model_wise", figure=figure,
        alt="Test error against the number of random features, one panel for each noise level. "
        + "; ".join(
            f"noise {noise:.0%}: least squares {_told(curves.plain(noise))}, "
            f"ridge {_told(next(iter(curves.remedies(noise).values())))}"
            for noise in curves.noises
        ),
        caption=f"Model-wise. n = {curves.fixed}, medians over seeds and their range. Dotted: "
        "p = n, where the training loss reaches zero (black), and where the training error first "
        "reaches 0.1 (grey). Ridge and stopping time were chosen on clean validation images.",
    )  # fmt: skip


def _heat_map(curves: Curves) -> Figure:
    noise = curves.noises[-1]
    assert curves.steps is not None
    grid = curves.steps.at(noise=noise)
    figure, panels = _canvas(2, 3.4)
    for axes, metric in zip(panels, ("test_error", "train_error"), strict=True):
        median = np.nanmedian(grid.metrics[metric], axis=-1).reshape(len(grid.values), -1)
        mesh = axes.pcolormesh(
            grid.values, grid.grid["steps"], median.T, shading="nearest", cmap="magma_r"
        )
        figure.colorbar(mesh, ax=axes, pad=0.01)
        axes.axvline(curves.fixed, color="c", lw=1, ls=":")
        axes.set(xscale="log", yscale="log", xlabel="features p", title=metric.replace("_", " "))
        axes.grid(visible=False)
    panels[0].set_ylabel("epochs (full-batch gradient steps)")
    first, last = (
        curves.steps.at(noise=noise, steps=float(t)) for t in grid.grid["steps"][[0, -1]]
    )
    return Figure(
        name="e_epochs_width", figure=figure,
        alt="Heat maps of test and training error over width and epochs. Test error after "
        f"{grid.grid['steps'][0]:g} epochs: {_told(first)}; after {grid.grid['steps'][-1]:g}: "
        f"{_told(last)}.",
        caption=f"Epochs and width, label noise {noise:.0%}. Gradient descent in closed form; "
        "dotted: p = n.",
    )  # fmt: skip


def _sample_wise(curves: Curves) -> Figure:
    noise = curves.noises[0]
    figure, (axes,) = _canvas(1)
    _line(axes, curves.plain(noise), "test_error", "o-", _TEST, "least squares", ms=3)
    _line(axes, curves.plain(noise), "train_error", "-", _TRAIN, "train, least squares", lw=1)
    remedy = next(iter(curves.remedies(noise).values()))
    _line(axes, remedy, "test_error", "s--", _RIDGE, "ridge", ms=3)
    axes.axvline(curves.fixed, color="k", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="samples n", ylabel="error", ylim=(0, 1))
    doublings = curves.fixed * 2.0 ** np.arange(-9, 10)
    _log_ticks(axes, doublings[(doublings >= remedy.values[0]) & (doublings <= remedy.values[-1])])
    axes.legend(fontsize="x-small")
    return Figure(
        name="f_sample_wise", figure=figure,
        alt=f"Test error against samples. Least squares: {_told(curves.plain(noise))}; ridge: "
        f"{_told(remedy)}.",
        caption=f"Sample-wise. p = {curves.fixed} features, label noise {noise:.0%}; dotted: "
        "n = p.",
    )  # fmt: skip


def _effective(curves: Curves) -> Figure:
    figure, panels = _canvas(2)
    told = []
    for noise, colour in zip(curves.noises, ("C0", "C1", "C3"), strict=False):
        plain = curves.plain(noise)
        error, sizes = plain.median("test_error"), plain.median("parameters_test")
        for axes, x in ((panels[0], plain.values), (panels[1], sizes)):
            for side, mark, label in (
                (plain.values <= curves.fixed, "o-", f"noise {noise:.0%}, p up to n"),
                (plain.values >= curves.fixed, "^--", f"noise {noise:.0%}, p from n"),
            ):
                axes.plot(x[side], error[side], mark, color=colour, ms=3, lw=1, label=label)
            axes.set(xscale="log", ylim=(0, 1))
        most = int(np.nanargmax(sizes))
        told.append(
            f"noise {noise:.0%}: {sizes[0]:.0f} effective parameters at p = {plain.values[0]:g}, "
            f"at most {sizes[most]:.0f} at p = {plain.values[most]:g}, {sizes[-1]:.0f} at p = "
            f"{plain.values[-1]:g}"
        )
    panels[0].set(xlabel="features p", ylabel="test error")
    panels[1].set(xlabel="effective parameters on test inputs")
    panels[0].legend(fontsize="xx-small")
    return Figure(
        name="g_effective_parameters", figure=figure,
        alt="The same test errors against features, left, and effective parameters, right. "
        + "; ".join(told),
        caption="The same points against effective parameters (Curth et al. 2023): where those "
        "fall again past p = n, a wider model is a simpler one and the second descent folds back.",
    )  # fmt: skip


def _epoch_wise(results: pd.DataFrame) -> Figure:
    rows = of_trial(results, "epochs")
    risk = np.mean([np.asarray(r) for r in rows[rows["error"].isna()]["risk"]], axis=0)
    steps = torch.arange(20_001)
    figure, (axes,) = _canvas(1)
    axes.plot(steps + 1, TWO_SPEEDS.risk(steps), color=_TEST, label="one step size")
    equal = TWO_SPEEDS.risk(steps, equalised=True)
    axes.plot(steps + 1, equal, "--", color=_RIDGE, label="equal speeds")
    shown = np.unique(np.geomspace(1, len(risk), 25).astype(int)) - 1
    axes.plot(shown + 1, risk[shown], "k.", ms=4, label="Monte Carlo")
    axes.set(xscale="log", xlabel="gradient steps + 1", ylabel="excess risk", ylim=(0, 1.4))
    axes.legend(fontsize="x-small")
    return Figure(
        name="h_epoch_wise", figure=figure,
        alt="Risk over gradient steps: down, up, down with one step size for all features; one "
        "lower minimum with equal speeds.",
        caption="Epoch-wise, exactly solvable (Heckel and Yilmaz 2021): features learnt at two "
        "speeds superpose two U-curves; equal speeds leave one.",
    )  # fmt: skip


def _decomposition(results: pd.DataFrame, n: int) -> Figure:
    rows = of_trial(results, "parts")
    rows = rows[rows["error"].isna()].sort_values("width")
    names = [str(c) for c in rows if str(c).startswith("part_") and rows[c].notna().any()]
    names.sort(key=lambda name: (name != "part_bias", name.count("x")))
    figure, (axes,) = _canvas(1, 3.4)
    for number, name in enumerate(names):
        label = name.removeprefix("part_").replace("x", " x ")
        axes.plot(
            rows["width"], rows[name].astype(float), "o-" if "x" not in label else "--",
            ms=3, color="k" if name == "part_bias" else f"C{number}", label=label,
        )  # fmt: skip
    axes.axvline(n, color="k", lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="features p", ylabel="part of the test loss")
    axes.legend(fontsize="xx-small", ncols=2)
    noise = float(rows["noise"].iloc[0])
    return Figure(
        name="i_decomposition", figure=figure,
        alt="Bias and variances of the test loss against width. Largest: "
        + ", ".join(
            f"{name.removeprefix('part_').replace('x', ' x ')} {values.max():.2g} at p = "
            f"{rows['width'].iloc[int(np.argmax(values))]}"
            for name, values in ((name, rows[name].astype(float).to_numpy()) for name in names)
        ),
        caption=f"Where the peak comes from, label noise {noise:.0%}: the test loss split into "
        "bias and the variances due to initialisation, sampling, label noise and their "
        "interactions (Adlam and Pennington 2020). With few draws the bias at the peak still "
        "holds a share of the variance.",
    )  # fmt: skip


def _deep_widths(curve: Curve) -> Figure:
    final = curve.at(steps=float(curve.grid["steps"][-1]))
    early = curve.best("steps", by="validation_error")
    figure, (axes,) = _canvas(1)
    _line(axes, final, "test_error", "o-", _TEST, "test, end of training", ms=3)
    _line(axes, early, "test_error", "s--", _STOP, "test, stopped early", ms=3)
    _line(axes, final, "train_error", "-", _TRAIN, "train, end of training", lw=1)
    axes.set(xlabel="width k", ylabel="error", ylim=(0, None), xscale="log")
    _log_ticks(axes, final.values)
    axes.legend(fontsize="x-small")
    return Figure(
        name="a_deep_widths", figure=figure,
        alt="Test error of convolutional nets against width, at the end of training: "
        f"{points(final)}; stopped early: {points(early)}; training error at the end: "
        f"{points(final, 'train_error')}.",
        caption="Deep nets, model-wise: medians over seeds and their range.",
    )  # fmt: skip


def _deep_epochs(curve: Curve) -> Figure:
    chosen = [curve.values[i] for i in (0, len(curve.values) // 2 - 1, -1)]
    turned = curve.along("steps")
    figure, panels = _canvas(len(chosen))
    for axes, k in zip(panels, chosen, strict=True):
        line = turned.at(k=float(k))
        _line(axes, line, "test_error", "-", _TEST, "test")
        _line(axes, line, "train_error", "-", _TRAIN, "train", lw=1)
        axes.set(xscale="log", xlabel="gradient steps", title=f"k = {k:g}", ylim=(0, 1))
    panels[0].set_ylabel("error")
    panels[-1].legend(fontsize="x-small")
    return Figure(
        name="b_deep_epochs", figure=figure,
        alt="Test and training error of convolutional nets over gradient steps at three widths.",
        caption="Deep nets, epoch-wise, from the same runs.",
    )  # fmt: skip


def _deep_samples(curve: Curve) -> Figure:
    final = curve.at(steps=float(curve.grid["steps"][-1]))
    figure, (axes,) = _canvas(1)
    _line(axes, final, "test_error", "o-", _TEST, "test, end of training", ms=3)
    _line(axes, final, "train_error", "-", _TRAIN, "train, end of training", lw=1)
    axes.set(xscale="log", xlabel="samples n", ylabel="error", ylim=(0, None))
    _log_ticks(axes, final.values)
    axes.legend(fontsize="x-small")
    return Figure(
        name="c_deep_samples", figure=figure,
        alt="Test error of convolutional nets against the number of samples: "
        f"{points(final)}; training error: {points(final, 'train_error')}.",
        caption="Deep nets, sample-wise, at one width.",
    )  # fmt: skip


def _deep_remedies(bump: Bump) -> Figure:
    figure, (axes,) = _canvas(1, 3.4)
    early = bump.plain.best("steps", by="validation_error")
    lines = {name: final(curve) for name, curve in bump.trained.items()} | {"stopped early": early}
    colours = {"none": _TEST, "stopped early": _STOP, "clean labels": _TRAIN}
    blues = iter(("C9", "C0", "C4", "C8"))
    told = []
    for name, line in lines.items():
        colour = colours.get(name) or next(blues)
        _line(axes, line, "test_error", "o-" if name == "none" else "s--", colour, name, ms=3)
        told.append(f"{name} {points(line)}")
    nets = len(bump.plain.seeds)
    vote, widths = bump.votes[:, 0], bump.plain.values
    axes.plot(widths, vote, "^-", color=_ENSEMBLE, ms=4, label=f"vote of {nets}")
    told.append(f"plurality vote of {nets} {listed(vote, widths)}")
    axes.set(xlabel="width k", ylabel="test error", ylim=(0, None), xscale="log")
    _log_ticks(axes, widths)
    axes.legend(fontsize="x-small", ncols=2)
    return Figure(
        name="j_deep_remedies", figure=figure,
        alt="Test error of convolutional nets against width about their peak: "
        + "; ".join(told) + ".",
        caption="What removes the deep nets' peak: medians over seeds and their range. The "
        "stopping time was chosen on clean validation images; the others were trained to the end.",
    )  # fmt: skip
