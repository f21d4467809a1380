"""Small parquet files in the style of the hub, and a folder to load them from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An image file of ``(H, W)`` or ``(H, W, C)`` bytes; ``mode="1"`` keeps one bit."""
    image = PIL.Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, lossless=True, quality=90)
    return buffer.getvalue()


def pictures(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_parquet(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    *,
    images: Sequence[str] = ("image",),
    classes: Sequence[str] = (),
) -> Path:
    """Writes rows; cells of image columns are the bytes of files (or whole structs)."""
    import datasets

    features: dict[str, Any] = {}
    cells: dict[str, Sequence[Any]] = {}
    for name, column in columns.items():
        if name in images:
            features[name] = datasets.Image()
            cells[name] = [
                c if isinstance(c, dict) or c is None else {"bytes": c, "path": None}
                for c in column
            ]
        elif name == "label" and classes:
            features[name], cells[name] = datasets.ClassLabel(names=list(classes)), column
        else:
            kind = "string" if any(isinstance(cell, str) for cell in column) else "int64"
            features[name], cells[name] = datasets.Value(kind), column
    path.parent.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_dict(cells, features=datasets.Features(features))
    made.to_parquet(str(path))
    return path


CIFAR = ("airplane", "automobile", "bird")


def write_cifar(folder: Path, n: int = 20, seed: int = 0, split: str = "train") -> np.ndarray:
    """A tiny set under the name of CIFAR-10; returns its pixels ``(n, H, W, C)``."""
    pixels = pictures(n, 32, 32, 3, seed=seed)
    write_parquet(
        folder / "cifar10" / f"{split}.parquet",
        {
            "image": [encoded(p, "WEBP") for p in pixels],
            "label": [(i + seed) % 3 for i in range(n)],
        },
        classes=CIFAR,
    )
    return pixels
