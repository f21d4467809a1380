"""The trials of study 02: each makes the maps of one or all methods and asks every metric of them.

Results are named ``METHOD/METRIC``; a metric is an array over images unless it says otherwise:
``bbox``, ``grid``, ``inside`` (share of the relevance near the mark), ``degradation T`` and
``road T`` (normalised LeRF - MoRF with tiles of T pixels, mean and noisy linear fill),
``sensitivity`` (n = 10 % of the tiles, an image's correlation), ``sensitivity pooled`` (a number),
``bits``, ``kept``, ``left`` and ``tenth`` (class probabilities), ``spearman``, ``ssim`` and
``pearson`` ``(L, N)``, ``x T``, ``morf T`` and ``lerf T`` ``(S,)``, ``maps`` and ``ms``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from addis import explain
from addis.studies._p02_methods import Bottleneck, Explain, explainers, readout
from addis.studies._p02_scenes import Scene, Skipped, cifar, digits, photos, watermark
from addis.study import Value

__all__ = [
    "CASCADED", "Cascade", "Digits", "Masked", "Methods", "Watermark", "cascade", "digits_table",
    "masked", "methods_of", "table", "watermark_table",
]  # fmt: skip

CASCADED = (
    "saliency", "blurred saliency", "grad-cam", "guided backprop", "pattern attribution", "iba 10"
)  # fmt: skip
"""Methods of the sanity check."""
SHOWN = 4
"""Images whose maps are kept for the figure."""
NEAR = 6
"""Pixels about the mark that count as near it: the restricted layer sees 4 to each side, and its
mask is blurred by a kernel that reaches 2 further.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Digits on noise: training, then every method."""

    seed: int
    images: int = 32
    epochs: int = 8
    tile: int = 4
    steps: int = 12
    road_steps: int = 6
    cascaded: int = 12
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """One method on one pretrained net: ``scene`` is the name of the model."""

    scene: str
    method: str
    images: int
    tiles: tuple[int, ...]
    steps: int = 100
    road: tuple[int, ...] = ()
    road_steps: int = 20
    subsets: int = 100
    mosaics: int = 0
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """What all methods' most relevant positions keep of the class, on one pretrained net."""

    scene: str
    images: int
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """Cascading randomisation of one pretrained ResNet for one method."""

    scene: str
    method: str
    images: int
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """Fashion-MNIST whose label is a planted mark, every method."""

    seed: int
    images: int = 60
    device: str = "cpu"


def digits_table(args: Digits) -> Mapping[str, Value]:
    """Every measure of every method on digits with a net of their own."""
    scene = digits(args.seed, images=args.images, epochs=args.epochs).to(args.device)
    found: dict[str, Value] = {"scene": "digits", "accuracy": scene.accuracy}
    assert scene.boxes is not None
    _, _, h, w = scene.x.shape
    area = (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1) / (h * w)
    found["area"] = float(area.double().mean())
    found["pictures"] = _numbers(scene.pictures[:SHOWN])
    drops = _drops(scene, args.tile, 50, args.seed)
    methods = explainers(scene, args.seed)
    attributions: dict[str, explain.Attribution] = {}
    for name, method in methods.items():
        attributions[name], measures = _timed(scene, method)
        maps = attributions[name].map
        measures["bbox"] = _numbers(explain.bbox_ratio(maps, scene.boxes))
        measures |= _degradation(scene, maps, (args.tile,), args.steps, args.seed, "mean")
        measures |= _degradation(
            scene, maps, (args.tile,), args.road_steps, args.seed, "noisy_linear"
        )
        measures |= _sensitivity(drops, maps)
        found |= {f"{name}/{key}": value for key, value in measures.items()}
    found |= _kept(scene, attributions, methods["iba 10"], args.seed)
    few = slice(args.cascaded)
    for name in CASCADED:
        found |= _cascade(scene, name, methods[name], few, None, args.seed)
    return found


def table(args: Methods) -> Mapping[str, Value]:
    """Every measure of one method on one pretrained net."""
    try:
        scene = _scene(args.scene, args.images, args.device)
    except Skipped as reason:
        return {"skipped": str(reason)}
    found: dict[str, Value] = {"accuracy": scene.accuracy}
    if args.method == "random":
        found["pictures"] = _small(scene.pictures[:SHOWN])
    method = _method(scene, args.method, args.seed)
    attribution, measures = _timed(scene, method)
    maps = attribution.map
    measures |= _degradation(scene, maps, args.tiles, args.steps, args.seed, "mean")
    measures |= _degradation(scene, maps, args.road, args.road_steps, args.seed, "noisy_linear")
    drops = _drops(scene, args.tiles[0], args.subsets, args.seed)
    measures |= _sensitivity(drops, maps)
    if args.mosaics and args.method != "iba readout":  # it is trained at one size of input
        measures["grid"] = _grid(scene, args.method, args.mosaics, args.seed)
    return found | {f"{args.method}/{key}": value for key, value in measures.items()}


