"""The figures of study 24."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from addis.studies._p24_claims import finished, with_features
from addis.study import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["figures"]

_ORDER = (
    "global",
    "tuned global",
    "deep supervision",
    "pred",
    "sim",
    "predsim",
    "pred-bpf",
    "sim-bpf",
    "predsim-bpf",
    "predsim-bpf 0.99",
)
_COLOURS = {
    "global": "0.35",
    "tuned global": "0.6",
    "deep supervision": "C4",
    "pred": "C0",
    "sim": "C1",
    "predsim": "C2",
    "pred-bpf": "C9",
    "sim-bpf": "C8",
    "predsim-bpf": "C5",
    "predsim-bpf 0.99": "C6",
    "checkpoint": "C3",
}


def figures(results: pd.DataFrame) -> list[Figure]:
    """Errors, probes, kept bytes, time, and depth where its runs are there."""
    runs = finished(results)
    drawn = []
    if not runs.empty:
        drawn += [_bars(runs[runs["blocks"] == 0]), _probes(runs[runs["blocks"] == 0])]
    kept = results[(results["function"] == "memory") & results["error"].isna()]
    if not kept.empty:
        drawn.append(_memory(kept))
    timed = results[(results["function"] == "cost") & results["error"].isna()]
    if not timed.empty:
        drawn.append(_time(timed.iloc[0]))
    if (runs["blocks"] > 0).any():
        drawn.append(_depth(runs))
    return drawn


def _canvas(
    columns: int, *, height: float = 3.4, width: float = 3.8, sharey: bool = False
) -> tuple[MatplotlibFigure, list[Axes]]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(max(5.2, width * columns), height), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=sharey)[0]
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure, list(panels)


def _groups(runs: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    pairs = runs.groupby(["source", "net"], sort=False)
    return [(str(source), str(net), group) for (source, net), group in pairs]


def _bars(runs: pd.DataFrame) -> Figure:
    groups = [g for g in _groups(runs) if not g[1].startswith("resnet")]
    figure, panels = _canvas(len(groups), height=3.8, width=4.4)
    for axes, (source, net, group) in zip(panels, groups, strict=True):
        ways = [way for way in _ORDER if (group["way"] == way).any()]
        for i, way in enumerate(ways):
            errors = group[group["way"] == way].groupby("seed")["test_error"].mean()
            axes.bar(i, errors.mean(), color=_COLOURS[way], alpha=0.85)
            axes.plot(np.full(len(errors), i), errors, "k_", markersize=9)
        axes.set_xticks(range(len(ways)), ways, rotation=50, ha="right", fontsize=8)
        axes.set_title(f"{net}, {source}", fontsize=10)
        axes.set_ylabel("test error, %")
    return Figure(
        name="errors",
        figure=figure,
        alt="Bars of the mean test error of each way; a panel a network, a dash a seed.",
        caption="Test error by way of training; dashes are seeds. global is the paper's baseline, "
        "tuned global has SGD, weight decay and a cosine, deep supervision the heads of predsim.",
    )


def _probes(runs: pd.DataFrame) -> Figure:
    groups = [g for g in _groups(runs) if g[1] not in ("mlp",) and not g[1].startswith("resnet")]
    figure, panels = _canvas(len(groups), width=5.2)
    for axes, (source, net, group) in zip(panels, groups, strict=True):
        for way in ("global", "deep supervision", "pred", "sim", "predsim"):
            curves = [np.asarray(p, dtype=float) for p in group[group["way"] == way]["probes"]]
            curves = [curve for curve in curves if len(curve)]
            if not curves:
                continue
            stacked = np.stack(curves)
            blocks = np.arange(1, stacked.shape[1] + 1)
            axes.plot(blocks, stacked.mean(0), "o-", color=_COLOURS[way], label=way, markersize=3)
            axes.fill_between(
                blocks, stacked.min(0), stacked.max(0), color=_COLOURS[way], alpha=0.12
            )
        axes.set_xlabel("block")
        axes.set_ylabel("test error of a linear probe, %")
        axes.set_xticks(blocks)
        axes.set_title(f"{net}, {source}", fontsize=10)
        axes.legend(fontsize=8)
    return Figure(
        name="probes",
        figure=figure,
        alt="Lines of a linear classifier's error on each block's features, by way of training.",
        caption="What each block's features are good for: test error of a ridge classifier on at "
        "most 256 pooled features of a block; shaded from the least to the greatest seed.",
    )


def _memory(kept: pd.DataFrame) -> Figure:
    figure, panels = _canvas(2)
    deepest, largest = int(kept["depth"].max()), int(kept["batch"].max())
    views = (
        ("batch", kept[kept["depth"] == deepest], f"images a step ({deepest} convolutions)"),
        ("depth", kept[kept["batch"] == largest], f"convolutions ({largest} images a step)"),
    )
    labels = {
        "global": "back-propagation",
        "checkpoint": "checkpointed",
        "pred": "pred",
        "predsim": "predsim",
    }
    for axes, (key, rows, label) in zip(panels, views, strict=True):
        rows = rows.sort_values(key)
        for way, name in labels.items():
            axes.plot(
                rows[key], rows[f"{way}_mib"], "o-", color=_COLOURS[way], label=name, markersize=4
            )
        axes.set_xlabel(label)
        axes.set_ylabel("kept for backward, MiB")
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    return Figure(
        name="memory",
        figure=figure,
        alt="Kept MiB against batch size and against depth; the local lines stay low and flat.",
        caption="Bytes kept for backward at the peak, of nets of equal convolutions (64 channels, "
        "32x32 pixels). Back-propagation grows with depth, checkpointing with its root, local not.",
    )


def _time(row: pd.Series[Any]) -> Figure:
    ways = [way for way in _ORDER if f"time {way}" in row.index and not pd.isna(row[f"time {way}"])]
    figure, (axes,) = _canvas(1, height=3.6)
    axes.bar(
        range(len(ways)),
        [row[f"time {w}"] for w in ways],
        color=[_COLOURS[w] for w in ways],
        alpha=0.85,
    )
    axes.plot(
        range(len(ways)),
        [row[f"flops {w}"] for w in ways],
        "kD",
        markersize=5,
        label="multiply-adds",
    )
    axes.axhline(1, color="0.35", linewidth=1)
    axes.set_xticks(range(len(ways)), ways, rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("over back-propagation")
    axes.legend(fontsize=8)
    return Figure(
        name="time",
        figure=figure,
        alt="Bars of a step's time over back-propagation's, with diamonds of its multiply-adds.",
        caption=f"Time of a step (bars) and its multiply-adds (diamonds) over a step of "
        f"back-propagation, which takes {row['ms global']:.0f} ms here: {row['net']} of width "
        f"{row['width']:g}, {int(row['batch'])} images of {int(row['side'])} pixels.",
    )


def _depth(runs: pd.DataFrame) -> Figure:
    runs = with_features(runs)
    cut = runs[runs["blocks"] > 0]
    nets = list(dict.fromkeys(cut["net"]))
    figure, panels = _canvas(len(nets), width=5.2)
    for axes, net in zip(panels, nets, strict=True):
        rows = cut[cut["net"] == net]
        least = sorted(set(rows["blocks"]))
        for way in ("pred", "predsim"):
            table = rows[rows["way"] == way].pivot_table(
                index="seed", columns="blocks", values="features"
            )
            if table.empty:
                continue
            axes.plot(range(len(least)), table.mean(), "o-", color=_COLOURS[way], label=way)
            for _, errors in table.iterrows():
                axes.plot(range(len(least)), errors, ".", color=_COLOURS[way], alpha=0.5)
        whole = runs[
            (runs["net"] == net)
            & (runs["way"] == "global")
            & (runs["epochs"] == rows["epochs"].iloc[0])
        ]
        if not whole.empty:
            axes.axhline(whole["features"].mean(), color="0.35", linestyle="--", label="global")
        axes.set_xticks(
            range(len(least)), ["whole" if k >= 100 else f"k = {int(k)}" for k in least]
        )
        axes.set_xlabel("least layers a block")
        axes.set_ylabel("test error of a linear probe, %")
        axes.set_title(net, fontsize=10)
        axes.legend(fontsize=8)
    return Figure(
        name="depth",
        figure=figure,
        alt="Lines of a linear classifier's error on the last features against the size of the "
        "blocks, for pred and predsim.",
        caption="Error of a linear probe on what the output layer reads, by the least number of "
        "layers a block; dots are seeds, whole is one block. InfoPro found that greedy losses lose "
        "as blocks shrink.",
    )
