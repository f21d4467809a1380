from __future__ import annotations

import dataclasses
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from addis.study import (
    Row,
    Study,
    Trial,
    executor,
    mapper,
    read_bench,
    read_record,
    read_records,
    run,
    write_bench,
    write_record,
)
from tests.study import trials as toys
from tests.study.trials import Point, measure, toy

SERIAL = executor("serial")


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def table(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="seconds")


def test_a_run_gives_a_row_a_trial_in_the_studys_order_whatever_the_executor(tmp_path):
    one = run(toy(), execute=SERIAL, store=tmp_path / "a")
    two = run(toy(), execute=executor("processes", workers=2), store=tmp_path / "b")
    assert list(one.frame["x"]) == list(range(6))
    pd.testing.assert_frame_equal(table(one.frame), table(two.frame))
    assert (one.frame["function"] == "measure").all()
    assert one.frame["error"].isna().all()
    assert one.seconds == pytest.approx(one.frame["seconds"].sum())
    assert [claim.verdict for claim in one.claims] == [
        "reproduced", "not reproduced", "not judged", "broken since",
    ]  # fmt: skip


def test_a_finished_trial_is_not_computed_again(tmp_path):
    log = tmp_path / "log"
    first = run(toy(log=str(log)), execute=SERIAL, store=tmp_path / "s")
    again = run(toy(log=str(log)), execute=SERIAL, store=tmp_path / "s")
    assert (first.computed, again.computed) == (6, 0)
    assert lines(log) == list(range(6))
    pd.testing.assert_frame_equal(first.frame, again.frame)


def test_a_larger_config_computes_only_what_is_new(tmp_path):
    run(toy(points=3), execute=SERIAL, store=tmp_path / "s")
    assert run(toy(points=5), execute=SERIAL, store=tmp_path / "s").computed == 2


def test_a_new_version_of_the_method_computes_all_again(tmp_path):
    run(toy(), execute=SERIAL, store=tmp_path / "s")
    newer = dataclasses.replace(toy(), method=dataclasses.replace(toys.METHOD, version=2))
    assert run(newer, execute=SERIAL, store=tmp_path / "s").computed == 6


def test_failures_are_told_and_computed_again_next_time(tmp_path):
    study = toy(behaviour="raise", bad=(1, 4))
    first = run(study, execute=SERIAL, store=tmp_path / "s")
    assert [failure.settings["x"] for failure in first.failures] == [1, 4]
    assert first.claims == []
    assert first.frame.loc[[1, 4], "value"].isna().all()
    assert run(study, execute=SERIAL, store=tmp_path / "s").computed == 2


def test_a_claims_function_that_is_wrong_is_not_hidden(tmp_path):
    def broken(results: pd.DataFrame) -> list:
        raise KeyError("colum")

    with pytest.raises(KeyError, match="colum"):
        run(dataclasses.replace(toy(), claims=broken), execute=SERIAL, store=tmp_path / "s")


def test_bad_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no scale 'paper', only tiny"):
        run(toy(), "paper", store=tmp_path / "s")
    twice = dataclasses.replace(toy(), trials=lambda config: [Trial(measure, Point(1))] * 2)
    with pytest.raises(ValueError, match=r"has a trial twice: .*measure"):
        run(twice, store=tmp_path / "s")


def test_device_goes_into_the_config_of_a_study_that_has_one(tmp_path):
    assert run(toy(), device="meta", execute=SERIAL, store=tmp_path / "s").config.device == "meta"

    @dataclasses.dataclass(frozen=True)
    class Plain:
        points: int = 1

    plain = dataclasses.replace(
        toy(), scales={"tiny": Plain()}, trials=lambda config: [Trial(measure, Point(0))]
    )
    with pytest.raises(ValueError, match="computes on the CPU only, got device 'cuda'"):
        run(plain, device="cuda", store=tmp_path / "s")


