"""What removes the bump of the deep nets of study 16: its curves, claims and table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from addis.analyze import Curve, Interval
from addis.analyze._intervals import bootstrap
from addis.studies._p16_curves import (
    Array,
    largest_rise,
    listed,
    of_trial,
    points,
    reach,
    stacked_curve,
)
from addis.study import Claim, Table, half_width

__all__ = ["Bump", "bump_claims", "bump_table", "final", "read_bump"]

LEAST = 0.03
"""Rise of the untreated nets' test error below which there is no bump to judge, as in D1."""

HALF = 0.5
"""What a remedy may leave of that rise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bump:
    """Test errors along width near the peak, without and with each remedy.

    Args:
        plain: The untreated nets, over ``steps``.
        decays: With weight decay, over ``steps``, by its strength, rising.
        clean: Trained on clean labels, over ``steps``; ``None`` if that was not run.
        votes: Error of the untreated nets' plurality vote, ``(V, E + 1)``: of all of them, then
            without each one.
        means: The same of their mean probabilities.
    """

    plain: Curve
    decays: dict[float, Curve]
    clean: Curve | None
    votes: Array
    means: Array

    @property
    def trained(self) -> dict[str, Curve]:
        """The curves of all nets that were trained, by what was done to them."""
        found = {"none": self.plain}
        found |= {f"weight decay {decay:g}": curve for decay, curve in self.decays.items()}
        return found | ({"clean labels": self.clean} if self.clean is not None else {})


def read_bump(results: pd.DataFrame) -> Bump | None:
    """The curves of the remedies' trials; ``None`` without untreated nets to compare with."""
    rows = of_trial(results, "remedy")
    rows = rows[rows["error"].isna()] if len(rows) else rows
    if len(rows) == 0:
        return None
    noisy, decay = rows["noise"] > 0, rows["weight_decay"].astype(float)
    plain, clean = rows[noisy & (decay == 0)].sort_values("k"), rows[~noisy]
    if len(plain) == 0:
        return None
    return Bump(
        plain=stacked_curve(plain, "k"),
        decays={
            float(strength): stacked_curve(rows[noisy & (decay == strength)], "k")
            for strength in np.unique(decay[noisy & (decay > 0)])
        },
        clean=stacked_curve(clean, "k") if len(clean) else None,
        votes=np.stack(plain["vote_error"].tolist()),
        means=np.stack(plain["mean_error"].tolist()),
    )


def final(curve: Curve) -> Curve:
    """At the end of training."""
    return curve.at(steps=float(curve.grid["steps"][-1]))


def bump_claims(results: pd.DataFrame) -> list[Claim]:
    """Whether weight decay, the strongest that was run, and a vote halve the deep nets' bump."""
    bump = read_bump(results)
    return [_decay_lowers(bump), _vote_lowers(bump)]


def _decay_lowers(bump: Bump | None) -> Claim:
    name, text = "D4 weight decay", _text("Weight decay")
    if bump is None or not bump.decays:
        return _unjudged(name, text, "no deep net was trained with weight decay")
    *weaker, (decay, curve) = bump.decays.items()
    plain, treated = _paired(final(bump.plain), final(curve))
    if note := _no_peak(plain.median("test_error")):
        return _unjudged(name, text, note)
    both = np.vstack([plain.runs("test_error"), treated.runs("test_error")])
    ratio = bootstrap(lambda m: _ratio(*np.split(m, 2)), both)
    note = f"weight decay {decay:g}, {len(treated.seeds)} seeds, " + "".join(
        f"{other:g} {points(final(line))}, " for other, line in weaker
    )
    return _judged(
        name, text, treated.values, plain.median("test_error"), treated.median("test_error"),
        ratio, note,
    )  # fmt: skip


