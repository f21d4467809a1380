"""The figures of study 02."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from addis.studies._p02_results import Results
from addis.study import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["figures"]

SERIES = {
    "iba 10": "C3",
    "blurred saliency": "C0",
    "grad-cam same layer": "C2",
    "saliency": "C1",
    "occlusion 8": "C4",
    "occlusion 28": "C4",
    "random": "0.6",
    "grad-cam": "C5",
    "guided backprop": "C6",
    "pattern attribution": "C8",
}
"""The larger of a scene's two patches, which is the stronger baseline, stands for occlusion."""
CASCADE_ONLY = ("guided backprop", "pattern attribution")
SHOWN = (
    "saliency", "blurred saliency", "integrated gradients", "grad-cam", "grad-cam same layer",
    "occlusion 8", "occlusion 28", "iba 1", "iba 10", "iba 100", "iba readout",
)  # fmt: skip
ACROSS = 3
"""Panels in a row: wider figures cannot be read on a page."""


def figures(frame: pd.DataFrame) -> list[Figure]:
    """Curves, bits against scores, the boxes, the cascade and the maps, of the scenes there are."""
    results = Results(frame)
    drawn = []
    curves = [
        (scene, column.split()[-1])
        for scene in results.scenes
        for column in results.frame.columns
        if column.startswith("iba 10/morf") and results.cells(scene, column)
    ]
    if curves:
        drawn.append(_curves(results, curves))
        drawn.append(_bits(results, curves))
    pointed = [
        (scene, measure)
        for scene in results.scenes
        for measure in ("bbox", "grid", "inside")
        if results.has(scene, "iba 10", measure) and (scene, measure) != ("watermark", "bbox")
    ]
    if pointed:
        drawn.append(_pointing(results, pointed))
    cascades = [s for s in results.scenes if results.has(s, "iba 10", "spearman")]
    if cascades:
        drawn.append(_cascade(results, cascades))
    drawn += [
        _maps(results, scene) for scene in results.scenes if _pictures(results, scene) is not None
    ]
    return drawn


