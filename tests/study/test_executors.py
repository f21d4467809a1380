from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from addis.study import Outcome, Task, executor
from tests.study.trials import Point, measure


def tasks(*behaviours: str) -> list[Task]:
    return [Task(str(x), measure, Point(x, x, kind)) for x, kind in enumerate(behaviours)]


def same(a: Outcome, b: Outcome) -> bool:
    assert a.values.keys() == b.values.keys()
    return all(np.array_equal(v, b.values[k], equal_nan=k == "nan") for k, v in a.values.items())


def test_processes_give_the_results_of_this_process():
    work = tasks(*[""] * 5)
    here = dict(executor("serial")(work))
    there = dict(executor("processes", workers=2)(work))
    assert here.keys() == there.keys() == {task.key for task in work}
    assert all(same(here[key], there[key]) for key in here)


def test_ray_gives_the_results_of_this_process():
    pytest.importorskip("ray")
    work = tasks("", "raise", "")
    here = dict(executor("serial")(work))
    there = dict(executor("ray", workers=2)(work))
    assert all(same(here[key], there[key]) for key in ("0", "2"))
    assert "ArithmeticError" in (there["1"].error or "")


def test_a_run_that_is_closed_leaves_nothing_at_work_on_a_ray_cluster_of_others():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        work = [Task(str(x), measure, Point(x, sleep=120.0 * (x > 0))) for x in range(3)]
        ended = executor("ray")(work)
        assert next(ended)[0] == "0"
        ended.close()
        patience = time.monotonic() + 30
        while ray.available_resources().get("CPU") != 2:
            assert time.monotonic() < patience, "a task of the run goes on"
            time.sleep(0.1)
    finally:
        ray.shutdown()


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_a_trial_that_raises_leaves_the_others_alone(name):
    work = tasks("", "raise", "exit", "object", "", "cancelled", "surrogate")
    ended = dict(executor(name, workers=2)(work))
    errors = {key: outcome.error for key, outcome in ended.items()}
    assert errors["0"] is errors["4"] is None
    assert "ArithmeticError: x = 1" in errors["1"]
    assert "Traceback" in errors["1"]
    assert "SystemExit" in errors["2"]
    assert "must be a number, text or array, got object" in errors["3"]
    assert "CancelledError" in errors["5"]
    assert r"ValueError: bad \udcff" in errors["6"]
    "".join(map(str, errors.values())).encode()


def test_a_process_that_dies_fails_its_own_trial_only():
    ended = dict(executor("processes", workers=2)(tasks("", "die", "", "", "die", "")))
    assert {key for key, outcome in ended.items() if outcome.error} == {"1", "4"}
    assert "died with exit code -9" in (ended["1"].error or "")


def test_a_program_that_no_process_can_read_is_one_clear_error(tmp_path):
    program = tmp_path / "unguarded.py"
    program.write_text(
        "from addis.study import Task, executor\n"
        "from tests.study.trials import Point, measure\n"
        "work = [Task(str(i), measure, Point(i)) for i in range(2000)]\n"
        "list(executor('processes', workers=2)(work))\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(program)], cwd=here, env=os.environ | {"PYTHONPATH": str(here)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'under if __name__ == "__main__" only' in done.stderr


def test_trials_compute_with_the_threads_asked_for_and_leave_the_callers_alone():
    before = torch.get_num_threads()
    (_, outcome), *_ = executor("serial", threads=2)(tasks(""))
    assert outcome.values["threads"] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_nothing_to_do_is_no_work(name):
    assert list(executor(name)([])) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "threads"}, "executor must be serial, processes or ray, got 'threads'"),
        ({"name": "serial", "workers": 0}, "must be >= 1, got 0"),
        ({"name": "serial", "threads": 0}, "must be >= 1"),
        ({"name": "processes", "address": "auto"}, "address is for the executor 'ray'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        executor(**arguments)


class Interrupted:
    """Is interrupted in its destructor, from where no exception comes out."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("count", [1, 20])
def test_an_interrupt_is_not_lost_where_exceptions_are(count):
    running = executor("processes", workers=2)(tasks(*[""] * count))
    next(running)
    Interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(running)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_users_own_handler_of_interrupts_is_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert len(dict(executor("processes", workers=2)(tasks("", "")))) == 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