def masked(args: Masked) -> Mapping[str, Value]:
    """The class probability kept by the positions that each method calls most relevant."""
    try:
        scene = _scene(args.scene, args.images, args.device)
    except Skipped as reason:
        return {"skipped": str(reason)}
    methods = explainers(scene, args.seed)
    attributions = {
        name: _attributed(scene, method)
        for name, method in methods.items()
        if name not in ("iba 1", "iba 100", "smoothgrad")
    }
    return _kept(scene, attributions, methods["iba 10"], args.seed)


def cascade(args: Cascade) -> Mapping[str, Value]:
    """Similarity of a method's maps as the net is randomised block by block from the last layer."""
    scene = _scene(args.scene, args.images, args.device)
    method = _method(scene, args.method, args.seed)
    if isinstance(method, Bottleneck):
        # Its statistics are taken anew for each randomised net; 500 images keep that short.
        method = Bottleneck(scene.layer, scene.calibration[:500], method.beta, args.seed)
    blocks = [
        name
        for name, module in scene.model.named_modules()
        if name.count(".") <= 1 and any(True for _ in module.parameters())
        and name and name not in ("layer1", "layer2", "layer3")
    ]  # fmt: skip
    return _cascade(scene, args.method, method, slice(None), blocks, args.seed)


def watermark_table(args: Watermark) -> Mapping[str, Value]:
    """Share of each map's positive relevance that lies near the mark that decides the label."""
    scene = watermark(args.seed, images=args.images).to(args.device)
    assert scene.boxes is not None
    _, _, h, w = scene.x.shape
    x0, y0, x1, y1 = (scene.boxes[:, i, None] for i in range(4))
    rows, columns = torch.arange(h), torch.arange(w)
    down = (rows >= y0 - NEAR) & (rows < y1 + NEAR)
    across = (columns >= x0 - NEAR) & (columns < x1 + NEAR)
    near = (down[:, :, None] & across[:, None, :]).to(args.device)
    found: dict[str, Value] = {
        "scene": "watermark", "accuracy": scene.accuracy, "area": float(near.double().mean()),
        "pictures": _numbers(scene.pictures[:SHOWN]),
    }  # fmt: skip
    for name, method in explainers(scene, args.seed).items():
        attribution, measures = _timed(scene, method)
        maps = attribution.map
        positive = maps.double().clamp_min(0)
        share = (positive * near).sum((1, 2)) / positive.sum((1, 2)).clamp_min(1e-300)
        measures["inside"] = _numbers(share)
        measures["bbox"] = _numbers(explain.bbox_ratio(maps, scene.boxes))
        found |= {f"{name}/{key}": value for key, value in measures.items()}
    return found


def methods_of(scene: str) -> tuple[str, ...]:
    """Names of the methods that :func:`table` takes for a scene."""
    patches = (4, 8) if scene.startswith("cifar10") else (14, 28)
    nothing = torch.empty(0)
    blank = Scene(
        torch.nn.Identity(), nothing, nothing, nothing, layer="", last="", patches=patches,
        pictures=nothing,
    )  # fmt: skip
    names = tuple(explainers(blank, 0))
    if scene == "cifar10_resnet20":
        return (*names, "rise", "iba readout")
    if scene.startswith("cifar10"):
        return names
    # On photos a method takes minutes: three of the cheaper variants are left to CIFAR-10.
    spared = ("gradient x input", "hirescam same layer", "layercam same layer")
    return tuple(name for name in names if name not in spared)


def _scene(name: str, images: int, device: str) -> Scene:
    build = cifar if name.startswith("cifar10") else photos
    return build(name, images=images).to(device)


def _method(scene: Scene, name: str, seed: int) -> Explain:
    """A method by its name in :func:`methods_of`: two are too dear for every scene."""
    if name == "iba readout":
        return readout(scene, seed)
    if name == "rise":
        return partial(explain.rise, masks=1000, seed=seed)
    return explainers(scene, seed)[name]


def _attributed(scene: Scene, method: Explain) -> explain.Attribution:
    """The scene's maps; those of a method other than the bottleneck have no unit."""
    if isinstance(method, Bottleneck):
        return method.attribute(scene.model, scene.x, scene.target)
    maps = method(scene.model, scene.x, scene.target)
    return explain.Attribution(
        map=maps, total_bits=maps.new_full((len(maps),), torch.nan), method=""
    )


def _timed(scene: Scene, method: Explain) -> tuple[explain.Attribution, dict[str, Value]]:
    """The scene's maps, what they took, and what the figure needs of them."""
    method(scene.model, scene.x[:2], scene.target[:2])  # statistics, traces, caches
    start = time.perf_counter()
    found = _attributed(scene, method)
    if found.map.is_cuda:
        torch.cuda.synchronize(found.map.device)
    took = (time.perf_counter() - start) * 1e3 / len(scene.x)
    measures: dict[str, Value] = {"ms": took, "maps": _small(found.map[:SHOWN, None])[:, 0]}
    if found.capacity is not None:
        measures["bits"] = _numbers(found.total_bits)
    return found, measures


