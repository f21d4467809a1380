"""Where sets are read from: parquet files at hand, else their public homes."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addis.data._cache import FileSource, Source, cached
from addis.data._columns import Columns
from addis.data._decode import Chunk, Rows

__all__ = ["Home", "data_folder", "hub_rows", "parquet_rows"]

_CHUNK = 1000  # rows decoded at a time


@dataclass(frozen=True)
class Home:
    """Where a set is found.

    Args:
        file: Its place in the folder that ``ADDIS_DATA`` names, with ``{split}`` where the split
            stands.
        words: Its public homes, for the user to read.
        fetch: Downloads the rows of a split; ``None`` where nothing can do that.
    """

    file: str
    words: str
    fetch: Callable[[str], Rows] | None = None

    def columns(self, name: str, split: str, decode: Callable[[Rows], Columns]) -> Columns:
        """The set's decoded columns, from the cache where they are there.

        Raises:
            FileNotFoundError: The set is not at hand and could not be fetched.
            ValueError: A row is malformed.
        """
        if (path := self.find(split)) is not None:
            return cached(
                f"{name}-{split}", FileSource.of(path), lambda: decode(parquet_rows(path))
            )
        return cached(
            f"{name}-{split}",
            Source(f"{self.words}#{split}"),
            lambda: decode(self.fetched(name, split)),
        )

    def find(self, split: str) -> Path | None:
        """The file at hand."""
        folder = data_folder()
        path = folder / self.file.format(split=split) if folder is not None else None
        return path if path is not None and path.is_file() else None

    def fetched(self, name: str, split: str) -> Rows:
        """The rows from the public home.

        Raises:
            FileNotFoundError: There is none that a program can ask, or it could not be reached.
        """
        if self.fetch is None:
            raise self.absent(name, split)
        if _offline():
            raise self.absent(name, split, "HF_HUB_OFFLINE forbids to fetch it")
        try:
            return self.fetch(split)
        except Exception as error:  # each library has its own kinds for "no network"
            why = f"fetching it failed: {type(error).__name__}: {error}"
            raise self.absent(name, split, why) from error

    def absent(self, name: str, split: str, why: str = "") -> FileNotFoundError:
        """The one error for a set that is not at hand."""
        file, folder = self.file.format(split=split), os.environ.get("ADDIS_DATA")
        looked = f"ADDIS_DATA={folder} has no {file}" if folder else "ADDIS_DATA is not set"
        return FileNotFoundError(
            f"data set {name!r}, split {split!r}, is not at hand"
            f" ({'; '.join(filter(None, (looked, why)))})."
            f" Its public home: {self.words}. Or let ADDIS_DATA name a folder with the file {file}."
        )


def data_folder() -> Path | None:
    """The folder that ``ADDIS_DATA`` names, if it is set.

    Raises:
        FileNotFoundError: It names something that is not a folder.
    """
    if not (named := os.environ.get("ADDIS_DATA")):
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"ADDIS_DATA names {named!r}, which is not a folder")
    return folder


def parquet_rows(path: Path) -> Rows:
    """The rows of a parquet file in the style of the Hugging Face hub.

    Raises:
        ValueError: It is not a parquet file; later also from the iteration.
    """
    import datasets

    with tempfile.TemporaryDirectory() as scratch:  # datasets keeps locks there, even to read
        try:
            rows = datasets.load_dataset(
                "parquet",
                data_files=[_escaped(path)],
                split="train",
                streaming=True,
                cache_dir=scratch,
            )
            features = rows.features or {}
        except Exception as error:
            raise ValueError(f"{path}: not a readable parquet file: {error}") from error
    return Rows(str(path), _chunks(rows, features, {}, str(path)), _class_names(features))


def hub_rows(repository: str, split: str, rename: Mapping[str, str]) -> Rows:
    """The rows of a set on the hub, downloaded by ``datasets``; ``rename``: its columns to ours."""
    import datasets

    rows = datasets.load_dataset(repository, split=split)
    where = f"{repository} ({split})"
    names = _class_names({rename.get(name, name): kind for name, kind in rows.features.items()})
    return Rows(where, _chunks(rows, rows.features, rename, where), names)


def _chunks(
    rows: Any, features: Mapping[str, Any], rename: Mapping[str, str], where: str
) -> Iterator[Chunk]:
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    for name in images:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    tables = rows.with_format("arrow").iter(batch_size=_CHUNK)
    while True:
        try:
            table = next(tables, None)
        except Exception as error:
            raise ValueError(f"{where}: not a readable parquet file: {error}") from error
        if table is None:
            return
        chunk = table.to_pydict()
        for name in images:
            chunk[name] = [cell and cell.get("bytes") for cell in chunk[name]]
        yield {rename.get(name, name): column for name, column in chunk.items()}


def _class_names(features: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(getattr(features.get("label"), "names", None) or ())


def _escaped(path: Path) -> str:
    """``path`` for ``data_files``, which are patterns."""
    return glob.escape(str(path.resolve()))


def _offline() -> bool:
    """Whether the user has told the hub's libraries to stay offline; we heed it for every home."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )
