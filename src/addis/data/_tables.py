"""Tables for anomaly detection, and NAS-Bench-201."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.lib import format as npy

from addis.data._homes import Home, download
from addis.data._table import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ADBENCH", "anomaly", "kddcup99", "nasbench201"]

Array = np.ndarray[Any, Any]

ADBENCH: Final = {  # our name: its number and name in ADBench
    name.lower(): f"{number}_{name}"
    for number, name in {
        2: "annthyroid", 4: "breastw", 6: "cardio", 7: "Cardiotocography", 12: "fault",
        14: "glass", 15: "Hepatitis", 16: "http", 17: "InternetAds", 18: "Ionosphere",
        19: "landsat", 20: "letter", 21: "Lymphography", 23: "mammography", 24: "mnist",
        25: "musk", 26: "optdigits", 27: "PageBlocks", 28: "pendigits", 29: "Pima",
        30: "satellite", 31: "satimage-2", 32: "shuttle", 34: "smtp", 35: "SpamBase",
        37: "Stamps", 38: "thyroid", 39: "vertebral", 40: "vowels", 41: "Waveform", 42: "WBC",
        43: "WDBC", 44: "Wilt", 45: "wine", 46: "WPBC", 47: "yeast",
    }.items()
}  # fmt: skip
_URL: Final = "https://raw.githubusercontent.com/Minqi824/ADBench/main/{}"
_MAX_BYTES: Final = 1 << 27  # of all members; internetads has most, 25 MB; as float64 at most x 8
_SYMBOLIC: Final = (
    "protocol_type", "service", "flag", "land", "logged_in", "is_host_login", "is_guest_login"
)  # fmt: skip
_KDD: Final = Home["pd.DataFrame"](
    file="anomaly/kddcup99_10_percent.parquet",
    words="sklearn.datasets.fetch_kddcup99(percent10=True)",
    fetch=lambda split: _fetch_kddcup99(),
)
_NASBENCH: Final = Home["pd.DataFrame"](
    file="nasbench201/{split}.parquet",
    words="the package nats_bench with NATS-tss-v1_0-3ffb9-simple.tar of D-X-Y/NATS-Bench",
)


def anomaly(name: str, split: str) -> Table:
    """A table of ADBench, or the ODDS set arrhythmia: class 1 are the anomalies.

    Raises:
        ValueError: The file is not an archive of the arrays ``X (n, d)`` and ``y (n,)``, n and d
            >= 1, or a number in it is not finite or a class neither 0 nor 1.
    """
    file = f"{name}.npz"
    source = name.removeprefix("anomaly/")
    if source in ADBENCH:
        place = f"adbench/datasets/Classical/{ADBENCH[source]}.npz"
        home = Home(file, f"Minqi824/ADBench on GitHub, {place}", lambda _: _download(place))
    else:
        home = Home[Path](file, f"odds.cs.stonybrook.edu, {source}.mat")
    path = home.find(split) or home.fetched(name, split)
    x, y = _arrays(path)
    return Table(
        x=torch.from_numpy(x.astype(np.float64)),
        targets=torch.from_numpy(y.astype(np.int64)),
        classes=("normal", "anomaly"),
        features=tuple(f"x{i}" for i in range(x.shape[1])),
        name=name,
        split=split,
    )


def kddcup99(name: str, split: str) -> Table:
    """KDD Cup 99, the 10 % file, in its order; the seven symbolic columns are numbered by name.

    Raises:
        ValueError: The columns are others, or a cell is empty or not a finite number.
    """
    path = _KDD.find(split)
    frame = _read_frame(path) if path is not None else _KDD.fetched(name, split)
    where = str(path or _KDD.words)
    if "label" not in frame or not {*_SYMBOLIC} < {*frame.columns}:
        raise ValueError(f"{where}: needs a column label and those of KDD Cup 99")
    targets, labels = _numbered(frame.pop("label"), where)
    symbols: dict[str, tuple[str, ...]] = {}
    for column in frame.columns:
        if column in _SYMBOLIC:
            frame[column], symbols[column] = _numbered(frame[column], where)
        else:
            frame[column] = _finite(frame[column], where)
    return Table(
        x=torch.from_numpy(frame.to_numpy(np.float64)),
        targets=torch.from_numpy(targets),
        classes=labels,
        features=tuple(frame.columns),
        name=name,
        split=split,
        symbols=symbols,
    )


def nasbench201(name: str, split: str) -> pd.DataFrame:
    """NAS-Bench-201 as a frame, one row a cell (``table``) or a trained network (``per_seed``)."""
    file = {"table": "table", "per_seed": "per_seed_0_11_284"}[split]
    path = _NASBENCH.find(file)
    return _read_frame(path) if path is not None else _NASBENCH.fetched(name, file)


def _numbered(column: pd.Series[Any], where: str) -> tuple[Array, tuple[str, ...]]:
    """Each value's place among the distinct values, and these as texts in alphabetical order."""
    import pandas as pd

    codes, found = pd.factorize(column)
    _refuse(column, codes < 0, "a value", where)
    names = np.array([str(value) for value in found])
    order = np.argsort(names)
    return np.argsort(order)[codes].astype(np.int64), tuple(names[order].tolist())


