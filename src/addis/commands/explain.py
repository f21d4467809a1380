"""``addis explain``: shows which regions of a photo a classifier used."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from addis.commands._photo_model import PhotoModel
    from addis.explain import Attribution, Layer

__all__ = ["explain"]


def explain(
    photo: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    model: str = "imagenet_squeezenet1_0",
    weights: Path | None = None,
    size: int | None = None,
    layer: str = "auto",
    target: str | None = None,
    method: str = "iba",
    stats: Path | None = None,
    calibration: Path | None = None,
    beta: float = 10.0,
    steps: int = 10,
    seed: int = 0,
    device: str = "cpu",
    out: Path = Path("overlay.png"),
) -> None:
    """Shows which regions of a photo a classifier used, in bits, and writes the picture.

    The information bottleneck adds noise to one layer until the class would be lost; what still
    passes is counted in bits and drawn over the photo. The mean and spread of the layer come from
    calibration images, which should look like those that the model was trained on.

    Args:
        photo: Image file.
        model: Name of a model of addis, "timm/NAME", "torchvision/NAME", or "module:factory".
        weights: File of weights; without it the model's published ones are used.
        size: Side of the model's input in pixels; by default what is known of the model.
        layer: Layer to restrict (or to read, for CAM methods); "auto" chooses one and says why.
        target: Class to explain, by index or name; by default the predicted one.
        method: "iba", or a baseline: see addis.explain.BASELINES.
        stats: File of layer statistics (.safetensors): read if it is there, else estimated and
            written.
        calibration: Folder of images for the statistics; by default the sample photos of
            ADDIS_DATA.
        beta: Weight of the information against the class; more means fewer bits.
        steps: Updates of the mask.
        seed: Seed of what the method draws, noise or masks.
        device: Torch device.
        out: PNG file to write.
    """
    from rich.console import Console

    from addis.commands._calibration import statistics
    from addis.commands._photo_model import open_photo, photo_model
    from addis.explain import BASELINES, InformationBottleneck, find_layer

    if method != "iba" and method not in BASELINES:
        raise ValueError(f"method must be iba or one of {', '.join(BASELINES)}, got {method!r}")
    console = Console(highlight=False, soft_wrap=True)
    image = open_photo(photo)
    network = photo_model(model, weights, size, device)
    x = network.prepare(image)
    index, chance, note = _class(network, x, target)
    console.print(f"{photo}: class {network.name(index)}, probability {chance:.3f}{note}")
    if method == "iba":
        place = find_layer(network.module, layer, x)
        iba = InformationBottleneck(network.module, place.name, beta=beta, steps=steps, seed=seed)
        iba.stats, source = statistics(network, place.name, stats, calibration)
        found = iba.attribute(x, index)
        console.print(f"{_told(place)}; {source}")
        console.print(f"{float(found.total_bits[0]):,.1f} bits pass")
    else:
        found, read = _baseline(network, x, index, method, layer, seed)
        where = f"{_told(read)}; " if read else ""
        console.print(f"{where}{method}: relevance without a unit")
    title = f"{method}: {network.name(index)}, p = {chance:.3f}"
    console.print(f"wrote {found.save_png(out, network.pixels(x), title=title)}")


def _class(network: PhotoModel, x: Tensor, target: str | None) -> tuple[int, float, str]:
    """The class to explain, its probability, and what to say of the choice."""
    import torch

    with torch.no_grad():
        chances = network.module(x).softmax(dim=1)[0]
    best = int(chances.argmax())
    if target is None:
        return best, float(chances[best]), " (the predicted class: no --target was given)"
    index = _index(target, network.classes, len(chances))
    note = "" if index == best else f"; predicted is {network.name(best)}, {chances[best]:.3f}"
    return index, float(chances[index]), note


def _index(target: str, classes: tuple[str, ...], count: int) -> int:
    import difflib

    if target.isdecimal():
        if int(target) >= count:
            raise ValueError(f"target must lie in [0, {count - 1}], got {target}")
        return int(target)
    names = [name.lower() for name in classes]
    if target.lower() in names:
        return names.index(target.lower())
    if not names:
        raise ValueError(
            f"target must be an index: this model's classes have no names, got {target!r}"
        )
    close = difflib.get_close_matches(target.lower(), names, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"target: no class {target!r}{hint}")


def _told(layer: Layer) -> str:
    return f"layer {layer.name} ({layer.reason})" if layer.reason else f"layer {layer.name}"


def _baseline(
    network: PhotoModel, x: Tensor, index: int, method: str, layer: str, seed: int
) -> tuple[Attribution, Layer | None]:
    """The map, and the layer from which it is read, if any."""
    import torch

    from addis.explain import BASELINES, CAMS, Attribution, find_layer, last_spatial_layer

    model, place = network.module, None
    if method in CAMS:
        last = layer in ("auto", "last")
        place = last_spatial_layer(model, x) if last else find_layer(model, layer, x)
        maps = CAMS[method](model, x, index, place.name)
    elif layer != "auto":
        raise ValueError(f"layer: method {method} reads the input, not a layer")
    else:
        draws = "seed" in inspect.signature(BASELINES[method]).parameters
        options: dict[str, Any] = {"seed": seed} if draws else {}
        maps = BASELINES[method](model, x, index, **options)
    found = Attribution(
        map=maps,
        total_bits=torch.full((1,), torch.nan),
        method=method,
        layer=place.name if place else "",
    )
    return found, place
