"""Rows of encoded images to arrays of bytes.

The rows may come from anywhere, so nothing in them is trusted: only the formats named here are
tried, a path inside a row is never opened, nothing is unpickled, and what cannot be decoded exactly
is a ``ValueError`` that names the row. In PNG any flipped bit is found, by the checksums of its
chunks: 2.5 us beside the 62 us of decoding a CIFAR-10 image. WebP and JPEG have no checksum:
damage there may decode to other pixels, and only a set's digest tells.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import PIL.Image

from addis.data._columns import Columns

__all__ = ["Chunk", "Layout", "Mode", "Rows", "decode", "decode_photos"]

Array = np.ndarray[Any, Any]
Chunk = Mapping[
    str, Sequence[Any]
]  # rows, column by column; a cell of an image column is the bytes of its file
Mode = Literal["1", "L", "RGB", "RGBA", "index"]  # index: the number of a colour, not the colour
Decoder = Callable[
    [Sequence[Any], Callable[[int], str]], Any
]  # cells, and the name of the i-th for messages

_FORMATS: Final = ("PNG", "WEBP", "JPEG")
_CHANNELS: Final[Mapping[Mode, int]] = {"1": 1, "L": 1, "RGB": 3, "RGBA": 4, "index": 1}
_FITTING: Final[Mapping[Mode, tuple[str, ...]]] = {  # modes of files that convert without loss
    "1": ("1",),
    "L": ("L", "1"),
    "RGB": ("RGB", "L", "1"),
    "RGBA": ("RGBA", "RGB", "LA", "L", "1"),
    "index": ("L", "P"),
}
_MAX_SIDE: Final = 8192  # pixels; a file that claims more is refused before memory is taken for it


@dataclass(frozen=True)
class Rows:
    """The rows of a split.

    Args:
        where: The source, for messages.
        chunks: The rows in order, some at a time.
        classes: What the values of the column ``label`` mean.
    """

    where: str
    chunks: Iterable[Chunk]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Which columns to decode: images (with the mode they have), whole numbers, texts."""

    images: Mapping[str, Mode]
    numbers: tuple[str, ...] = ("label",)
    texts: tuple[str, ...] = ()


def decode(rows: Rows, layout: Layout) -> Columns:
    """Decodes rows whose images all have one size.

    Returns:
        Image columns as uint8 ``(N, C, H, W)``, numbers as int64 ``(N,)``, texts, and the text
        ``classes``.

    Raises:
        ValueError: No rows, an absent column, or a cell that is damaged or not of the layout's
            kind.
    """
    images = {name: _OneSize(mode) for name, mode in layout.images.items()}
    parts = _collect(rows, layout, images)
    arrays = {name: np.concatenate(parts[name]) for name in (*layout.images, *layout.numbers)}
    return _finished(rows, layout, arrays, parts)


def decode_photos(rows: Rows, layout: Layout) -> Columns:
    """Decodes rows whose images (column ``image``) have various sizes, and keeps their files.

    Returns:
        ``pixels``, uint8, all images one after the other, each as planes ``(3, H, W)``; ``shape``,
        int64 ``(N, 2)``, their heights and widths; ``files``, uint8, all files one after the other;
        ``file_size``, int64 ``(N,)``; numbers, texts and ``classes`` as :func:`decode`.

    Raises:
        ValueError: As :func:`decode`.
    """
    parts = _collect(rows, layout, {"image": _photos})
    photos = [photo for part in parts["image"] for photo in part]
    arrays = {name: np.concatenate(parts[name]) for name in layout.numbers}
    arrays["pixels"] = np.concatenate([planes.reshape(-1) for _, planes in photos])
    arrays["shape"] = np.array([planes.shape[1:] for _, planes in photos], np.int64)
    arrays["files"] = np.frombuffer(b"".join(file for file, _ in photos), np.uint8)
    arrays["file_size"] = np.array([len(file) for file, _ in photos], np.int64)
    return _finished(rows, layout, arrays, parts)


def _collect(rows: Rows, layout: Layout, images: Mapping[str, Decoder]) -> dict[str, list[Any]]:
    """What the decoder of each column gives, chunk by chunk."""
    decoders: dict[str, Decoder] = {
        **images, **dict.fromkeys(layout.numbers, _numbers), **dict.fromkeys(layout.texts, _texts)
    }  # fmt: skip
    parts: dict[str, list[Any]] = {name: [] for name in decoders}
    first = 0
    for chunk in rows.chunks:
        for name, decoder in decoders.items():
            if name not in chunk:
                raise ValueError(f"{rows.where}: no column {name!r}, only {sorted(chunk)}")
            parts[name].append(decoder(chunk[name], partial(_cell_name, rows.where, name, first)))
        first += len(next(iter(chunk.values())))
    if first == 0:
        raise ValueError(f"{rows.where}: no rows")
    return parts