def _finite(column: pd.Series[Any], where: str) -> Array:
    """The values as float64."""
    import pandas as pd

    read = pd.to_numeric(column, errors="coerce")  # what is none: NaN
    numbers = read.to_numpy(np.float64, na_value=np.nan)
    _refuse(column, ~np.isfinite(numbers), "a finite number", where)
    return numbers


def _refuse(column: pd.Series[Any], bad: Array, needed: str, where: str) -> None:
    if (rows := np.flatnonzero(bad)).size:
        cell = f"{where}, row {rows[0]}, column {column.name!r}"
        raise ValueError(f"{cell}: needs {needed}, got {column.tolist()[rows[0]]!r}")


def _arrays(path: Path) -> tuple[Array, Array]:
    """``X`` and ``y`` of an archive that may hold anything."""
    try:
        x, y = _unpacked(path)
    except Exception as error:  # whatever a damaged file makes of zipfile and its decompressors
        raise ValueError(f"{path}: not an npz archive with arrays X and y: {error}") from error
    if x.ndim != 2 or x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf":
        raise ValueError(f"{path}: needs numbers X (n, d) and y (n,), got {x.dtype}, {y.dtype}")
    if y.shape != x.shape[:1] or x.size == 0:
        raise ValueError(f"{path}: needs X (n, d) and y (n,), got {x.shape} and {y.shape}")
    if (bad := np.flatnonzero(~np.isfinite(x).all(1) | ((y != 0) & (y != 1)))).size:
        raise ValueError(f"{path}, row {bad[0]}: X is not finite or y is neither 0 nor 1")
    return x, y


def _unpacked(path: Path) -> tuple[Array, Array]:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_BYTES:
            raise ValueError(f"it unpacks to {size} bytes, more than {_MAX_BYTES}")
        return _member(archive, "X"), _member(archive, "y")


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    """An array, for which ``np.load`` would take the memory that the array's header claims."""
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = header[npy.read_magic(file)](file)
        content = file.read()  # at most what the archive says
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{name} has {len(content)} bytes, not those of {dtype} {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_frame(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except Exception as error:  # of pyarrow's own kinds
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error


def _fetch_kddcup99() -> pd.DataFrame:
    """The set of scikit-learn in the form of our file: text for bytes, the label without a dot."""
    from sklearn.datasets import fetch_kddcup99

    frame: pd.DataFrame = fetch_kddcup99(percent10=True, as_frame=True).frame
    frame = frame.rename(columns={"labels": "label"})
    for column in frame.columns:
        if isinstance(frame[column].iloc[0], bytes):
            frame[column] = frame[column].str.decode("ascii")
    frame["label"] = frame["label"].str.removesuffix(".")
    return frame


def _download(place: str) -> Path:
    return download(_URL.format(place))
