"""The progress of long work, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from addis.study import _progress
from addis.study._progress import progress_bar


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def test_log_gets_a_line_now_and_then(clock: Clock) -> None:
    out = io.StringIO()
    with progress_bar("99 toy, tiny", 4, 8.0, Console(file=out, width=20)) as advance:
        clock.now += 10
        advance(1.0)
        assert out.getvalue() == ""  # too early
        clock.now += 30
        advance(3.0, failed=True)
        # half of the cost took 40 s
        assert out.getvalue() == "99 toy, tiny: 2 of 4 trials, 40 s left, 1 failed\n"
        clock.now += 29
        advance(1.0)
        clock.now += 100
        advance(3.0)
    assert out.getvalue().count("\n") == 1  # the last trial's end is told by the summary


def test_estimate_counts_down_between_trials(clock: Clock) -> None:
    state = _progress._State(total_cost=4.0, began=clock.now)
    assert state.left() == "estimating"
    clock.now += 100
    state.add(1.0, failed=False)
    assert state.left() == "5 min left"
    clock.now += 240
    assert state.left() == "60 s left"
    clock.now += 240
    assert state.left() == "0 s left"


def test_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with progress_bar("toy", 2, 2.0, Console(file=out, force_terminal=True, width=99)) as advance:
        advance(1.0, failed=True)
    assert "1/2" in out.getvalue()
    assert "1 failed" in out.getvalue()


@pytest.mark.parametrize(("count", "console"), [(0, Console(file=io.StringIO())), (3, None)])
def test_nothing_to_show(count: int, console: Console | None) -> None:
    with progress_bar("toy", count, 1.0, console) as advance:
        advance(1.0)
    assert console is None or console.file.getvalue() == ""  # type: ignore[attr-defined]
