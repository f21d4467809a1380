"""``load``: a data set by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from addis.data import _embedded, _image_sets, _sprites, _tables, _text
from addis.data._images import Images
from addis.data._photos import Photos
from addis.data._segmentation import Segmentation
from addis.data._table import Table
from addis.data._text import Text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load", "names", "splits"]

ImagesName = Literal[
    "digits", "sprites", "cifar10", "fashion_mnist", "omniglot",
    "emoji/google", "emoji/twitter", "emoji/openmoji_color", "emoji/openmoji_black",
]  # fmt: skip
TableName = Literal[
    "breast_cancer", "wine", "kddcup99",
    "anomaly/annthyroid", "anomaly/arrhythmia", "anomaly/breastw", "anomaly/cardio",
    "anomaly/cardiotocography", "anomaly/fault", "anomaly/glass", "anomaly/hepatitis",
    "anomaly/http", "anomaly/internetads", "anomaly/ionosphere", "anomaly/landsat",
    "anomaly/letter", "anomaly/lymphography", "anomaly/mammography", "anomaly/mnist",
    "anomaly/musk", "anomaly/optdigits", "anomaly/pageblocks", "anomaly/pendigits",
    "anomaly/pima", "anomaly/satellite", "anomaly/satimage-2", "anomaly/shuttle",
    "anomaly/smtp", "anomaly/spambase", "anomaly/stamps", "anomaly/thyroid",
    "anomaly/vertebral", "anomaly/vowels", "anomaly/waveform", "anomaly/wbc", "anomaly/wdbc",
    "anomaly/wilt", "anomaly/wine", "anomaly/wpbc", "anomaly/yeast",
]  # fmt: skip


@dataclass(frozen=True)
class _Set:
    """How a set is read, ``read(name, split)``, and its splits, the default first."""

    read: Callable[[str, str], Any]
    splits: tuple[str, ...]


_THREE: Final = ("train", "test", "all")
_SETS: Final[Mapping[str, _Set]] = {
    "digits": _Set(_embedded.digits, _THREE),
    "breast_cancer": _Set(_embedded.table, _THREE),
    "wine": _Set(_embedded.table, _THREE),
    "sprites": _Set(_sprites.load_sprites, _THREE),
    "cifar10": _Set(_image_sets.cifar10, ("train", "test")),
    "fashion_mnist": _Set(_image_sets.fashion_mnist, ("train", "test")),
    "omniglot": _Set(_image_sets.omniglot, ("background", "evaluation")),
    "camvid": _Set(_image_sets.camvid, ("train", "validation", "test")),
    "imagenet_samples": _Set(_image_sets.imagenet_samples, ("resized256", "original")),
    "shakespeare": _Set(_text.shakespeare, _THREE),
    "kddcup99": _Set(_tables.kddcup99, ("all",)),
    "nasbench201": _Set(_tables.nasbench201, ("table", "per_seed")),
    **{f"emoji/{style}": _Set(_image_sets.emoji, _THREE) for style in _image_sets.STYLES},
    **{
        f"anomaly/{table}": _Set(_tables.anomaly, ("all",))
        for table in (*_tables.ADBENCH, "arrhythmia")
    },
}


@overload
def load(name: ImagesName, split: str | None = None) -> Images: ...
@overload
def load(name: TableName, split: str | None = None) -> Table: ...
@overload
def load(name: Literal["camvid"], split: str | None = None) -> Segmentation: ...
@overload
def load(name: Literal["imagenet_samples"], split: str | None = None) -> Photos: ...
@overload
def load(name: Literal["shakespeare"], split: str | None = None) -> Text: ...
@overload
def load(name: Literal["nasbench201"], split: str | None = None) -> pd.DataFrame: ...
@overload
def load(
    name: str, split: str | None = None
) -> Images | Table | Segmentation | Photos | Text | pd.DataFrame: ...
def load(name: str, split: str | None = None) -> Any:
    """Loads a data set.

    Sets of files are read from the folder that ``ADDIS_DATA`` names, else from their public homes.
    Images are decoded once, into a cache that ``ADDIS_CACHE`` places.

    Args:
        name: One of :func:`names`.
        split: One of :func:`splits`; ``None`` means the first of them, ``train`` where there is
            one.

    Returns:
        :class:`~addis.data.Images`, and for ``camvid`` :class:`~addis.data.Segmentation`, for
        ``imagenet_samples`` :class:`~addis.data.Photos`, for tables :class:`~addis.data.Table`, for
        ``shakespeare`` :class:`~addis.data.Text`, for ``nasbench201`` a frame.

    Raises:
        ValueError: There is no such set or split, or its file is malformed.
        FileNotFoundError: The set is neither in that folder nor could it be fetched.

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
    close += [name for name in known if name.endswith(f"/{got}") and name not in close]
    hint = (
        f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}"
    )
    return f"unknown {what}: {got!r}; {hint}"
