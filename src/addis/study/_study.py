"""What a study is: independent trials, claims about their results, and figures of those results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd

from addis.methods import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["Claim", "Figure", "Scale", "Study", "Table", "Trial", "Value", "Verdict"]

Scale = Literal["tiny", "small", "paper"]
Verdict = Literal["reproduced", "not reproduced", "broken since", "not judged"]
Value = float | int | bool | str | np.ndarray[Any, Any]
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Trial:
    """One independent piece of a study: a module-level function and the frozen dataclass it takes.

    The function returns a flat mapping from names to numbers, short strings or NumPy arrays;
    scalars become columns of the results, arrays are kept beside them. It knows nothing of stores,
    executors or reports.

    Args:
        function: Importable by its module and name, so that any process can call it.
        args: A frozen dataclass of numbers, strings, booleans, ``None`` and (nested) tuples of
            those; the seed is one of its fields.
        cost: Expected duration relative to the study's other trials; only the progress estimate
            uses it.

    Raises:
        TypeError: ``function`` is not a module-level function, or ``args`` is not such a dataclass.
    """

    function: Callable[[Any], Mapping[str, Value]]
    args: Any
    cost: float = 1.0

    def __post_init__(self) -> None:
        qualname = getattr(self.function, "__qualname__", "<unnamed>")
        if "<" in qualname or "." in qualname:
            raise TypeError(f"function must be defined at the top of a module, got {qualname!r}")
        params = getattr(type(self.args), "__dataclass_params__", None)
        if params is None or not params.frozen:
            raise TypeError(f"args must be a frozen dataclass, got {type(self.args).__name__}")

    @property
    def name(self) -> str:
        """The function's import path, ``module:function``."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def settings(self) -> dict[str, Any]:
        """The arguments by name, as plain values."""
        return dataclasses.asdict(self.args)

    def key(self, version: int) -> str:
        """Identifies the trial in a store: hash of the function's name, the arguments and the
        method's version.
        """
        what = json.dumps([self.name, self.settings(), version], sort_keys=True, default=_refuse)
        return hashlib.sha256(what.encode()).hexdigest()


def _refuse(value: object) -> Any:
    raise TypeError(f"a trial's argument must be plain data, got {type(value).__name__}: {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence of the paper, what was measured for it, and whether it held.

    Args:
        id: Short name within the study: ``"P1"``.
        text: The claim as a sentence that a number can decide.
        paper: The paper's value, or a word for its shape; ``None`` where the paper gives none.
        measured: The value measured here.
        spread: Half-width of the uncertainty of ``measured`` over seeds, or its interval; in the
            same unit.
        holds: The predicate's outcome; ``None`` if it could not be judged, and ``note`` says why.
        unit: Unit of ``paper`` and ``measured``.
        broken_by: Later work that broke the claim and whose finding this study confirms.
        note: What a reader must know to read the numbers rightly.
    """

    id: str
    text: str
    paper: float | str | None
    measured: float | str | None
    spread: float | tuple[float, float] | None = None
    holds: bool | None
    unit: str = ""
    broken_by: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.holds is not None and self.measured is None:
            raise ValueError(f"claim {self.id}: a verdict needs a measured value")
        if self.holds is None and not self.note:
            raise ValueError(f"claim {self.id}: say in note why it could not be judged")

    @property
    def verdict(self) -> Verdict:
        """``broken since`` says that the claim holds in the paper's own terms and fails in the
        later work's.
        """
        if self.holds is None:
            return "not judged"
        if not self.holds:
            return "not reproduced"
        return "broken since" if self.broken_by else "reproduced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture of the results. ``alt`` tells in words what a reader would see."""

    name: str
    figure: MatplotlibFigure
    alt: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Numbers that belong beside the claims: a row a setting, a column a measure, printed as they
    are.
    """

    name: str
    frame: pd.DataFrame
    caption: str


def _no_tables(results: pd.DataFrame) -> list[Table]:
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Generic[C]):
    """The re-run of one paper.

    Args:
        method: The record of the paper's method.
        problem: What the paper solves and for whom: a paragraph for the report.
        scales: A frozen config dataclass for each scale. A field ``device`` makes ``--device``
            available.
        trials: The trials of a config. ``config.seeds`` and the like decide how many.
        claims: Judges a frame of results: a row a trial, its arguments and its numbers as columns,
            arrays as object columns, ``seconds``, and ``function`` (the function's bare name).
        figures: Draws the same frame.
        tables: Sums it up in numbers.
        notes: Sentences on what weakens the paper's claim or this re-run, printed with every
            result.
        threads: CPU threads a trial computes with, the same in every executor so that results
            agree.
    """

    method: Method
    problem: str
    scales: Mapping[Scale, C]
    trials: Callable[[C], Iterable[Trial]]
    claims: Callable[[pd.DataFrame], list[Claim]]
    figures: Callable[[pd.DataFrame], list[Figure]]
    tables: Callable[[pd.DataFrame], list[Table]] = _no_tables
    notes: tuple[str, ...] = ()
    threads: int = 1