def test_progress_is_drawn_where_asked(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    study = toy(behaviour="raise", bad=(0,), sleep=0.15)
    run(study, execute=SERIAL, store=tmp_path / "s", console=console)
    drawn = console.file.getvalue()
    assert "99 toy, tiny" in drawn
    assert "left" in drawn
    assert "1 failed" in drawn


def test_the_record_says_what_was_measured_where(tmp_path):
    done = run(toy(), execute=SERIAL, store=tmp_path / "s")
    folder = write_record(done, tmp_path / "results")
    write_record(done, tmp_path / "results")  # over the earlier one
    assert sorted(p.name for p in folder.iterdir()) == ["run.json", "sums.png", "trials.csv"]
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    (record,) = read_records(tmp_path / "results")
    content = record.content
    assert content["command"] == "addis run 99 --scale tiny"
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"]
    assert content["claims"][0]["verdict"] == "reproduced"
    assert content["tables"][0]["columns"] == ["x", "value"]
    assert content["tables"][0]["rows"][5][0] == 5
    frame = pd.read_csv(folder / "trials.csv")
    assert "curve" not in frame
    np.testing.assert_allclose(frame["value"], done.frame["value"], rtol=1e-7)


def test_a_record_with_failures_has_their_tracebacks(tmp_path):
    done = run(toy(behaviour="raise", bad=(2,)), execute=SERIAL, store=tmp_path / "s")
    write_record(done, tmp_path / "results")
    (record,) = read_records(tmp_path / "results")
    assert "ArithmeticError" in record.content["failures"][0]["error"]
    assert record.content["figures"] == []


def test_what_cannot_do_without_failed_trials_is_left_out_of_the_record_with_a_note(tmp_path):
    def broken(results: pd.DataFrame) -> list:
        raise KeyError("risk")

    def told(results: pd.DataFrame) -> list:
        return toys.claims(results.fillna({"value": 0.0}))

    study = toy(behaviour="raise", bad=(2,))
    done = run(
        dataclasses.replace(study, claims=told, figures=broken), execute=SERIAL,
        store=tmp_path / "s",
    )  # fmt: skip
    record = read_record(write_record(done, tmp_path / "results")).content
    assert len(record["claims"]) == 4
    assert len(record["tables"]) == 1
    assert record["figures"] == []
    assert record["notes"][0] == "The figures need the trials that failed (KeyError: 'risk')."
    none = run(study, execute=SERIAL, store=tmp_path / "s")
    record = read_record(write_record(none, tmp_path / "results")).content
    assert record["notes"][0].startswith("The claims need the trials that failed (ValueError: no")
    whole = run(dataclasses.replace(toy(), figures=broken), execute=SERIAL, store=tmp_path / "t")
    with pytest.raises(KeyError):
        write_record(whole, tmp_path / "results")


def test_a_record_takes_the_place_of_the_earlier_one_and_what_was_left_unfinished_goes(tmp_path):
    done = run(toy(), execute=SERIAL, store=tmp_path / "s")
    folder = write_record(done, tmp_path)
    (folder / "old.png").touch()
    fresh, stale = folder.with_name(".tiny-fresh"), folder.with_name(".tiny-stale")
    for left in (fresh, stale):
        shutil.copytree(folder, left)
    os.utime(stale, (0, 0))
    assert write_record(done, tmp_path) == folder
    assert {path.name for path in folder.iterdir()} == {"run.json", "trials.csv", "sums.png"}
    assert {path.name for path in folder.parent.iterdir()} == {"tiny", ".tiny-fresh"}
    assert [record.folder for record in read_records(tmp_path)] == [folder]


def test_a_record_is_whole_whenever_its_writer_is_killed(tmp_path, monkeypatch):
    done = run(toy(), execute=SERIAL, store=tmp_path / "s")
    folder = write_record(done, tmp_path)
    replace = Path.replace
    for moves in range(3):
        left = iter(range(moves))

        def killed(path: Path, to: Path, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(path, to)

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_record(done, tmp_path)
        monkeypatch.setattr(Path, "replace", replace)
        assert read_records(tmp_path)[0].content["figures"]
        assert (folder / "sums.png").is_file()


def test_what_is_no_record_is_named(tmp_path):
    (tmp_path / "01" / "tiny").mkdir(parents=True)
    (tmp_path / "01" / "tiny" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not a record"):
        read_records(tmp_path)


def test_bench_rows_are_kept_and_shown_without_the_note(tmp_path):
    row = Row(
        work="w", peer="p", version="1", unit="ms", addis=1.0, peer_value=2.0, ratio=0.5,
        target=0.8, note="n",
    )  # fmt: skip
    shown = write_bench("99", [row], tmp_path)
    assert shown.keys() == {"paper", "machine", "rows"}
    assert shown["rows"][0].keys() == {
        "work", "peer", "version", "unit", "addis", "peer_value", "ratio", "target",
    }  # fmt: skip
    kept = read_bench("99", tmp_path)
    assert kept is not None
    assert kept["rows"][0]["note"] == "n"
    assert read_bench("98", tmp_path) is None
    assert [path.name for path in (tmp_path / "99").iterdir()] == ["bench.json"]
    for text in ('{"rows": [', "{}", '{"format": 1}'):
        (tmp_path / "99" / "bench.json").write_text(text)
        with pytest.raises(ValueError, match=r"bench\.json"):
            read_bench("99", tmp_path)


def test_mapper_maps_in_order_and_resumes(tmp_path):
    log = str(tmp_path / "log")
    points = [Point(x, log=log) for x in (3, 1, 2)]
    apply = mapper("my sweep", execute=SERIAL, store=tmp_path / "s")
    first = apply(measure, points)
    again = apply(measure, [*points, Point(7, log=log)])
    assert [len(result["curve"]) for result in again] == [4, 2, 3, 8]
    assert again[0]["value"] == first[0]["value"]
    assert lines(tmp_path / "log") == [3, 1, 2, 7]
    with pytest.raises(RuntimeError, match=r"1 of 2 points failed(.|\n)*ArithmeticError"):
        apply(measure, [Point(3, log=log), Point(5, behaviour="raise")])


def test_mapper_takes_results_of_any_name(tmp_path):
    apply = mapper("my sweep", execute=SERIAL, store=tmp_path / "s")
    for _ in range(2):  # computed, then from the store
        results = apply(measure, [Point(3, behaviour="clash")])
        assert results == [{"x": 1.0, "error": 0.5, "seconds": 2.0}]


def test_a_result_that_would_hide_a_column_of_the_frame_fails_its_trial(tmp_path):
    done = run(toy(behaviour="clash", bad=(2,)), execute=SERIAL, store=tmp_path / "s")
    (failure,) = done.failures
    assert failure.settings["x"] == 2
    assert failure.error == (
        "ValueError: result 'x' has the name of an argument or of a column of the frame"
    )
    assert "word" in done.frame


def test_mapper_hands_on_a_result_that_tells_a_failure_and_computes_it_again(tmp_path):
    log = str(tmp_path / "log")
    apply = mapper("my sweep", execute=SERIAL, store=tmp_path / "s")
    points = [Point(1, log=log), Point(2, log=log, behaviour="told")]
    for _ in range(2):
        assert apply(measure, points)[1] == {"failed": "x = 2"}
    assert lines(tmp_path / "log") == [1, 2, 2]


DRIVER = """
import sys
from pathlib import Path
from addis.study import executor, run
from tests.study.trials import toy
if __name__ == "__main__":
    store, log, name, points = sys.argv[1:]
    try:
        study = toy(points=int(points), log=log, sleep=0.03)
        run(study, execute=executor(name, workers=2), store=Path(store))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def driver(tmp_path: Path, name: str, points: int = 24) -> subprocess.Popen[bytes]:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, str(script), str(tmp_path / "s"), str(tmp_path / "log"), name, str(points)
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, start_new_session=True)


def descendants_are_gone(group: int, within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        alive = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True).stdout
        if not alive.strip():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_a_run_killed_at_random_moments_loses_nothing_and_computes_nothing_twice(tmp_path, name):
    """Ends with the table of an undisturbed run. ``benchmarks/b00_engine.py`` does it 100 times."""
    study = toy(points=24, log=str(tmp_path / "log"), sleep=0.03)
    moments = random.Random(5)
    kept: dict[str, object] = {}
    for _ in range(3):
        before = Counter(lines(tmp_path / "log"))
        process = driver(tmp_path, name)
        while len(lines(tmp_path / "log")) == sum(before.values()) and process.poll() is None:
            time.sleep(0.01)  # until the first trial of this run has begun
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.wait()
        assert descendants_are_gone(process.pid, within=10)
        begun = Counter(lines(tmp_path / "log")) - before
        assert not begun.keys() & kept.keys(), "a finished trial was computed again"
        kept = finished(tmp_path, study)
    done = run(study, execute=SERIAL, store=tmp_path / "s")
    undisturbed = run(dataclasses.replace(study), execute=SERIAL, store=tmp_path / "other")
    pd.testing.assert_frame_equal(table(done.frame), table(undisturbed.frame))


def finished(tmp_path: Path, study: Study) -> dict[int, object]:
    from addis.study import Store

    keys = {trial.key(1): trial.args.x for trial in study.trials(study.scales["tiny"])}
    with Store(tmp_path / "s") as store:
        return {keys[key]: outcome for key, outcome in store.finished("99").items()}


def test_ctrl_c_stops_a_run_and_its_processes(tmp_path):
    process = driver(tmp_path, "processes", points=3000)
    while len(lines(tmp_path / "log")) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert descendants_are_gone(process.pid, within=5)
