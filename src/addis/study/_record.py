"""The record of a run: a folder ``NN/SCALE`` with what the report and a reader of the repository
need.

``run.json`` holds the claims and where they were measured, ``trials.csv`` a row a trial, and a PNG
stands beside them for each figure. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from addis.study._bench import Row
from addis.study._machine import machine, versions
from addis.study._run import Run

__all__ = [
    "RESULTS", "Record", "read_bench", "read_record", "read_records", "write_bench", "write_record",
]  # fmt: skip

RESULTS: Final = Path("results")
_FORMAT: Final = 1
_STALE: Final = 3600.0
_RUN: Final = "run.json"
_BENCH: Final = "bench.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What ``run.json`` says, and the folder it stands in."""

    folder: Path
    content: dict[str, Any]


def write_record(run: Run, root: Path = RESULTS) -> Path:
    """Draws the figures and writes the folder of a run in place of an earlier one.

    Args:
        run: What was run.
        root: The folder of all records.

    Returns:
        The record's folder, ``root/NN/SCALE``.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = root / run.study.method.study / run.scale
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{run.scale}-*"):  # by a run that was killed
        if time.time() - left.stat().st_mtime > _STALE:
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{run.scale}-", dir=folder.parent))
    try:
        missed = list(run.notes)
        figures = _if_whole(run, missed, "figures", lambda: _draw(run, new))
        tables = _if_whole(run, missed, "tables", lambda: _tables(run))
        content = _content(run, figures, tables, missed)
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (new / _RUN).write_text(text + "\n", encoding="utf-8")
        plain = [name for name in run.frame if not _holds_arrays(run, str(name))]
        run.frame[plain].to_csv(new / "trials.csv", index=False, float_format="%.8g")
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _if_whole(
    run: Run, missed: list[str], what: str, make: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What ``make`` gives; nothing and a note where it cannot do without the trials that failed."""
    if run.failures and not run.claims:
        return []
    try:
        return make()
    except Exception as error:
        if not run.failures:
            raise
        missed.append(f"The {what} need the trials that failed ({type(error).__name__}: {error}).")
        return []


def _replace(folder: Path, new: Path) -> None:
    """Puts the files of ``new`` in the place of those of ``folder``, ``run.json`` last: whenever
    the process is killed, and whoever writes at the same time, there is a whole ``run.json``.
    """
    folder.mkdir(exist_ok=True)
    names = sorted((path.name for path in new.iterdir()), key=lambda name: name == _RUN)
    for name in names:
        (new / name).replace(folder / name)
    for path in folder.iterdir():
        if path.name not in names and path.is_file():
            path.unlink(missing_ok=True)


def _holds_arrays(run: Run, column: str) -> bool:
    return bool(run.frame[column].map(lambda value: isinstance(value, np.ndarray)).any())


def _draw(run: Run, folder: Path) -> list[dict[str, Any]]:
    import matplotlib

    drawn: list[dict[str, Any]] = []
    with matplotlib.rc_context({"figure.dpi": 110, "savefig.dpi": 160, "font.size": 9}):
        for figure in run.study.figures(run.frame):
            file = f"{figure.name}.png"
            figure.figure.savefig(folder / file, bbox_inches="tight", metadata={"Software": None})
            figure.figure.clear()
            drawn.append(
                {"name": figure.name, "file": file, "alt": figure.alt, "caption": figure.caption}
            )
    return drawn


def _content(
    run: Run,
    figures: list[dict[str, Any]],
    tables: list[dict[str, Any]],
    missed: list[str],
) -> dict[str, Any]:
    method = run.study.method
    config = dataclasses.asdict(run.config)
    device = f" --device {config['device']}" if config.get("device", "cpu") != "cpu" else ""
    content: dict[str, Any] = _finite(
        {
            "format": _FORMAT,
            "study": method.study,
            "method": dataclasses.asdict(method),
            "scale": run.scale,
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"addis run {method.study} --scale {run.scale}{device}",
            "config": config,
            "machine": machine(),
            "versions": versions(),
            "seconds": round(run.seconds, 1),
            "trials": len(run.frame),
            "failures": [dataclasses.asdict(failure) for failure in run.failures],
            "problem": run.study.problem,
            "claims": [
                {**dataclasses.asdict(claim), "verdict": claim.verdict} for claim in run.claims
            ],
            "tables": tables,
            "figures": figures,
            "notes": [*missed, *run.study.notes],
        }
    )
    return content


def _tables(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "name": table.name,
            "caption": table.caption,
            "columns": [str(column) for column in table.frame.columns],
            "rows": table.frame.astype(object).to_numpy().tolist(),
        }
        for table in run.study.tables(run.frame)
    ]


def _finite(value: Any) -> Any:
    """Turns NumPy scalars into Python's, and what JSON has no number for (NaN, infinity) into
    ``None``.
    """
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_records(root: Path = RESULTS) -> list[Record]:
    """Reads every record under ``root``, ordered by paper and scale.

    Raises:
        ValueError: A ``run.json`` is not a record, or of another format.
    """
    folders = (path.parent for path in sorted(root.glob(f"[0-9][0-9]/*/{_RUN}")))
    return [read_record(folder) for folder in folders if not folder.name.startswith(".")]


def read_record(folder: Path) -> Record:
    """Reads the record ``root/NN/SCALE``.

    Raises:
        ValueError: Its ``run.json`` is not a record, or of another format.
    """
    content = _read(folder / _RUN)
    if (content.get("study"), content.get("scale")) != folder.parts[-2:]:
        raise ValueError(f"{folder} holds the record of another study or scale")
    return Record(folder, content)


def read_bench(paper: str, root: Path = RESULTS) -> dict[str, Any] | None:
    """Reads what :func:`write_bench` wrote for a paper; ``None`` if there is nothing.

    Raises:
        ValueError: The file is not a record of a benchmark, or of another format.
    """
    path = root / paper / _BENCH
    if not path.is_file():
        return None
    content = _read(path)
    if "rows" not in content:
        raise ValueError(f"{path} holds no rows of a benchmark")
    return content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a record: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a record of format {_FORMAT}")
    return content


def write_bench(paper: str, rows: Sequence[Row], root: Path = RESULTS) -> dict[str, Any]:
    """Writes the rows of a benchmark to ``root/NN/bench.json`` and returns what ``--json`` prints.

    Args:
        paper: The paper's number.
        rows: The comparisons.
        root: The folder of all records.

    Raises:
        OSError: The file cannot be written.
    """
    kept = [_finite(dataclasses.asdict(row)) for row in rows]
    date = datetime.now(UTC).date().isoformat()
    content = {"format": _FORMAT, "paper": paper, "date": date, "machine": machine(), "rows": kept}
    path = root / paper / _BENCH
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{_BENCH}-{os.getpid()}")
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    shown = [{key: value for key, value in row.items() if key != "note"} for row in kept]
    return {"paper": paper, "machine": machine(), "rows": shown}