def _cell_name(where: str, column: str, first: int, i: int) -> str:
    return f"{where}, row {first + i}, column {column!r}"


def _finished(
    rows: Rows, layout: Layout, arrays: dict[str, Array], parts: Mapping[str, list[Any]]
) -> Columns:
    label = arrays.get("label")
    if (
        label is not None
        and (bad := np.flatnonzero((label < 0) | (label >= len(rows.classes)))).size
    ):
        raise ValueError(
            f"{_cell_name(rows.where, 'label', 0, int(bad[0]))}: {label[bad[0]]} is none of the"
            f" {len(rows.classes)} classes"
        )
    texts = {name: tuple(text for part in parts[name] for text in part) for name in layout.texts}
    return Columns(arrays, {**texts, "classes": rows.classes})


class _OneSize:
    """Decodes cells to images of one mode and of the size of the first."""

    def __init__(self, mode: Mode) -> None:
        self._mode: Mode = mode
        self._size: tuple[int, int] | None = None

    def __call__(self, cells: Sequence[Any], name: Callable[[int], str]) -> Array:
        flat: list[Array] = []
        for i, cell in enumerate(cells):
            with _opened(cell, name(i)) as image:
                self._size = self._size or image.size
                if image.size != self._size:
                    raise ValueError(f"{name(i)}: {image.size} pixels, the first has {self._size}")
                if image.mode not in _FITTING[self._mode]:
                    raise ValueError(
                        f"{name(i)}: mode {image.mode!r}, needs one of {_FITTING[self._mode]}"
                    )
                flat.append(_interleaved(image, self._mode, name(i)))
        width, height = self._size or (0, 0)
        stack = np.stack(flat).reshape(-1, height, width, _CHANNELS[self._mode])
        return np.ascontiguousarray(stack.transpose(0, 3, 1, 2))


def _photos(cells: Sequence[Any], name: Callable[[int], str]) -> list[tuple[bytes, Array]]:
    """Each cell's file and its planes ``(3, H, W)``."""
    photos = []
    for i, cell in enumerate(cells):
        with _opened(cell, name(i)) as image:
            width, height = image.size
            flat = _interleaved(image, "RGB", name(i)).reshape(height, width, 3)
            photos.append((bytes(cell), np.ascontiguousarray(flat.transpose(2, 0, 1))))
    return photos


def _opened(cell: Any, name: str) -> PIL.Image.Image:
    if not isinstance(cell, bytes):
        raise ValueError(f"{name}: no bytes of an image file, got {type(cell).__name__}")  # noqa: TRY004
    try:
        image = PIL.Image.open(io.BytesIO(cell), formats=_FORMATS)
    except Exception as error:  # whatever a damaged file makes of a decoder
        raise ValueError(f"{name}: not an image file of {_FORMATS}: {error}") from error
    if max(image.size) > _MAX_SIDE or getattr(image, "n_frames", 1) != 1:
        raise ValueError(f"{name}: {image.size} pixels or more than one frame")
    if image.format == "PNG" and not _sums_right(cell):
        raise ValueError(f"{name}: damaged image file: a PNG chunk has another checksum")
    return image


def _sums_right(png: bytes) -> bool:
    """Whether each chunk of a PNG file has its checksum.

    PIL checks those of pixels in ``verify`` only, after which the file must be opened again: five
    times the price.
    """
    start, kind = 8, b""  # after the signature; a chunk is its length, kind, content and checksum
    while start < len(png) and kind != b"IEND":
        kind = png[start + 4 : start + 8]
        end = start + 8 + int.from_bytes(png[start : start + 4], "big")
        if zlib.crc32(png[start + 4 : end]) != int.from_bytes(png[end : end + 4], "big"):
            return False
        start = end + 4
    return True


def _interleaved(image: PIL.Image.Image, mode: Mode, name: str) -> Array:
    """The pixels of an opened image in ``mode``, ``(H * W * C,)``; of a 1-bit image 0 and 255."""
    try:
        target = {"1": "L", "index": image.mode}.get(mode, mode)
        pixels = (image if image.mode == target else image.convert(target)).tobytes()
    except Exception as error:
        raise ValueError(f"{name}: damaged image file: {error}") from error
    return np.frombuffer(pixels, np.uint8)


def _numbers(cells: Sequence[Any], name: Callable[[int], str]) -> Array:
    for i, cell in enumerate(cells):
        if type(cell) is not int or not -(2**63) <= cell < 2**63:
            raise ValueError(f"{name(i)}: needs a whole number of 64 bits, got {cell!r}")
    return np.array(cells, np.int64)


def _texts(cells: Sequence[Any], name: Callable[[int], str]) -> Sequence[str]:
    for i, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise ValueError(f"{name(i)}: needs text, got {cell!r}")  # noqa: TRY004
    return cells
