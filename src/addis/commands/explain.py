"""``addis explain``: shows which regions of a photo a classifier used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from addis.explain import Attribution, BottleneckStats

__all__ = ["explain"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LEAST = 1000
"""Calibration images below which the statistics are called rough, as the library does."""


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
        seed: Seed of the noise.
        device: Torch device.
        out: PNG file to write.
    """
    from rich.console import Console

    from addis.explain import BASELINES, InformationBottleneck, find_layer

    if method != "iba" and method not in BASELINES:
        raise ValueError(f"method must be iba or one of {', '.join(BASELINES)}, got {method!r}")
    console = Console(highlight=False, soft_wrap=True)
    image = _open(photo)
    network = _network(model, weights, size, device)
    x = network.prepare(image)
    index, chance, note = _class(network, x, target)
    console.print(f"{photo}: class {network.name(index)}, probability {chance:.3f}{note}")
    if method == "iba":
        place = find_layer(network.module, layer, x)
        iba = InformationBottleneck(network.module, place.name, beta=beta, steps=steps, seed=seed)
        iba.stats, source = _statistics(network, place.name, stats, calibration)
        found = iba.attribute(x, index)
        reason = f" ({place.reason})" if place.reason else ""
        console.print(f"layer {place.name}{reason}; {source}")
        console.print(f"{float(found.total_bits[0]):,.1f} bits pass")
    else:
        found = _baseline(network, x, index, method, layer)
        console.print(f"{method}: relevance without a unit")
    title = f"{method}: {network.name(index)}, p = {chance:.3f}"
    console.print(f"wrote {found.save_png(out, network.pixels(x), title=title)}")


@dataclass(frozen=True, slots=True)
class _Network:
    """A classifier and what it wants to see."""

    module: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    photos: str
    device: str

    def name(self, index: int) -> str:
        """The class's name and number."""
        return f"{self.classes[index]} ({index})" if index < len(self.classes) else str(index)

    def prepare(self, image: Image.Image) -> Tensor:
        """The middle of a photo as the model takes it, ``(1, 3, S, S)``."""
        import numpy as np
        import torch
        from PIL import Image

        short = round(self.size * 256 / 224) if self.size >= 128 else self.size
        scale = short / min(image.size)
        width, height = (max(round(side * scale), self.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).to(self.device)

    def pixels(self, x: Tensor) -> Tensor:
        """The input as a picture in ``[0, 1]`` again."""
        import torch

        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x.cpu() * std + mean).clamp(0, 1)


def _network(name: str, weights: Path | None, size: int | None, device: str) -> _Network:
    from addis import data, models

    own_factory = ":" in name
    module = models.create(
        name, pretrained=weights is None and not own_factory, weights=weights, device=device
    )
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    side, photos = size or 224, "imagenet_samples"
    classes: tuple[str, ...] = ()
    if not own_factory:
        known = models.info(name)
        if len(known.mean) != 3:
            raise ValueError(f"model {name} takes images of {len(known.mean)} channels, not photos")
        mean, std, side = known.mean, known.std, size or known.input_size[-1]
        photos = "cifar10" if name.startswith("cifar10") else photos
        try:
            classes = tuple(getattr(data.load(photos), "classes", ()))
        except FileNotFoundError:
            classes = ()
        classes = classes if len(classes) == known.num_classes else ()
    return _Network(module.eval(), side, mean, std, classes, photos, device)


def _open(path: Path) -> Image.Image:
    """A photo as RGB, turned as its camera says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, is damaged, or would unpack to far too many pixels.
    """
    import warnings

    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"photo: there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"photo: {path} has more than the {most} pixels allowed") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"photo: {path} is not an image file that can be read") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"photo: {path} is damaged: {error}") from error


def _class(network: _Network, x: Tensor, target: str | None) -> tuple[int, float, str]:
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


def _statistics(
    network: _Network, iba_layer: str, stats: Path | None, calibration: Path | None
) -> tuple[BottleneckStats, str]:
    """The layer's statistics, and where they come from."""
    import warnings

    from addis.explain import BottleneckStats

    if stats is not None and stats.exists():
        return BottleneckStats.load(stats), f"statistics read from {stats}"
    inputs, source = _calibration_inputs(network, calibration)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the statistics rest on")
        found = BottleneckStats.estimate(network.module, iba_layer, inputs)
    if stats is not None:
        found.save(stats, layer=iba_layer)
    rough = f", fewer than {_LEAST}: rough" if found.n < _LEAST else ""
    kept = f", written to {stats}" if stats is not None else ""
    return found, f"statistics from {found.n} images of {source}{rough}{kept}"


def _calibration_inputs(network: _Network, folder: Path | None) -> tuple[Tensor, str]:
    import torch
    from PIL import Image

    from addis import data

    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if len(paths) < 2:
            raise ValueError(
                f"calibration: {folder} holds {len(paths)} images, at least 2 are needed"
            )
        return torch.cat([network.prepare(_open(path)) for path in paths[:10_000]]), str(folder)
    try:
        photos = data.load(network.photos)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or name a folder of images with --calibration"
        ) from error
    assert isinstance(photos, data.Images | data.Photos)  # what either name gives
    inputs = []
    for index in range(min(len(photos), _LEAST)):
        pixels = photos[index][0]
        pixels = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().byte()
        inputs.append(network.prepare(Image.fromarray(pixels.permute(1, 2, 0).numpy())))
    return torch.cat(inputs), network.photos


_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def _baseline(network: _Network, x: Tensor, index: int, method: str, layer: str) -> Attribution:
    import torch

    from addis.explain import BASELINES, CAMS, Attribution

    if layer == "auto":
        maps = BASELINES[method](network.module, x, index)
    elif method in CAMS:
        maps = CAMS[method](network.module, x, index, layer)
    else:
        raise ValueError(f"layer: method {method} reads the input, not a layer")
    return Attribution(map=maps, total_bits=torch.full((1,), torch.nan), method=method)