def _vote_lowers(bump: Bump | None) -> Claim:
    name, text = "D4 ensemble", _text("A plurality vote")
    if bump is None:
        return _unjudged(name, text, "no ensemble of deep nets was trained")
    plain = final(bump.plain)
    runs, alone = plain.runs("test_error"), plain.median("test_error")
    if note := _no_peak(alone):
        return _unjudged(name, text, note)
    left_out = [
        _ratio(np.median(np.delete(runs, e, axis=1), axis=1), bump.votes[:, e + 1])
        for e in range(runs.shape[1])
    ]
    ratio = _jackknife(_ratio(alone, bump.votes[:, 0]), np.array(left_out))
    rise = largest_rise(bump.means[:, 0])
    note = f"{runs.shape[1]} nets, interval by leaving one out, mean probability rises {rise:.3f}, "
    return _judged(name, text, plain.values, alone, bump.votes[:, 0], ratio, note)


def _text(remedy: str) -> str:
    return (
        f"{remedy} lowers the peak of deep nets trained to the end with label noise: along the "
        "widths test error rises by at most half as much as without it, and its highest value is "
        "lower"
    )


def _unjudged(name: str, text: str, note: str) -> Claim:
    return Claim(id=name, text=text, paper=None, measured=None, holds=None, note=note)


def _no_peak(before: Array) -> str:
    rise = largest_rise(before)
    return "" if rise >= LEAST else f"no peak to lower: without it test error rises {rise:.3f}"


def _judged(
    name: str, text: str, widths: Array, before: Array, after: Array, ratio: Interval, note: str
) -> Claim:
    return Claim(
        id=name, text=text, paper="lowers it", measured=ratio.value,
        spread=(ratio.low, ratio.high), holds=ratio.value <= HALF and after.max() < before.max(),
        unit="largest rise in test error from any width to any larger one, over that without it",
        note=f"{note}rises {largest_rise(before):.3f} without it and {largest_rise(after):.3f} "
        f"with it, highest {before.max():.3f} and {after.max():.3f}, "
        f"k = {', '.join(f'{k:g}' for k in widths)}"
        + reach(ratio, HALF),
    )  # fmt: skip


def _ratio(before: Array, after: Array) -> float:
    """What is left of the largest rise; infinite where there was none, NaN where it is unknown."""
    rise = largest_rise(before)
    return math.inf if rise == 0 else largest_rise(after) / rise


def _paired(plain: Curve, treated: Curve) -> tuple[Curve, Curve]:
    """Both at the widths and seeds that they share."""
    widths = np.intersect1d(plain.values, treated.values)
    seeds = tuple(seed for seed in plain.seeds if seed in treated.seeds)

    def part(curve: Curve) -> Curve:
        rows = np.flatnonzero(np.isin(curve.values, widths))
        columns = [curve.seeds.index(seed) for seed in seeds]
        return Curve(
            axis=curve.axis, grid={**curve.grid, curve.axis: widths}, seeds=seeds,
            metrics={name: m[rows][..., columns] for name, m in curve.metrics.items()},
        )  # fmt: skip

    return part(plain), part(treated)


def _jackknife(whole: float, left_out: Array) -> Interval:
    """Student interval from the estimates without each of the seeds, ``(E,)``."""
    if not np.isfinite(left_out).all():
        return Interval(whole, -math.inf, math.inf)
    half = half_width(len(left_out) * whole - (len(left_out) - 1) * left_out)
    return Interval(whole, whole - half, whole + half)


def bump_table(results: pd.DataFrame) -> list[Table]:
    """Every remedy's errors at each width; no table where none was run."""
    bump = read_bump(results)
    if bump is None:
        return []
    rows = [
        {
            "deep nets": name, "runs": len(curve.seeds),
            "test error": points(final(curve)),
            "stopped early": points(curve.best("steps", by="validation_error")),
            "training error": points(final(curve), "train_error"),
        }
        for name, curve in bump.trained.items()
    ]  # fmt: skip
    nets = len(bump.plain.seeds)
    rows += [
        {
            "deep nets": f"{name} of {nets}", "runs": 1,
            "test error": listed(errors[:, 0], bump.plain.values),
            "stopped early": "", "training error": "",
        }
        for name, errors in (("plurality vote", bump.votes), ("mean probability", bump.means))
    ]  # fmt: skip
    return [
        Table(
            name="deep_remedies", frame=pd.DataFrame(rows),
            caption="What removes the deep nets' peak: medians over seeds at the widths about it.",
        )
    ]  # fmt: skip
