"""``load``: a data set by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, overload

from addis.data import _embedded, _image_sets
from addis.data._images import Images
from addis.data._table import Table

__all__ = ["load", "names", "splits"]

ImagesName = Literal["digits", "cifar10", "fashion_mnist"]
TableName = Literal["breast_cancer", "wine"]


@dataclass(frozen=True)
class _Set:
    """How a set is read, ``read(name, split)``, and its splits, the default first."""

    read: Callable[[str, str], Any]
    splits: tuple[str, ...]


_EMBEDDED: Final = ("train", "test", "all")
_SETS: Final[Mapping[str, _Set]] = {
    "digits": _Set(_embedded.digits, _EMBEDDED),
    "breast_cancer": _Set(_embedded.table, _EMBEDDED),
    "wine": _Set(_embedded.table, _EMBEDDED),
    "cifar10": _Set(_image_sets.cifar10, ("train", "test")),
    "fashion_mnist": _Set(_image_sets.fashion_mnist, ("train", "test")),
}


@overload
def load(name: ImagesName, split: str | None = None) -> Images: ...
@overload
def load(name: TableName, split: str | None = None) -> Table: ...
@overload
def load(name: str, split: str | None = None) -> Images | Table: ...
def load(name: str, split: str | None = None) -> Any:
    """Loads a data set.

    Args:
        name: One of :func:`names`.
        split: One of :func:`splits`; ``None`` means the first of them, ``train`` where there is
            such a split.

    Raises:
        ValueError: There is no such set or split, or its file is malformed.
        FileNotFoundError: The set is neither in the folder that ``ADDIS_DATA`` names nor could it
            be fetched.

    Example:
        >>> from addis import data
        >>> data.load("digits", "test")
        Images(digits test: 359 x 1x8x8, 10 classes)
    """
    known = splits(name)
    if split is None:
        split = known[0]
    if split not in known:
        raise ValueError(_unknown(f"split of {name!r}", split, known))
    return _SETS[name].read(name, split)


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows, in alphabetical order."""
    return tuple(sorted(_SETS))


def splits(name: str) -> tuple[str, ...]:
    """The splits of a set, the default first.

    Raises:
        ValueError: There is no such set.
    """
    if name not in _SETS:
        raise ValueError(_unknown("data set", name, names()))
    return _SETS[name].splits


def _unknown(what: str, got: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(got, known, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}"
    )
    return f"unknown {what}: {got!r}; {hint}"
