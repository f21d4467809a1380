"""The claims of study 24, from paired seeds, and the numbers beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from addis.study import Claim, Table, half_width

__all__ = ["claims", "finished", "tables", "tuned", "with_features"]

_CONV = frozenset({"vgg8b", "conv4"})


def claims(results: pd.DataFrame) -> list[Claim]:
    """P1 to P7 of the paper, the controls it lacks, and the depth of the split."""
    runs = finished(results)
    dataset = str(runs["source"].iloc[0]) if len(runs) else ""
    conv = _Errors(runs[runs["net"].isin(_CONV) & (runs["blocks"] == 0)], dataset)
    dense = _Errors(runs[(runs["net"] == "mlp")], dataset)
    judged = [
        conv.difference(
            "P1",
            "predsim has no more test error than the better of pred and sim on the conv net.",
            "predsim",
            ("pred", "sim"),
            paper=-0.47,
            low=-math.inf,
            high=0.0,
        ),
        conv.difference(
            "P2",
            "predsim has at most 0.5 points more test error than the paper's back-propagation "
            "on the conv net.",
            "predsim",
            ("global",),
            paper=0.12,
            low=-math.inf,
            high=0.5,
        ),
        conv.difference(
            "P2-tuned",
            "Against SGD with weight decay and a cosine, predsim still has at most 0.5 "
            "points more.",
            "predsim",
            ("tuned global",),
            paper=None,
            low=-math.inf,
            high=0.5,
        ),
        conv.difference(
            "P2-heads",
            "predsim has no more error than the same heads with nothing detached.",
            "predsim",
            ("deep supervision",),
            paper=None,
            low=-math.inf,
            high=0.0,
        ),
        dense.difference(
            "P3",
            "On the MLP back-propagation is better than predsim, by at most 0.5 points.",
            "predsim",
            ("global",),
            paper=0.17,
            low=0.0,
            high=0.5,
        ),
        conv.difference(
            "P4",
            "pred alone has over 0.5 points more error than back-propagation on the conv net.",
            "pred",
            ("global",),
            paper=1.13,
            low=0.5,
            high=math.inf,
        ),
    ]
    judged += _larger(conv, _runs(results))
    judged += [_kept(results), _cost(results), _plausible(conv), _weight_of_sim(conv), _depth(runs)]
    return judged


def finished(results: pd.DataFrame) -> pd.DataFrame:
    """The training runs that ended, the source as the data set's name; without those of more epochs
    or of a wider net than the others.
    """
    runs = _runs(results)
    return tuned(runs[~_above_least(runs, "epochs") & ~_above_least(runs, "width")])


def _runs(results: pd.DataFrame) -> pd.DataFrame:
    runs = results[(results["function"] == "train") & results["error"].isna()]
    return runs.assign(source=[_dataset(source) for source in runs["source"]])


def _above_least(runs: pd.DataFrame, axis: str) -> pd.Series[bool]:
    """Rows with more epochs, or more width, than the least of their net."""
    above: pd.Series[bool] = runs[axis] > runs.groupby(["source", "net"])[axis].transform("min")
    return above


def _dataset(source: object) -> str:
    return str(source[0]) if isinstance(source, tuple | list) else str(source)


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Keeps one learning rate of the tuned control: that of least mean validation error."""
    rows = runs["way"] == "tuned global"
    kept = [runs[~rows]]
    for _, group in runs[rows].groupby(["source", "net"]):
        best = group.groupby("lr")["validation_error"].mean().idxmin()
        kept.append(group[group["lr"] == best])
    return pd.concat(kept)


@dataclass(frozen=True)
class _Errors:
    """Test errors of one network on one data set."""

    runs: pd.DataFrame
    dataset: str

    def by_seed(self, way: str) -> pd.Series[float]:
        rows = self.runs[(self.runs["way"] == way) & (self.runs["source"] == self.dataset)]
        return rows.groupby("seed")["test_error"].mean()

    def difference(
        self,
        id: str,
        text: str,
        way: str,
        others: tuple[str, ...],
        *,
        paper: float | None,
        low: float,
        high: float,
    ) -> Claim:
        """Judges the mean over seeds of ``way`` less the other of least mean error."""
        found = {other: self.by_seed(other) for other in others}
        own = self.by_seed(way)
        if own.empty or any(series.empty for series in found.values()):
            return _unjudged(
                id, text, paper, "this scale has no such runs, or they failed", "points"
            )
        other = min(found, key=lambda name: float(found[name].mean()))
        paired = (own - found[other]).dropna()
        mean, spread = float(paired.mean()), half_width(paired.to_numpy())
        holds = bool(low <= mean <= high)
        least, most = mean - spread, mean + spread
        decided = low <= least and most <= high if holds else most < low or high < least
        note = f"{way} {own.mean():.2f} %, {other} {found[other].mean():.2f} %, {len(paired)} seeds"
        if not decided:
            note += "; the spread reaches over the threshold"
        return Claim(
            id=id,
            text=text,
            paper=paper,
            measured=round(mean, 3),
            spread=round(spread, 3),
            holds=holds,
            unit="points",
            note=note,
        )


def _unjudged(id: str, text: str, paper: float | str | None, why: str, unit: str = "") -> Claim:
    return Claim(id=id, text=text, paper=paper, measured=None, holds=None, unit=unit, note=why)


def _kept(results: pd.DataFrame) -> Claim:
    text = "predsim keeps fewer bytes for backward at the peak than back-propagation, conv net."
    rows = _of(results, "cost")
    if rows.empty:
        return _unjudged("P5", text, "less", "the cost trial failed", "of back-propagation's")
    row = rows.iloc[0]
    note = (
        f"pred {row['kept pred']:.2f}; checkpointing {row['kept checkpoint for predsim']:.2f}; "
        f"deep supervision {row['kept deep supervision']:.2f}; counted, so without spread"
    )
    return Claim(
        id="P5",
        text=text,
        paper="less",
        measured=round(float(row["kept predsim"]), 3),
        holds=bool(row["kept predsim"] < 1),
        unit="of back-propagation's",
        note=note,
    )


def _cost(results: pd.DataFrame) -> Claim:
    text = (
        "A step of predsim costs more multiply-adds than back-propagation's, one of pred fewer "
        "(VGG8B at full width, 32x32: 2.46 and 0.67)."
    )
    rows, timed = _of(results, "facts"), _of(results, "cost")
    if rows.empty:
        return _unjudged("P6", text, None, "the trial of the facts failed", "of back-propagation's")
    predsim, pred = float(rows["flops predsim"].iloc[0]), float(rows["flops pred"].iloc[0])
    note = f"pred {pred:.2f}; the paper reports no cost"
    if not timed.empty:
        row = timed.iloc[0]
        note += "; time on this scale's net: "
        note += f"predsim {row['time predsim']:.2f}, pred {row['time pred']:.2f}"
    return Claim(
        id="P6",
        text=text,
        paper=None,
        measured=round(predsim, 3),
        holds=pred < 1 < predsim,
        unit="of back-propagation's",
        note=note,
    )


def _larger(conv: _Errors, runs: pd.DataFrame) -> list[Claim]:
    """Whether the distance to back-propagation is that of a short training, or of a narrow net."""
    judged = []
    for axis, name, text in (
        ("epochs", "longer", "Trained for longer"),
        ("width", "wider", "On a wider net"),
    ):
        more = _Errors(runs[_above_least(runs, axis)], conv.dataset)
        gaps, told = [], []
        for errors in (conv, more):
            by_way = {way: errors.by_seed(way) for way in ("predsim", "pred", "global")}
            gaps.append(by_way["predsim"] - by_way["global"])
            told.append(
                f"at {errors.runs[axis].min():g} {axis} "
                + ", ".join(f"{way} {e.mean():.2f} %" for way, e in by_way.items() if not e.empty)
            )
        shrunk = (gaps[0] - gaps[1]).dropna()
        if shrunk.empty:
            continue
        mean, spread = float(shrunk.mean()), half_width(shrunk.to_numpy())
        note = "; ".join(told) + f"; {len(shrunk)} seeds in both"
        if abs(mean) <= spread:
            note += "; the spread reaches over 0"
        judged.append(
            Claim(
                id=f"P2-{name}",
                text=f"{text}, predsim comes nearer to back-propagation on the conv net.",
                paper=None,
                measured=round(mean, 3),
                spread=round(spread, 3),
                holds=bool(mean > 0),
                unit="points nearer",
                note=note,
            )
        )
    return judged


def _plausible(conv: _Errors) -> Claim:
    text = "predsim-bpf (beta 0.01) learns: at most 1.5 times the error of predsim on the conv net."
    own, other = conv.by_seed("predsim-bpf"), conv.by_seed("predsim")
    heavy = conv.by_seed("predsim-bpf 0.99")
    if own.empty or other.empty:
        return _unjudged("P7", text, None, "this scale has no such runs, or they failed", "times")
    ratio = (own / other).dropna()
    note = (
        f"predsim-bpf {own.mean():.2f} %, predsim {other.mean():.2f} %, with beta 0.99 "
        f"{heavy.mean():.2f} %; the paper's 7.80 % is of another data set and width"
    )
    return Claim(
        id="P7",
        text=text,
        paper=None,
        measured=round(float(ratio.mean()), 3),
        spread=round(half_width(ratio.to_numpy()), 3),
        holds=bool(ratio.mean() <= 1.5),
        unit="times",
        note=note,
    )


def _weight_of_sim(conv: _Errors) -> Claim:
    return conv.difference(
        "P7-beta",
        "The released beta of predsim-bpf, 0.01, has no more error than 0.99.",
        "predsim-bpf",
        ("predsim-bpf 0.99",),
        paper=None,
        low=-math.inf,
        high=0.0,
    )


def _depth(runs: pd.DataFrame) -> Claim:
    text = (
        "Cut into a block a layer, a network trained with pred has worse features at its end than "
        "as one block (error of a linear probe)."
    )
    rows = with_features(runs[(runs["way"] == "pred") & (runs["blocks"] > 0)])
    if rows.empty:
        return _unjudged("D1", text, "more", "this scale has no depth panel", "points")
    net = rows["net"].iloc[0]
    panel = rows[rows["net"] == net]
    table, errors = (
        panel.pivot_table(index="seed", columns="blocks", values=values)
        for values in ("features", "test_error")
    )
    paired, by_error = (
        (t[t.columns.min()] - t[t.columns.max()]).dropna().to_numpy() for t in (table, errors)
    )
    mean, spread = float(paired.mean()), half_width(paired)
    note = f"{net}: " + ", ".join(f"k={int(k)}: {v:.2f} %" for k, v in table.mean().items())
    note += (
        f"; {len(paired)} seeds; by test error, which was the measure until the small scale had "
        f"first run, {by_error.mean():+.2f} +- {half_width(by_error):.2f} points at a whole net's "
        f"{errors[errors.columns.max()].mean():.1f} %; InfoPro (Wang et al. 2021) reports it of "
        "greedy losses"
    )
    if abs(mean) <= spread:
        note += "; the spread reaches over 0"
    return Claim(
        id="D1",
        text=text,
        paper="more",
        measured=round(mean, 3),
        spread=round(spread, 3),
        holds=bool(mean > 0),
        unit="points",
        note=note,
    )


def with_features(runs: pd.DataFrame) -> pd.DataFrame:
    """The probed runs with a column ``features``: error of a probe on what the output layer reads.

    It leaves out how far the output layer itself was trained, which in a short training decides the
    test error of a net of few features.
    """
    has = np.array([len(np.atleast_1d(probes)) > 0 for probes in runs["probes"]], dtype=bool)
    probed = runs[has]
    return probed.assign(features=[float(np.asarray(p)[-1]) for p in probed["probes"]])


def _of(results: pd.DataFrame, function: str) -> pd.DataFrame:
    return results[(results["function"] == function) & results["error"].isna()]


def tables(results: pd.DataFrame) -> list[Table]:
    """Test errors of every way, and what was counted beside what was measured."""
    runs = finished(results)
    runs = runs[runs["blocks"] == 0]
    keys = ["source", "net", "way"]
    errors = runs.groupby(keys).agg(
        test_error=("test_error", "mean"),
        spread=("test_error", "std"),
        seeds=("seed", "nunique"),
        validation_error=("validation_error", "mean"),
        lr=("lr", "first"),
        step_ms=("step_seconds", lambda s: 1e3 * s.mean()),
    )
    found = [
        Table(
            name="errors",
            frame=errors.reset_index(),
            caption="Errors in percent, mean and standard deviation over seeds.",
        )
    ]
    counted, timed = _of(results, "facts"), _of(results, "cost")
    if not counted.empty:
        analytic = {
            "parameters": 8_903_434,
            "parameters predsim": 18_613_072,
            "forward GMAC an image": 0.95,
            "flops pred": 0.67,
            "flops predsim": 2.46,
        }
        frame = pd.DataFrame(
            {
                "fact": list(analytic),
                "by hand": list(analytic.values()),
                "counted": [float(counted[name].iloc[0]) for name in analytic],
            }
        )
        caption = "VGG8B at full width on 32x32 images; flops beside a step of back-propagation."
        found.append(Table(name="facts", frame=frame, caption=caption))
    if not timed.empty:
        row = timed.iloc[0]
        ways = [name.removeprefix("flops ") for name in row.index if str(name).startswith("flops ")]
        ways = [
            way for way in ways if f"time {way}" in row.index and not pd.isna(row[f"time {way}"])
        ]
        frame = pd.DataFrame(
            {
                "way": ways,
                **{m: [row[f"{m} {way}"] for way in ways] for m in ("flops", "time", "kept")},
            }
        )
        caption = "A step on this scale's net: multiply-adds, time and kept bytes over the global."
        found.append(Table(name="cost", frame=frame, caption=caption))
    return found
