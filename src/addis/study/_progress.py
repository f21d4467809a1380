"""The progress of long work, with an estimate from what the finished part took.

A terminal gets a bar; a log file or a pipe gets a line from time to time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

__all__ = ["Advance", "progress_bar"]

_SECONDS_A_LINE: Final = 30.0


class Advance(Protocol):
    """Says that one trial of relative duration ``cost`` ended."""

    def __call__(self, cost: float, *, failed: bool = False) -> None:
        """Moves the bar."""


@dataclass(slots=True)
class _State:
    """How far the work is."""

    total_cost: float
    began: float
    cost: float = 0.0
    ended: int = 0
    failures: int = 0
    last: float = 0.0

    def add(self, cost: float, failed: bool) -> None:
        """Counts a trial that ended."""
        self.cost += cost
        self.ended += 1
        self.failures += failed
        self.last = time.monotonic()

    def left(self) -> str:
        """Time left: at the last trial's end, what had passed times the cost that was left over the
        cost that was done; less what has passed since.
        """
        if self.cost <= 0:
            return "estimating"
        seconds = (self.last - self.began) * (self.total_cost - self.cost) / self.cost
        return f"{_duration(max(seconds - (time.monotonic() - self.last), 0.0))} left"


class _Left(ProgressColumn):
    """Time left, counting down."""

    def render(self, task: Task) -> Text:
        state: _State = task.fields["state"]
        return Text("" if task.finished else state.left(), style="progress.remaining")


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
    """Shows the progress on ``console`` until the block ends; shows nothing if it is ``None``.

    Args:
        title: What is being done.
        count: Trials to do.
        total_cost: Sum of their costs.
        console: Where to show it: a bar on a terminal; elsewhere a line when a trial ends, at most
            every 30 s.
    """
    state = _State(total_cost, began=time.monotonic())
    if console is None or count == 0:
        yield lambda cost, failed=False: None
    elif console.is_terminal and not console.is_dumb_terminal:
        yield from _bar(state, title, count, console)
    else:
        yield _lines(state, title, count, console)


def _bar(state: _State, title: str, count: int, console: Console) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Left(),
        TextColumn("[red]{task.fields[failed]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(title), total=count, state=state, failed="")

        def advance(cost: float, *, failed: bool = False) -> None:
            state.add(cost, failed)
            failures = f"{state.failures} failed" if state.failures else ""
            progress.update(task, advance=1, failed=failures)

        yield advance


def _lines(state: _State, title: str, count: int, console: Console) -> Advance:
    said = state.began

    def advance(cost: float, *, failed: bool = False) -> None:
        nonlocal said
        state.add(cost, failed)
        if time.monotonic() - said < _SECONDS_A_LINE or state.ended == count:
            return
        said = time.monotonic()
        failures = f", {state.failures} failed" if state.failures else ""
        console.print(
            f"{title}: {state.ended} of {count} trials, {state.left()}{failures}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    return advance
