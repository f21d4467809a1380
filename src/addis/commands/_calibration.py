"""Layer statistics for ``addis explain``: given as a file, kept from an earlier call, or estimated.

Statistics are kept in the cache folder under a digest of all that they depend on: the model's name
and weights, the layer, the input's size and scaling, and the calibration images. A model from the
user's own factory can change without any of these, so its statistics are not kept.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
import xxhash
from PIL import Image
from torch import Tensor

from addis import __version__, data
from addis.commands._photo_model import PhotoModel, open_photo
from addis.explain import BottleneckStats

__all__ = ["statistics"]

_ENOUGH: Final = 1000
"""Calibration images below which the statistics are called rough, as the library does."""
_MOST: Final = 10_000
_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def statistics(
    model: PhotoModel, layer: str, stats: Path | None, calibration: Path | None
) -> tuple[BottleneckStats, str]:
    """The layer's statistics, and in words where they come from.

    Args:
        model: The classifier.
        layer: Name of its layer.
        stats: File to read if it is there, else to write.
        calibration: Folder of images; by default the sample photos for the model.

    Raises:
        FileNotFoundError: There are no calibration images.
        ValueError: The file holds no statistics of this layer, or the folder fewer than 2 images.
    """
    if stats is not None and stats.exists():
        return BottleneckStats.load(stats, layer=layer), f"statistics read from {stats}"
    images, source = _images(model, calibration)
    kept = _kept(model, layer, images) if stats is None else None
    found = _read(kept, layer) if kept is not None else None
    seen = "from" if found is None else "kept from"
    if found is None:
        found = _estimate(model, layer, images)
        if kept is not None:
            _keep(found, kept, layer)
    written = ""
    if stats is not None:
        found.save(stats, layer=layer)
        written = f", written to {stats}"
    rough = f", fewer than {_ENOUGH}: rough" if found.n < _ENOUGH else ""
    return found, f"statistics {seen} {found.n} images of {source}{rough}{written}"


def _images(model: PhotoModel, folder: Path | None) -> tuple[list[Path] | list[Tensor], str]:
    """Image files, or uint8 images ``(3, H, W)``, and where they are from."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if len(paths) < 2:
            raise ValueError(
                f"calibration: {folder} holds {len(paths)} images, at least 2 are needed"
            )
        return paths[:_MOST], str(folder)
    try:
        photos = data.load(model.photos)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or name a folder of images with --calibration"
        ) from error
    assert isinstance(photos, data.Images | data.Photos)  # what either name gives
    count = min(len(photos), _ENOUGH)
    images = photos.images[:count].unbind() if isinstance(photos, data.Images) else ()
    return list(images) or [photos[i][0] for i in range(count)], model.photos


def _estimate(model: PhotoModel, layer: str, images: list[Path] | list[Tensor]) -> BottleneckStats:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the statistics rest on")
        return BottleneckStats.estimate(model.module, layer, _inputs(model, images))


def _inputs(model: PhotoModel, images: list[Path] | list[Tensor]) -> Iterator[Tensor]:
    """The images as the model takes them, in batches."""
    for start in range(0, len(images), 16):
        batch = [
            open_photo(image) if isinstance(image, Path) else _picture(image)
            for image in images[start : start + 16]
        ]
        yield torch.cat([model.prepare(image) for image in batch])


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _kept(model: PhotoModel, layer: str, images: list[Path] | list[Tensor]) -> Path | None:
    """Where statistics of this model, layer and images are kept; ``None`` where they are not."""
    if ":" in model.source:
        return None
    library, slash, _ = model.source.partition("/")  # timm/NAME, torchvision/NAME
    version = importlib.metadata.version(library) if slash else __version__
    settings = [model.source, version, layer, model.size, model.mean, model.std]
    digest = xxhash.xxh3_128(json.dumps(settings).encode())
    for name, value in model.module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for image in images:
        digest.update(
            image.read_bytes() if isinstance(image, Path) else image.contiguous().numpy().data
        )
    return data.cache_folder() / "statistics" / f"{digest.hexdigest()}.safetensors"


def _read(path: Path, layer: str) -> BottleneckStats | None:
    """The kept statistics, or ``None`` where there are none or the file is damaged."""
    with suppress(FileNotFoundError, ValueError):
        return BottleneckStats.load(path, layer=layer)
    return None


def _keep(stats: BottleneckStats, path: Path, layer: str) -> None:
    """Writes the file at once as a whole; a folder that cannot be written is no reason to stop."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            stats.save(Path(folder) / path.name, layer=layer)
            (Path(folder) / path.name).replace(path)
