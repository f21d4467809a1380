"""The claims and tables of study 16."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import stats

from addis.analyze import (
    TWO_SPEEDS,
    Mitigation,
    double_descent_verdict,
    interpolation_threshold,
    mitigation_panel,
    turning_points,
)
from addis.analyze._intervals import bootstrap
from addis.studies._p16_bump import bump_claims, bump_table
from addis.studies._p16_curves import (
    Curves,
    deep_curve,
    largest_rise,
    of_trial,
    reach,
    summary_row,
)
from addis.study import Claim, Table

__all__ = ["claims", "tables"]

HORIZON = torch.arange(20_001)
"""Steps over which the closed form is judged."""


def claims(results: pd.DataFrame) -> list[Claim]:
    """Judges every claim; those of scales without deep nets say so."""
    widths, samples = Curves(results, "p"), Curves(results, "n")
    return [
        *(_model_wise(widths, noise) for noise in widths.noises),
        *_height(results),
        _ridge_removes(widths),
        _folds_back(widths),
        _more_data_hurts(samples),
        _ridge_in_order(samples),
        _loss_complexity(results),
        _two_bumps(results),
        _equal_speeds(),
        *_deep(results),
        *bump_claims(results),
    ]


def _model_wise(curves: Curves, noise: float) -> Claim:
    curve = curves.plain(noise)
    verdict = double_descent_verdict(curve)
    n, end = curves.fixed, verdict.end.error
    peak, height = verdict.peak, verdict.height
    allowed = 0.0 if noise == 0 else 0.02
    holds = (
        peak is not None
        and height is not None
        and height.value >= 0.1
        and (end < verdict.left.error if noise == 0 else end <= verdict.left.error + allowed)
        and abs(peak.value - n) <= 0.05 * n
    )
    side = "below it" if noise == 0 else "within 0.02 of it"
    return Claim(
        id=f"M1 noise {noise:g}",
        text=(
            f"Along width, with {noise:.0%} label noise, test error peaks at p = n (within 5 %), "
            f"at least 0.10 above the left minimum, and its right end is {side}"
        ),
        paper="peak at the threshold, second descent below the first",
        measured=height.value if height else None,
        spread=(height.low, height.high) if height else None,
        holds=holds if height else None,
        unit="height of the peak in test error",
        note=(
            f"left minimum {verdict.left.error:.3f} at p = {verdict.left.value:g}, "
            + (f"peak {peak.error:.3f} at {peak.value:g}, " if peak else "no peak, ")
            + f"end {end:.3f} at {verdict.end.value:g}; n = {n}, {len(curve.seeds)} seeds"
            + (reach(height, 0.1) if height else "")
        ),
    )


def _height(results: pd.DataFrame) -> list[Claim]:
    """By test error, as the paper measures it, and by the squared loss, which does not saturate."""
    curve = Curves(results, "peak").ridge
    noises = curve.grid["noise"]
    found = []
    for name, metric, remark in (
        ("M2", "test_error", "guessing has 0.9, which leaves the errors little room to differ"),
        ("M2 loss", "test_loss", "predicting nothing has 0.9"),
    ):
        runs = curve.metrics[metric].reshape(len(noises), len(curve.seeds))
        least = bootstrap(lambda m: float(np.diff(m).min()), runs)
        pairs = zip(noises, np.median(runs, axis=1), strict=True)
        measure = metric.replace("_", " ")
        found.append(
            Claim(
                id=name,
                text=f"The peak in {measure}, at p = n, is higher with more label noise",
                paper="more noise, higher peak",
                measured=least.value,
                spread=(least.low, least.high),
                holds=least.value > 0,
                unit=f"smallest step in {measure} from one noise level to the next",
                note=", ".join(f"{value:.4g} at noise {noise:g}" for noise, value in pairs)
                + f"; {len(curve.seeds)} seeds; {remark}{reach(least, 0.0)}",
            )
        )
    return found


def _ridge_removes(curves: Curves) -> Claim:
    rows: list[Mitigation] = []
    for noise in curves.noises:
        name, remedy = next(iter(curves.remedies(noise).items()))
        rows += mitigation_panel(curves.plain(noise), {name: remedy})
    worst = max(rows, key=lambda row: row.excess.value)
    removed = [row.removed for row in rows]
    return Claim(
        id="M3",
        text=(
            "Ridge, chosen on clean validation images, removes the model-wise peak: from the left "
            "minimum on no width is more than 0.03 above that minimum"
        ),
        paper="optimal regularisation removes it (Nakkiran et al. 2020)",
        measured=worst.excess.value,
        spread=(worst.excess.low, worst.excess.high),
        holds=False if False in removed else None if None in removed else True,
        unit="largest excess in test error, worst noise level",
        note="; ".join(
            f"noise {noise:g}: {row.worst.error:.3f} at p = {row.worst.value:g}"
            for noise, row in zip(curves.noises, rows, strict=True)
        )
        + reach(worst.excess, 0.03),
    )


def _folds_back(curves: Curves) -> Claim:
    noise = curves.noises[-1]
    curve = curves.plain(noise)
    errors, sizes = curve.median("test_error"), curve.median("parameters_test")
    verdict = double_descent_verdict(curve)
    right = curve.values >= verdict.left.value
    rank = float(stats.spearmanr(sizes[right], errors[right]).statistic)
    falls = verdict.peak is not None and verdict.end.error < verdict.peak.error
    return Claim(
        id="U1",
        text="Past the threshold a more complex model has a lower test error",
        paper="holds when complexity is the number of parameters",
        measured=rank,
        holds=falls,
        unit="rank correlation of test error and effective parameters from the left minimum on",
        broken_by=(
            "A. Curth et al., NeurIPS 2023: measured by effective parameters on new inputs, "
            "complexity falls past p = n, and error rises with complexity on both sides"
            if falls and rank >= 0.9
            else ""
        ),
        note=(
            f"noise {noise:g}; effective parameters "
            + ", ".join(
                f"{sizes[i]:.0f} at p = {curve.values[i]:g}"
                for i in (0, int(np.nanargmax(sizes)), -1)
            )
        ),
    )


def _more_data_hurts(curves: Curves) -> Claim:
    curve, p = curves.plain(curves.noises[0]), curves.fixed
    half = int(np.flatnonzero(curve.values == p / 2)[0])
    full = int(np.flatnonzero(curve.values == p)[0])
    runs = curve.runs("test_error")[[half, full]]
    ratio = bootstrap(lambda m: float(m[1] / m[0]), runs)
    medians = curve.median("test_error")
    return Claim(
        id="S1",
        text=f"More data hurts: at p = {p}, twice the samples (n = {p}) at least double the error",
        paper="near the threshold four times the data do not help",
        measured=ratio.value,
        spread=(ratio.low, ratio.high),
        holds=ratio.value >= 2,
        unit="test error at n = p over that at n = p / 2",
        note=f"{medians[half]:.3f} at n = {p // 2}, {medians[full]:.3f} at n = {p}"
        + reach(ratio, 2.0),
    )


def _ridge_in_order(curves: Curves) -> Claim:
    (name, remedy), *_ = curves.remedies(curves.noises[0]).items()
    rise = bootstrap(largest_rise, remedy.runs("test_error"))
    medians = remedy.median("test_error")
    return Claim(
        id="S2",
        text="With ridge chosen on clean validation images, more data never hurt by more than 0.01",
        paper="optimal regularisation makes it monotone (Nakkiran et al. 2020)",
        measured=rise.value,
        spread=(rise.low, rise.high),
        holds=rise.value <= 0.01,
        unit="largest rise in test error from any sample size to any larger one",
        note=f"{medians[0]:.3f} at n = {remedy.values[0]:g}, {medians[-1]:.3f} at the end; {name}"
        + reach(rise, 0.01),
    )


def _loss_complexity(results: pd.DataFrame) -> Claim:
    rows = of_trial(results, "complexity")
    rows = rows[rows["error"].isna()]
    loss, error = (rows[rows["criterion"] == c].sort_values("width") for c in ("loss", "error"))
    gap = float((loss["emc"] - loss["width"]).abs().max())
    return Claim(
        id="C1",
        text="The effective model complexity of least squares, by its training loss, is exactly p",
        paper=0.0,
        measured=gap,
        holds=gap == 0,
        unit="largest difference to p, in samples",
        note="by training error at 0.1 it is "
        + ", ".join(f"{e} at p = {w}" for e, w in zip(error["emc"], error["width"], strict=True)),
    )


def _two_bumps(results: pd.DataFrame) -> Claim:
    rows = of_trial(results, "epochs")
    risk = np.mean([np.asarray(r) for r in rows[rows["error"].isna()]["risk"]], axis=0)
    closed = TWO_SPEEDS.risk(torch.arange(len(risk))).numpy()
    apart = float(np.max(np.abs(risk / closed - 1)))
    minima, maxima = turning_points(TWO_SPEEDS.risk(HORIZON))
    draws = int(rows["draws"].sum())
    return Claim(
        id="E1",
        text=(
            "Epoch-wise, the two-speed regression has exactly two minima and one maximum between, "
            "and Monte Carlo agrees with the closed form within 1 %"
        ),
        paper="down, up, down",
        measured=apart,
        holds=(len(minima), len(maxima)) == (2, 1) and apart <= 0.01,
        unit="largest relative difference of Monte Carlo and closed form",
        note=f"minima at steps {minima}, maximum at {maxima}; {draws} draws",
    )


def _equal_speeds() -> Claim:
    plain, equal = TWO_SPEEDS.risk(HORIZON), TWO_SPEEDS.risk(HORIZON, equalised=True)
    minima, maxima = turning_points(equal)
    best = float(equal.min())
    return Claim(
        id="E2",
        text="With step sizes that equalise the speeds one minimum is left, and it is lower",
        paper="removes it (Heckel and Yilmaz 2021)",
        measured=best,
        holds=(len(minima), len(maxima)) == (1, 0) and best < float(plain.min()),
        unit="lowest risk",
        note=f"minimum at step {minima}; with one step size for all {float(plain.min()):.4f}",
    )


def _deep(results: pd.DataFrame) -> list[Claim]:
    bump = (
        "Deep nets with label noise: test error at the end of training has a maximum inside the "
        "widths, at least 0.03 above the left minimum and within a factor 2 of the width that "
        "first fits the training set to 0.1; the widest net is at least 0.05 below it"
    )
    stopped = "Stopped early on clean validation images, wider deep nets are never worse by 0.02"
    curve = deep_curve(results, "k")
    if curve is None:
        note = "this scale trains no deep net"
        return [
            Claim(id=name, text=text, paper=None, measured=None, holds=None, note=note)
            for name, text in (("D1", bump), ("D2", stopped))
        ]
    final = curve.at(steps=float(curve.grid["steps"][-1]))
    verdict = double_descent_verdict(final)
    fitted = interpolation_threshold(final).value
    train = final.median("train_error")
    trained = ", ".join(f"{t:.2f} at k = {k:g}" for k, t in zip(final.values, train, strict=True))
    peak, height = verdict.peak, verdict.height
    observed = (
        peak is not None
        and height is not None
        and height.value >= 0.03
        and 0.5 <= peak.value / fitted <= 2
        and verdict.end.error <= peak.error - 0.05
    )
    early = curve.best("steps", by="validation_error")
    rise = bootstrap(largest_rise, early.runs("test_error"))
    return [
        Claim(
            id="D1", text=bump, paper="peak near the interpolation threshold",
            measured=height.value if height else 0.0,
            spread=(height.low, height.high) if height else None, holds=observed,
            unit="height of the maximum over the left minimum in test error",
            note=("" if observed else "not observed at this budget; ")
            + (f"maximum {peak.error:.3f} at k = {peak.value:g}, " if peak else "no maximum, ")
            + f"widest {verdict.end.error:.3f}; training error at the end {trained}"
            + (reach(height, 0.03) if height else ""),
        ),
        Claim(
            id="D2", text=stopped, paper="early stopping removes it", measured=rise.value,
            spread=(rise.low, rise.high), holds=rise.value <= 0.02,
            unit="largest rise in test error from any width to any larger one",
            note=f"{early.median('test_error')[0]:.3f} at k = {early.values[0]:g}, "
            f"{early.median('test_error')[-1]:.3f} at k = {early.values[-1]:g}"
            + reach(rise, 0.02),
        ),
        *_deep_samples(results),
    ]  # fmt: skip


def _deep_samples(results: pd.DataFrame) -> list[Claim]:
    curve = deep_curve(results, "samples")
    if curve is None:
        return []
    final = curve.at(steps=float(curve.grid["steps"][-1]))
    pairs = [
        (i, int(np.flatnonzero(final.values == 4 * n)[0]))
        for i, n in enumerate(final.values)
        if 4 * n in final.values
    ]
    if not pairs:
        return []
    gain = bootstrap(
        lambda m: float(np.max([m[i] - m[j] for i, j in pairs])), final.runs("test_error")
    )
    points = zip(final.median("test_error"), final.values, strict=True)
    width = next(iter(of_trial(results, "deep").query("axis == 'samples'")["k"]))
    return [
        Claim(
            id="D3",
            text="Near their critical width four times the images lower the deep nets' test error "
            "by no more than 0.01",
            paper="four times the data do not help",
            measured=gain.value,
            spread=(gain.low, gain.high),
            holds=gain.value <= 0.01,
            unit="largest fall in test error from n to 4 n",
            note=f"k = {width}: "
            + ", ".join(f"{error:.3f} at n = {n:g}" for error, n in points)
            + "; the claim was worded after the small scale's curve had been seen"
            + reach(gain, 0.01),
        )
    ]


def tables(results: pd.DataFrame) -> list[Table]:
    """The curves in numbers, the effective complexities, and what each remedy does."""
    widths, samples = Curves(results, "p"), Curves(results, "n")
    curves = [(f"width, noise {n:g}", widths.plain(n)) for n in widths.noises]
    curves += [(f"samples, noise {n:g}", samples.plain(n)) for n in samples.noises]
    for axis in ("k", "samples"):
        curve = deep_curve(results, axis)
        if curve is not None and len(curve.values) >= 5:
            curves.append((f"deep, {axis}", curve.at(steps=float(curve.grid["steps"][-1]))))
    emc = of_trial(results, "complexity")
    emc = emc[emc["error"].isna()]
    columns = ["width", "criterion", "eps", "emc", "emc_low", "emc_high", "status", "sizes"]
    return [
        Table(
            name="curves", frame=pd.DataFrame([summary_row(*pair) for pair in curves]),
            caption="Medians over seeds; heights with their 95 % bootstrap interval.",
        ),
        Table(
            name="complexity", frame=emc[columns].reset_index(drop=True),
            caption="Effective model complexity by its definition, with a 95 % interval.",
        ),
        Table(name="remedies", frame=_remedies(widths), caption="What removes the peak."),
        *bump_table(results),
    ]  # fmt: skip


def _remedies(curves: Curves) -> pd.DataFrame:
    rows = [
        {
            "noise": noise, "remedy": row.name, "test error at the peak": round(row.at_peak, 3),
            "worst": f"{row.worst.error:.3f} at {row.worst.value:g}",
            "excess over left minimum": str(row.excess), "removed": row.removed,
        }
        for noise in curves.noises
        for row in mitigation_panel(curves.plain(noise), curves.remedies(noise))
    ]  # fmt: skip
    return pd.DataFrame(rows)
