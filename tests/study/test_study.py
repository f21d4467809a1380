from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from addis.study import Claim, Trial, spread_text, value_text
from tests.study.trials import Point, measure


def other(point: Point) -> dict[str, Any]:
    return measure(point)


def test_a_key_depends_on_function_arguments_and_version_alone():
    trial = Trial(measure, Point(1, sleep=0.5), cost=1)
    assert trial.key(1) == Trial(measure, Point(1, sleep=0.5), cost=9).key(1)
    different = [
        Trial(other, Point(1, sleep=0.5)).key(1),
        Trial(measure, Point(2, sleep=0.5)).key(1),
        Trial(measure, Point(1, sleep=0.25)).key(1),
        trial.key(2),
    ]
    assert len({trial.key(1), *different}) == 5


def test_a_trial_needs_a_module_level_function_and_a_frozen_dataclass():
    @dataclass
    class Loose:
        seed: int = 0

    with pytest.raises(TypeError, match="function must be defined at the top of a module"):
        Trial(lambda args: {}, Point(1))
    with pytest.raises(TypeError, match="args must be a frozen dataclass, got Loose"):
        Trial(measure, Loose())
    with pytest.raises(TypeError, match="must be plain data, got object"):
        Trial(measure, Point(object())).key(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measured": None, "holds": True}, "a verdict needs a measured value"),
        ({"measured": 1.0, "holds": None}, "say in note why it could not be judged"),
    ],
)
def test_no_verdict_without_numbers_and_no_silence_without_a_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        Claim(id="A", text="t", paper=None, **changes)


def test_what_does_not_hold_is_not_reproduced_whoever_broke_it_later():
    verdicts = [
        Claim(id="A", text="t", paper=1, measured=1.0, holds=holds, broken_by=later).verdict
        for holds in (True, False)
        for later in ("", "a later paper")
    ]
    assert verdicts == ["reproduced", "broken since", "not reproduced", "not reproduced"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00012345, "0.0001234"), (1234567, "1 234 567"), (2.0, "2"), (True, "True"), ("up", "up")],
)
def test_values_read_short(value, text):
    assert value_text(value) == text


def test_an_interval_with_an_open_end_reads():
    assert spread_text((None, 0.5)) == "[–, 0.5]"
