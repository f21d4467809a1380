"""The cache of decoded data sets: one file each, mapped into memory, checked in full when opened.

A file is ``MAGIC``, the length and the xxh3 digest of a JSON header, the header, and the arrays,
each at a multiple of 4,096 bytes. The header names the source, its size, times and digest, and
gives each array's type, shape, place and digest. Nothing in a file is ever executed or unpickled.

- **Damage.** Opening a file hashes all of it with xxh3-64: 10 ms for the 154 MB of the CIFAR-10
  training set when they are in the page cache, and the pass doubles as the read-ahead that training
  needs anyway. So a flipped bit anywhere is found, at a price that does not call for sampling or
  for trusting the file. xxh3 guards against accidents, not against
  people: whoever can write to the folder can also write another header.
- **A changed source.** Equal size, times and inode mean an unchanged file. If any differs, the
  content is hashed, and the cache serves on if that is equal, so that copying or touching the
  source costs 10 ms and no decoding.
- **Two builders, or a killed one.** A builder holds a lock that the system drops when the process
  dies, writes to a temporary file, flushes it to disk and renames it. A reader sees a whole file or
  none; those who wait for the lock find the file built. A file that others have mapped is replaced,
  never changed.
- **A folder that cannot be written** (read-only, full): the set is decoded into memory, with a
  warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from addis.data._columns import Columns

__all__ = ["FileSource", "Source", "cache_folder", "cached"]

MAGIC: Final = b"addis-cache-02\r\n"  # raise the number when the format or what is decoded changes
_PAGE: Final = 4096
_DTYPES: Final = frozenset({"uint8", "int32", "int64", "float32", "float64"})


@dataclass(frozen=True)
class Source:
    """Where a set came from: a public home that is asked once and trusted from then on."""

    origin: str

    def describe(self) -> dict[str, Any]:
        """What the header keeps of the source."""
        return {"origin": self.origin}

    def matches(self, header: Mapping[str, Any]) -> bool:
        """Whether a cache with this header was made from this source as it is now."""
        return bool(header.get("origin") == self.origin)


@dataclass(frozen=True)
class FileSource(Source):
    """Where a set came from: a file, known by its size, times, inode and content."""

    path: Path

    @classmethod
    def of(cls, path: Path) -> FileSource:
        return cls(str(path.resolve()), path)

    def describe(self) -> dict[str, Any]:
        return {"origin": self.origin, "stamp": self.stamp, "digest": self.digest}

    def matches(self, header: Mapping[str, Any]) -> bool:
        if header.get("origin") != self.origin:
            return False
        return bool(header.get("stamp") == self.stamp or header.get("digest") == self.digest)

    @cached_property
    def stamp(self) -> list[int]:
        """Size, times and inode."""
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of the content."""
        digest = xxhash.xxh3_128()
        with self.path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()


