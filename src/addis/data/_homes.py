"""Where sets are read from: files at hand, else their public homes."""

from __future__ import annotations

import glob
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import xxhash

from addis.data._cache import FileSource, Source, cached
from addis.data._columns import Columns
from addis.data._decode import Chunk, Rows

__all__ = ["Home", "columns", "download", "hub_rows", "parquet_rows"]

_CHUNK = 1000  # rows decoded at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Home(Generic[T]):
    """Where a set is found.

    Args:
        file: Its place in the folder that ``ADDIS_DATA`` names, with ``{split}`` where the split
            stands.
        words: Its public homes, for the user to read.
        fetch: Gets a split from its public home; ``None`` where a program cannot.
        digests: By split: the :func:`_digest` of the official columns ``exact``, where these are
            the same to the last bit wherever the set comes from.
        exact: Names of the arrays that ``digests`` are of.
    """

    file: str
    words: str
    fetch: Callable[[str], T] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    exact: tuple[str, ...] = ("image", "label")

    def find(self, split: str) -> Path | None:
        """The file at hand.

        Raises:
            FileNotFoundError: ``ADDIS_DATA`` names something that is not a folder.
        """
        if not (named := os.environ.get("ADDIS_DATA")):
            return None
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"ADDIS_DATA names {named!r}, which is not a folder")
        path = folder / self.file.format(split=split)
        return path if path.is_file() else None

    def fetched(self, name: str, split: str) -> T:
        """The split from its public home.

        Raises:
            FileNotFoundError: There is none that a program can ask, or it could not be reached.
        """
        if self.fetch is None:
            raise self._absent(name, split)
        if _offline():
            raise self._absent(name, split, "HF_HUB_OFFLINE forbids to fetch it")
        try:
            return self.fetch(split)
        except Exception as error:  # each library has its own kinds for "no network"
            why = f"fetching it failed: {type(error).__name__}: {error}"
            raise self._absent(name, split, why) from error

    def _absent(self, name: str, split: str, why: str = "") -> FileNotFoundError:
        """The one error for a set that is not at hand."""
        file, folder = self.file.format(split=split), os.environ.get("ADDIS_DATA")
        looked = f"ADDIS_DATA={folder} has no {file}" if folder else "ADDIS_DATA is not set"
        return FileNotFoundError(
            f"data set {name!r}, split {split!r}, is not at hand"
            f" ({'; '.join(filter(None, (looked, why)))}). Its public home: {self.words}."
            f" Or let ADDIS_DATA name a folder with the file {file}."
        )


def columns(home: Home[Rows], name: str, split: str, decode: Callable[[Rows], Columns]) -> Columns:
    """A set's decoded columns, from the cache where they are there.

    Warns if the set has official pixels and these are others, also by damage that the format of
    their files does not reveal.

    Raises:
        FileNotFoundError: The set is not at hand and could not be fetched.
        ValueError: A row is malformed.
    """
    path = home.find(split)
    source = FileSource.of(path) if path is not None else Source(f"{home.words}#{split}")

    def build() -> Columns:
        rows = parquet_rows(path) if path is not None else home.fetched(name, split)
        decoded = decode(rows)
        if split not in home.digests:
            return decoded
        return replace(decoded, texts={**decoded.texts, "digest": (_digest(decoded, home.exact),)})

    found = cached(f"{name}-{split}", source, build)
    texts = {key: text for key, text in found.texts.items() if key != "digest"}
    if split in home.digests and found.texts["digest"] != (home.digests[split],):
        warnings.warn(
            f"{name} {split} from {source.origin} has other pixels, labels or order than the"
            " official set: a recompressed, shortened or damaged copy gives other results",
            UserWarning,
            stacklevel=4,
        )
    return replace(found, texts=texts)


def parquet_rows(path: Path) -> Rows:
    """The rows of a parquet file in the style of the Hugging Face hub.

    Raises:
        ValueError: It is not a parquet file; later also from the iteration.
    """
    import datasets

    with tempfile.TemporaryDirectory() as scratch:  # datasets keeps locks there, even to read
        try:
            rows = datasets.load_dataset(
                "parquet", data_files=[glob.escape(str(path.resolve()))], split="train",
                streaming=True, cache_dir=scratch,
            )  # fmt: skip
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


def download(url: str, *, extract: bool = False) -> Path:
    """A file of the web in the cache of ``datasets``; ``extract``: the folder of its contents."""
    import datasets

    manager = datasets.DownloadManager()
    return Path(manager.download_and_extract(url) if extract else manager.download(url))


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


def _digest(decoded: Columns, names: tuple[str, ...]) -> str:
    """xxh3-128 of the named arrays, one after the other."""
    digest = xxhash.xxh3_128()
    for name in names:
        digest.update(decoded.arrays[name].data)
    return digest.hexdigest()


def _offline() -> bool:
    """Whether the user has told the hub's libraries to stay offline; heeded for every home."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )
