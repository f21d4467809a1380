"""The progress bar of long work, with an estimate from what the finished part took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

__all__ = ["Advance", "progress_bar"]


class Advance(Protocol):
    """Says that one trial of relative duration ``cost`` ended."""

    def __call__(self, cost: float, *, failed: bool = False) -> None:
        """Moves the bar."""


class _Left(ProgressColumn):
    """Time left: what has passed, times the cost that is left over the cost that is done."""

    def render(self, task: Task) -> Text:
        done, total = task.fields["cost"], task.fields["total_cost"]
        if task.finished or done <= 0:
            return Text("" if task.finished else "estimating", style="progress.remaining")
        elapsed = time.monotonic() - task.fields["began"]
        return Text(
            f"{_duration(elapsed * (total - done) / done)} left", style="progress.remaining"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextmanager
def progress_bar(
    title: str, count: int, total_cost: float, console: Console | None
) -> Iterator[Advance]:
    """Shows a bar on ``console`` until the block ends; shows nothing if it is ``None``.

    Args:
        title: What is being done.
        count: Trials to do.
        total_cost: Sum of their costs.
        console: Where to draw; it leaves the bar out by itself if it is not a terminal.
    """
    if console is None or count == 0:
        yield lambda cost, failed=False: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Left(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(
            title, total=count, cost=0.0, total_cost=total_cost, note="", began=time.monotonic()
        )
        failures = 0
        done = 0.0

        def advance(cost: float, *, failed: bool = False) -> None:
            nonlocal failures, done
            failures += failed
            done += cost
            note = f"[red]{failures} failed" if failures else ""
            progress.update(task, advance=1, cost=done, note=note)

        yield advance
