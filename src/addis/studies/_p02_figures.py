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
    "occlusion 4": "C4",
    "occlusion 14": "C4",
    "random": "0.6",
    "grad-cam": "C5",
    "guided backprop": "C6",
}
CASCADE_ONLY = ("grad-cam", "guided backprop")
SHOWN = (
    "saliency", "blurred saliency", "integrated gradients", "grad-cam", "grad-cam same layer",
    "occlusion 4", "occlusion 14", "iba 1", "iba 10", "iba 100", "iba readout",
)  # fmt: skip


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
    columns: int, *, width: float = 3.4, height: float = 3.3, **options: Any
) -> tuple[MatplotlibFigure, list[Axes]]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(max(5.2, width * columns), height), layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _title(scene: str) -> str:
    return scene.removeprefix("torchvision/").replace("_", " ")


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
    panels[0].set_ylabel("probability of the class,\n1 untouched, 0 all replaced")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=4 if len(settings) < 3 else 7,
        fontsize=8,
    )
    return Figure(
        name="degradation",
        figure=figure,
        alt="Curves of the normalised class probability while tiles are replaced. Solid lines, "
        "least relevant first, fall late; dashed lines, most relevant first, fall at once. The "
        "random map's two lines lie together between them.",
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
    panels[0].set_ylabel("degradation score of an image")
    panels[0].legend(fontsize=8)
    return Figure(
        name="bits",
        figure=figure,
        alt="Points of single images, bits against degradation score, in three clouds: larger beta "
        "lets fewer bits through, and the scores of the three clouds are much alike.",
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
        alt="Bars of each method's localisation score, sorted. The bottlenecks and the blurred "
        "saliency stand near the top, the random map on the dotted line of chance at the bottom.",
        caption="Where the maps point (red: the bottleneck, blue: the blurred-saliency control, "
        "dotted: chance; whiskers 95 % over images).",
    )


def _cascade(results: Results, scenes: list[str]) -> Figure:
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
    panels[0].set_ylabel("similarity to the map\nof the trained net")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
    )
    return Figure(
        name="sanity",
        figure=figure,
        alt="Similarity of each method's map to the original as layers are randomised from the "
        "last to the first: it falls for the bottleneck and Grad-CAM, later for gradient methods.",
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
        alt=f"A grid of heat maps: {rows} images in rows, methods in columns. Bottleneck maps are "
        "smooth and quiet outside the object, gradient maps are grainy.",
        caption=f"{_title(scene)}: maps of the first images, each scaled by its own maximum "
        "(signed maps red and blue).",
    )
