"""The progress bar of a training run."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip

__all__ = ["Bar"]

_PERIOD = 0.1  # seconds between two updates: the loop must not wait for its bar


class Bar:
    """A bar over the batches of all epochs, on standard error, with an estimate of the time left.

    The estimate is the batches left over the rate of the last 30 seconds, so that what the caller
    does between epochs counts in it. A loader that does not know its length is counted in epochs.

    Args:
        epochs: Epochs of the whole run.
        first: Epochs that were done before.
        batches: Batches an epoch, or ``None``.
        shown: ``False`` makes every call do nothing.
    """

    def __init__(self, epochs: int, first: int, batches: int | None, *, shown: bool) -> None:
        self._epochs = epochs
        self._batches = batches
        self._done = 0
        self._next = 0.0
        self._progress: Progress | None = None
        if shown:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("batches" if batches else "epochs"), TimeElapsedColumn(),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            unit = batches or 1
            self._task = self._progress.add_task("", total=epochs * unit, completed=first * unit)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begin(self, index: int) -> None:
        """Says which epoch is running."""
        if self._progress is not None:
            text = f"epoch {index + 1}/{self._epochs}"
            self._progress.update(self._task, description=text)

    def advance(self) -> None:
        """Counts one batch."""
        if self._progress is None or self._batches is None:
            return
        self._done += 1
        if (now := time.monotonic()) >= self._next:
            self._next = now + _PERIOD
            self._flush()

    def end(self, loss: float) -> None:
        """Says what the epoch came to."""
        if self._progress is None:
            return
        if self._batches is None:
            self._done = 1
        self._flush()
        task = self._progress.tasks[0]
        self._progress.update(self._task, description=f"{task.description}, loss {loss:.4g}")

    def _flush(self) -> None:
        assert self._progress is not None
        self._progress.advance(self._task, self._done)
        self._done = 0