def _canvas(
    count: int, *, width: float = 3.4, height: float = 3.0, **options: Any
) -> tuple[MatplotlibFigure, list[Axes]]:
    """A figure of ``count`` panels, as many in a row as can be read."""
    from matplotlib.figure import Figure as Canvas

    columns = min(count, ACROSS)
    rows = -(-count // columns)
    size = (max(5.2, width * columns), height * rows + 0.3)
    figure = Canvas(figsize=size, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.remove()
    panels = grid[:count]
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _title(scene: str) -> str:
    return scene.removeprefix("torchvision/").replace("_", " ")


def _ranked(results: Results, scene: str, measure: str) -> str:
    """The best three methods of a scene, the bottleneck and the controls, with their means."""
    found = {m: results.mean(scene, m, measure) for m in results.methods(scene, measure)}
    best = sorted(found, key=lambda m: -found[m])
    told = [m for i, m in enumerate(best) if i < 3 or m in ("iba 10", "blurred saliency", "random")]
    return ", ".join(f"{method} {found[method]:.2f}" for method in told)


def _curves(results: Results, settings: list[tuple[str, str]]) -> Figure:
    figure, panels = _canvas(len(settings), sharey=True)
    for axes, (scene, tile) in zip(panels, settings, strict=True):
        for method, colour in SERIES.items():
            if method in CASCADE_ONLY or not results.has(scene, method, f"morf {tile}"):
                continue
            x = results.cells(scene, f"{method}/x {tile}")[0]
            for side, style in (("lerf", "-"), ("morf", "--")):
                y = np.mean(results.cells(scene, f"{method}/{side} {tile}"), axis=0)
                label = method if side == "lerf" else None
                axes.plot(100 * x, y, style, color=colour, label=label, lw=1.4)
        axes.set_title(f"{_title(scene)}, {tile} px tiles", fontsize=9)
        axes.set_xlabel("tiles replaced by the mean colour, %")
    for axes in panels[::ACROSS]:
        axes.set_ylabel("probability of the class,\n1 untouched, 0 all replaced")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
    )
    return Figure(
        name="degradation",
        figure=figure,
        alt="Curves of the normalised class probability while tiles are replaced, solid least "
        "relevant first, dashed most relevant first. Areas between the two: "
        + "; ".join(
            f"{_title(scene)}, {tile} px: " + _ranked(results, scene, f"degradation {tile}")
            for scene, tile in settings
        ),
        caption="LeRF (solid) and MoRF (dashed). The area between a method's two lines is its "
        "degradation score.",
    )


def _bits(results: Results, settings: list[tuple[str, str]]) -> Figure:
    figure, panels = _canvas(len(settings))
    for axes, (scene, tile) in zip(panels, settings, strict=True):
        for beta, colour in ((1, "C0"), (10, "C3"), (100, "C2")):
            method = f"iba {beta}"
            bits = results.get(scene, method, "bits")
            score = results.get(scene, method, f"degradation {tile}")
            axes.scatter(bits, score, s=9, alpha=0.55, color=colour, label=f"beta {beta}", lw=0)
            axes.scatter(bits.mean(), score.mean(), s=90, marker="X", color=colour, ec="k", lw=0.7)
        axes.set_xscale("log")
        axes.set_xlabel("information that passes, bits an image")
        axes.set_title(f"{_title(scene)}, {tile} px tiles", fontsize=9)
    for axes in panels[::ACROSS]:
        axes.set_ylabel("degradation score of an image")
    panels[0].legend(fontsize=8)
    return Figure(
        name="bits",
        figure=figure,
        alt="Points of single images, bits against degradation score, in a cloud for each beta. "
        + "; ".join(
            f"{_title(scene)}, {tile} px: "
            + ", ".join(
                f"beta {beta} {results.mean(scene, f'iba {beta}', 'bits'):,.0f} bits, score "
                f"{results.mean(scene, f'iba {beta}', f'degradation {tile}'):.2f}"
                for beta in (1, 10, 100)
            )
            for scene, tile in settings
        ),
        caption="What beta buys: bits that pass against the degradation score, one point an image, "
        "crosses the means.",
    )


def _pointing(results: Results, settings: list[tuple[str, str]]) -> Figure:
    rows = max(len(results.methods(s, m)) for s, m in settings)
    figure, panels = _canvas(len(settings), width=4.2, height=1.2 + 0.22 * rows)
    names = {
        "bbox": "share of the top pixels in the box",
        "grid": "positive relevance in the right cell",
        "inside": "positive relevance near the mark",
    }
    for axes, (scene, measure) in zip(panels, settings, strict=True):
        methods = sorted(
            results.methods(scene, measure), key=lambda m: results.mean(scene, m, measure)
        )
        values = [results.get(scene, m, measure) for m in methods]
        colours = [
            "C3" if m.startswith("iba") else "C0" if m == "blurred saliency" else "0.7"
            for m in methods
        ]
        error = [1.96 * np.nanstd(v) / len(v) ** 0.5 for v in values]
        axes.barh(methods, [np.nanmean(v) for v in values], xerr=error, color=colours, ecolor="0.3")
        chance = 0.25 if measure == "grid" else results.number(scene, "area")
        axes.axvline(chance, color="k", lw=1, ls=":")
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlabel(names[measure])
        axes.set_title(_title(scene), fontsize=9)
    return Figure(
        name="pointing",
        figure=figure,
        alt="Bars of each method's localisation score, sorted. "
        + "; ".join(f"{_title(s)}, {names[m]}: {_ranked(results, s, m)}" for s, m in settings),
        caption="Where the maps point (red: the bottleneck, blue: the blurred-saliency control, "
        "dotted: chance; whiskers 95 % over images).",
    )


def _cascade(results: Results, scenes: list[str]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, panels = _canvas(3 * len(scenes), width=2.7, sharey=True)
    for i, scene in enumerate(scenes):
        for j, measure in enumerate(("spearman", "pearson", "ssim")):
            axes = panels[3 * i + j]
            for method in results.methods(scene, measure):
                y = results.get(scene, method, measure).mean(1)
                colour = SERIES.get(method)
                axes.plot(range(1, len(y) + 1), y, "o-", ms=3, lw=1.2, color=colour, label=method)
            axes.axhline(0, color="0.5", lw=0.8)
            axes.set_title(f"{_title(scene)}: {measure}", fontsize=9)
            axes.set_xlabel("layers randomised,\nfrom the last")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("similarity to the map\nof the trained net")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
    )
    return Figure(
        name="sanity",
        figure=figure,
        alt="Similarity of each method's map to the original as layers are randomised from the "
        "last to the first. Rank correlation after the last layer: "
        + "; ".join(
            f"{_title(scene)}: "
            + ", ".join(
                f"{m} {results.get(scene, m, 'spearman')[0].mean():.2f}"
                for m in results.methods(scene, "spearman")
            )
            for scene in scenes
        ),
        caption="Cascading randomisation by three similarities: they do not tell the same story.",
    )


def _pictures(results: Results, scene: str) -> Any:
    cells = results.cells(scene, "pictures")
    return cells[0] if cells else None


def _maps(results: Results, scene: str) -> Figure:
    from matplotlib.figure import Figure as Canvas

    pictures = _pictures(results, scene)
    methods = [m for m in SHOWN if results.has(scene, m, "maps")]
    rows = len(pictures)
    figure = Canvas(figsize=(1.25 * (len(methods) + 1), 1.2 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, len(methods) + 1, squeeze=False)
    for r in range(rows):
        picture = np.moveaxis(pictures[r], 0, -1)
        grid[r][0].imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1)
        for c, method in enumerate(methods, 1):
            values = results.cells(scene, f"{method}/maps")[0][r]
            top = np.abs(values).max() or 1.0
            signed = values.min() < 0
            grid[r][c].imshow(
                values, cmap="RdBu_r" if signed else "magma", vmin=-top if signed else 0, vmax=top
            )
        for axes in grid[r]:
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, name in zip(grid[0], ("image", *methods), strict=True):
        axes.set_title(name.replace(" ", "\n", 1), fontsize=7)
    return Figure(
        name="maps-" + scene.replace("/", "-"),
        figure=figure,
        alt=f"A grid of heat maps: {rows} images in rows, in columns "
        + ", ".join(("the image", *methods)),
        caption=f"{_title(scene)}: maps of the first images, each scaled by its own maximum "
        "(signed maps red and blue).",
    )