def cache_folder() -> Path:
    """The folder of decoded sets: ``ADDIS_CACHE``, else ``addis`` in the user's cache folder."""
    if chosen := os.environ.get("ADDIS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "addis"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "addis"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "addis"


def cached(name: str, source: Source, build: Callable[[], Columns]) -> Columns:
    """The columns that ``build`` decodes from ``source``, mapped from the cache (built if need be).

    Args:
        name: Readable part of the file's name; the source's origin gives the rest.
        source: What the cache must have been made from.
        build: Decodes the source. Its exceptions pass through and leave no file.

    Raises:
        RuntimeError: The source file changed while it was read.
    """
    mark = hashlib.blake2b(os.fsencode(source.origin), digest_size=5).hexdigest()
    path = cache_folder() / f"{re.sub(r'[^a-z0-9_.-]+', '-', name.lower())}-{mark}.cache"
    if (found := read(path, source)) is not None:
        return found
    with contextlib.ExitStack() as stack:
        failure = _lock(path, stack)
        if failure is None and (found := read(path, source)) is not None:
            return found
        header = source.describe()
        built = build()
        if isinstance(source, FileSource) and FileSource.of(source.path).stamp != source.stamp:
            raise RuntimeError(f"{source.path} changed while it was read; load it again")
        if failure is None:
            failure = _try_write(path, built, header)
    if failure is None and (found := read(path, source)) is not None:
        return found
    warnings.warn(
        f"the cache folder {path.parent} cannot be used"
        f" ({failure or 'what was written reads back damaged'}): {name} was decoded into memory,"
        " and will be again by each process; name another folder in ADDIS_CACHE",
        RuntimeWarning,
        stacklevel=5,
    )
    return built


def read(path: Path, source: Source) -> Columns | None:
    """Maps the cache at ``path``; ``None`` if absent, damaged, or not made from ``source``."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # absent or unreadable; empty
        return None
    header = _header(mapped)
    if header is None or not source.matches(header["source"]):
        return None
    arrays = {entry["name"]: _array(mapped, entry) for entry in header["arrays"]}
    intact = {name: array for name, array in arrays.items() if array is not None}
    if len(intact) != len(arrays):
        return None
    return Columns(intact, {name: tuple(texts) for name, texts in header["texts"].items()})


def _header(mapped: mmap.mmap) -> dict[str, Any] | None:
    start = len(MAGIC) + 16
    if len(mapped) < start or mapped[: len(MAGIC)] != MAGIC:
        return None
    size = int.from_bytes(mapped[len(MAGIC) : len(MAGIC) + 8], "little")
    text = mapped[start : start + size]
    if xxhash.xxh3_64_digest(text) != mapped[len(MAGIC) + 8 : start]:
        return None
    header: dict[str, Any] = json.loads(text)
    return header if header["size"] == len(mapped) else None


def _array(mapped: mmap.mmap, entry: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    """The array of a header's entry, a view of ``mapped``; ``None`` if its bytes are damaged."""
    dtype, shape, offset = entry["dtype"], tuple(entry["shape"]), entry["offset"]
    if dtype not in _DTYPES:
        return None
    count = prod(shape)
    nbytes = count * np.dtype(dtype).itemsize
    if offset < 0 or offset + nbytes > len(mapped):
        return None
    if count == 0:
        return np.empty(shape, dtype)
    flat = np.frombuffer(mapped, np.uint8, nbytes, offset)
    if xxhash.xxh3_64_hexdigest(flat.data) != entry["digest"]:
        return None
    array: np.ndarray[Any, Any] = flat.view(dtype).reshape(shape)
    return array


def _lock(path: Path, stack: contextlib.ExitStack) -> OSError | None:
    """Holds the lock of ``path`` until ``stack`` closes; returns why if that is impossible."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(path.with_suffix(".lock")))
    except (OSError, NotImplementedError) as error:
        return error if isinstance(error, OSError) else OSError(str(error))
    for leftover in path.parent.glob(f"{path.stem}.*.tmp"):  # of builders that were killed
        with contextlib.suppress(OSError):
            leftover.unlink()
    return None


def _try_write(path: Path, columns: Columns, source: Mapping[str, Any]) -> OSError | None:
    try:
        handle, name = tempfile.mkstemp(".tmp", f"{path.stem}.", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                for block in _blocks(columns, source):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        return error
    return None


def _blocks(columns: Columns, source: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of a cache file, in order."""
    arrays = {name: np.ascontiguousarray(array) for name, array in columns.arrays.items()}
    entries = [
        {"name": name, "dtype": array.dtype.name, "shape": array.shape, "offset": 0, "digest": ""}
        for name, array in arrays.items()
    ]
    texts = {name: list(column) for name, column in columns.texts.items()}
    header = {"size": 0, "source": dict(source), "arrays": entries, "texts": texts}
    start = _pages(len(json.dumps(header)) + 64 * (len(entries) + 1) + len(MAGIC) + 16)
    end = start
    for entry, array in zip(entries, arrays.values(), strict=True):
        entry["offset"], entry["digest"] = end, xxhash.xxh3_64_hexdigest(_bytes(array))
        end = _pages(end + array.nbytes)
    header["size"] = end
    text = json.dumps(header).encode("ascii")
    head = MAGIC + len(text).to_bytes(8, "little") + xxhash.xxh3_64_digest(text) + text
    yield head.ljust(start, b"\0")
    for array in arrays.values():
        yield _bytes(array)
        yield b"\0" * (-array.nbytes % _PAGE)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
