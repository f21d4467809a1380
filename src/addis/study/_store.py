"""The store: one SQLite file that the driver alone writes, a row for every trial that ended.

Journal mode is WAL and ``synchronous`` is NORMAL. A commit is then one write to the log without
waiting for the disk: it survives the death of the process at any instant, because what the
operating system has received it keeps. Only a power cut can lose the last commits, and it never
damages the file; the lost trials are computed again. FULL would wait for the disk at each trial and
gain only that. A trial that failed is kept with its error for the report, and does not count as
finished.
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from addis.study._executors import Outcome
from addis.study._study import Value

__all__ = ["Store", "StoreError"]

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY, study TEXT NOT NULL, function TEXT NOT NULL, settings TEXT NOT NULL,
    results TEXT NOT NULL, seconds REAL NOT NULL, error TEXT, ended TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS trials_of_study ON trials (study);
CREATE TABLE IF NOT EXISTS arrays (
    key TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (key, name)
);
"""


class StoreError(RuntimeError):
    """The store's file cannot be read or written; the message says why and what to do."""


class Store:
    """Keeps the outcomes of trials.

    Args:
        path: The SQLite file; made, with its folder, if it is absent.

    Raises:
        StoreError: The file is not a store, is of a newer version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store's folder {path.parent} cannot be made: {error.strerror}"
            ) from error
        with self._explained():
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        if found > _SCHEMA_VERSION:
            raise StoreError(f"{self.path} was written by a newer addis (store version {found})")
        if not found and self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StoreError(f"{self.path} is a database of another program")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        if found < _SCHEMA_VERSION:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
            self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            self._connection.execute("COMMIT")

    def finished(self, study: str) -> dict[str, Outcome]:
        """The outcomes of all trials of a study that ended without an error, by key.

        Raises:
            StoreError: The file is damaged.
        """
        with self._explained():
            rows = self._connection.execute(
                "SELECT key, results, seconds FROM trials WHERE study = ? AND error IS NULL",
                (study,),
            ).fetchall()
            arrays = self._connection.execute(
                "SELECT key, name, data FROM arrays"
                " WHERE key IN (SELECT key FROM trials WHERE study = ?) ORDER BY name",
                (study,),
            ).fetchall()
            found = {key: Outcome(json.loads(results), seconds) for key, results, seconds in rows}
            for key, name, data in arrays:
                if key in found:
                    found[key].values[name] = np.load(io.BytesIO(data), allow_pickle=False)
        return found

    def add(
        self, key: str, outcome: Outcome, *, study: str, function: str, settings: Mapping[str, Any]
    ) -> None:
        """Writes one outcome, whole or not at all, over an earlier one of the same key; a failure
        does not replace what another run has finished.

        Raises:
            StoreError: The disk is full, or the file cannot be written.
        """
        numbers, arrays = _split(outcome.values)
        row = (
            key, study, function, json.dumps(settings), json.dumps(numbers), outcome.seconds,
            outcome.error, datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        with self._explained(), self._transaction():
            if outcome.error is not None and self._is_finished(key):
                return
            self._connection.execute("DELETE FROM arrays WHERE key = ?", (key,))
            self._connection.execute(
                "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row
            )
            self._connection.executemany(
                "INSERT INTO arrays VALUES (?, ?, ?)",
                ((key, name, data) for name, data in arrays.items()),
            )

    def _is_finished(self, key: str) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM trials WHERE key = ? AND error IS NULL", (key,)
        )
        return found.fetchone() is not None

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, EOFError) as error:
            raise StoreError(_explanation(self.path, error)) from error


def _split(values: Mapping[str, Value]) -> tuple[dict[str, Any], dict[str, bytes]]:
    numbers: dict[str, Any] = {}
    arrays: dict[str, bytes] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            buffer = io.BytesIO()
            np.save(buffer, value, allow_pickle=False)
            arrays[name] = buffer.getvalue()
        else:
            numbers[name] = value
    return numbers, arrays


def _explanation(path: Path, error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    match primary:
        case sqlite3.SQLITE_FULL:
            why = "has no room left on its disk; finished trials are safe: free room and run again"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            why = "cannot be written; check its permissions or name another with --store"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            why = "is held by another process"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_ERROR | None:
            why = f"is not a store of addis or is damaged ({error}); move it away and run again"
        case _:
            why = f"failed: {error}"
    return f"the store {path} {why}"