def _numbers(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()


def _small(images: Tensor) -> NDArray[np.float64]:
    side = min(images.shape[-1], 112)
    return _numbers(torch.nn.functional.adaptive_avg_pool2d(images.float(), side))


def _degradation(
    scene: Scene, maps: Tensor, tiles: tuple[int, ...], steps: int, seed: int, fill: explain.Fill
) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for tile in tiles:
        curve = explain.degradation(
            scene.model, scene.x, scene.target, maps, tile=tile, steps=steps, fill=fill,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        if fill == "noisy_linear":
            found[f"road {tile}"] = _numbers(curve.scores)
            continue
        found[f"degradation {tile}"] = _numbers(curve.scores)
        found[f"x {tile}"] = _numbers(curve.fractions)
        found[f"morf {tile}"] = _numbers(curve.normalised(curve.morf.mean(0)))
        found[f"lerf {tile}"] = _numbers(curve.normalised(curve.lerf.mean(0)))
    return found


def _drops(scene: Scene, tile: int, subsets: int, seed: int) -> explain.SubsetDrops:
    """Drops for sets of a tenth of the tiles, the same sets for every method of a seed."""
    count = explain.Tiling(scene.x.shape[2], scene.x.shape[3], tile).count
    return explain.subset_drops(
        scene.model, scene.x, scene.target, tile=tile, ns=[max(1, round(count / 10))],
        subsets=subsets, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def _sensitivity(drops: explain.SubsetDrops, maps: Tensor) -> dict[str, Value]:
    return {
        "sensitivity": _numbers(drops.per_image(maps)[:, 0]),
        "sensitivity pooled": float(drops.pooled(maps)[0]),
    }


def _grid(scene: Scene, name: str, count: int, seed: int) -> NDArray[np.float64]:
    """Grid pointing on 2x2 mosaics; a bottleneck's statistics are those of mosaics too."""
    made = explain.mosaics(
        scene.x, scene.target, count=count, generator=torch.Generator().manual_seed(seed)
    )
    cell = torch.arange(count) % 4
    target = made.targets[torch.arange(count), cell]
    method = _method(scene, name, seed)
    if isinstance(method, Bottleneck):
        parts = scene.calibration[: len(scene.calibration) // 4 * 4]
        _, c, h, w = parts.shape
        grids = parts.view(-1, 2, 2, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(-1, c, 2 * h, 2 * w)
        method = Bottleneck(scene.layer, grids, method.beta, seed)
    maps = method(scene.model, made.images, target)
    return _numbers(explain.grid_pointing(maps, cell))


def _kept(
    scene: Scene, attributions: Mapping[str, explain.Attribution], iba: Explain, seed: int
) -> dict[str, Value]:
    """Class probability with every position under 1 % of the maximum bits replaced by noise, then
    with as many positions replaced in the order of each other map; and with a tenth kept by each.
    """
    capacity = attributions["iba 10"].capacity
    assert isinstance(iba, Bottleneck)
    assert capacity is not None
    bottleneck = iba.on(scene.model)
    cells = capacity.sum(1)
    threshold = 0.01 * cells.flatten(1).amax(1)
    base = explain.masked_prediction(
        bottleneck, scene.x, scene.target, cells, threshold=threshold, seed=seed
    )
    found: dict[str, Value] = {
        "iba 10/kept": _numbers(base.sufficient),
        "iba 10/left": _numbers(base.necessary),
        "kept fraction": float(base.kept.mean()),
        "full": float(base.full.mean()),
    }
    for name, attribution in attributions.items():
        if name.startswith("iba 10 "):  # other layers have cells of their own
            continue
        relevance = attribution.map
        tenth = explain.masked_prediction(
            bottleneck, scene.x, scene.target, relevance, keep=0.1, necessary=False, seed=seed
        )
        found[f"{name}/tenth"] = _numbers(tenth.sufficient)
        if name == "iba 10":
            continue
        part = explain.masked_prediction(
            bottleneck, scene.x, scene.target, relevance, keep=base.kept, seed=seed
        )
        found[f"{name}/kept"] = _numbers(part.sufficient)
        found[f"{name}/left"] = _numbers(part.necessary)
    return found


def _cascade(
    scene: Scene, name: str, method: Explain, few: slice, layers: list[str] | None, seed: int
) -> dict[str, Value]:
    result = explain.cascade_randomization(
        scene.model, method, scene.x[few], scene.target[few], layers=layers, seed=seed
    )
    return {
        f"{name}/spearman": _numbers(result.spearman),
        f"{name}/ssim": _numbers(result.ssim),
        f"{name}/pearson": _numbers(result.pearson),
    }
