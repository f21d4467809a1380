"""What the engine costs: start-up, a trial's overhead, resuming a large study, killed runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from addis.methods import Method
from addis.study import Claim, Executor, Figure, Outcome, Row, Store, Study, Trial, executor, run

METHOD = Method(
    name="engine", verb="study", title="The engine", arxiv="-", study="00", venue="-", summary="-"
)


@dataclass(frozen=True)
class Point:
    x: int
    sleep: float = 0.0
    log: str = ""


@dataclass(frozen=True)
class Config:
    points: int
    sleep: float = 0.0
    log: str = ""


def square(point: Point) -> dict[str, float]:
    if point.log:
        with Path(point.log).open("a") as log:
            log.write(f"{point.x}\n")
    time.sleep(point.sleep)
    return {"value": point.x**2}


def trials(config: Config) -> list[Trial]:
    return [Trial(square, Point(x, config.sleep, config.log)) for x in range(config.points)]


def no_claims(results: pd.DataFrame) -> list[Claim]:
    return []


def no_figures(results: pd.DataFrame) -> list[Figure]:
    return []


def study(config: Config) -> Study[Config]:
    return Study(
        method=METHOD, problem="", scales={"tiny": config}, trials=trials, claims=no_claims,
        figures=no_figures,
    )  # fmt: skip


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """``full`` kills 100 runs, otherwise 10."""
    yield _limit("import addis", "s", 0.2, _extra_seconds("import addis"))
    yield _limit("addis --help", "s", 1.0, _seconds("-m", "addis", "--help"))
    with tempfile.TemporaryDirectory() as folder:
        yield from _overheads(Path(folder))
        yield _limit("resume 10,000 finished trials", "s", 1.0, _resume(Path(folder), 10_000))
        kills = 100 if full else 10
        lost, twice, differ = _kill(Path(folder), kills)
        work = (
            f"{kills} runs killed at random: finished trials lost + run twice + cells that differ"
        )
        yield Row(
            work=work, peer="limit of the plan", version="-", unit="trials",
            addis=float(lost + twice + differ), peer_value=0.0, ratio=None, target=None,
            note=f"lost {lost}, twice {twice}, values that differ {differ}",
        )  # fmt: skip


def _limit(work: str, unit: str, limit: float, value: float, note: str = "") -> Row:
    return Row(
        work=work, peer="limit of the plan", version="-", unit=unit, addis=value, peer_value=limit,
        ratio=value / limit, target=1.0, note=note,
    )  # fmt: skip


def _seconds(*arguments: str) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - start)
    return best


def _extra_seconds(code: str) -> float:
    return _seconds("-c", code) - _seconds("-c", "pass")


def _overheads(folder: Path) -> Iterator[Row]:
    count = 400
    for name, workers in (("serial", 1), ("processes", 2)):
        execute = executor(name, workers=workers)
        list(execute([]))
        begun = _timed_run(folder / f"{name}-few", 2 * workers, execute)
        whole = _timed_run(folder / f"{name}-many", count + 2 * workers, execute)
        yield _limit(
            f"overhead a trial, {name}", "ms", 5.0, (whole - begun) / count * 1e3,
            f"{count} empty trials through executor and store, start-up taken off",
        )  # fmt: skip


def _timed_run(store: Path, points: int, execute: Executor) -> float:
    start = time.perf_counter()
    run(study(Config(points)), execute=execute, store=store)
    return time.perf_counter() - start


def _resume(folder: Path, count: int) -> float:
    large = study(Config(count))
    with Store(folder / "large") as store:
        for trial in large.trials(Config(count)):
            store.add(
                trial.key(1), Outcome({"value": 1.0}, 0.0), study="00", function=trial.name,
                settings=trial.settings(),
            )  # fmt: skip
    start = time.perf_counter()
    done = run(large, store=folder / "large")
    seconds = time.perf_counter() - start
    assert done.computed == 0
    return seconds


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import b00_engine as bench
from addis.study import executor, run
if __name__ == "__main__":
    points, store, log = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    study = bench.study(bench.Config(points, 0.02, log))
    run(study, execute=executor("processes", workers=2), store=store)
"""


def _kill(folder: Path, kills: int) -> tuple[int, int, int]:
    """Counts finished trials that were lost or run twice, and results that came out otherwise."""
    (folder / "driver.py").write_text(DRIVER)
    log, store = folder / "log", folder / "killed"
    config = Config(12 * kills, 0.02, str(log))
    moments = random.Random(0)
    kept: set[int] = set()
    lost = twice = 0
    for _ in range(kills):
        before = _lines(log)
        process = subprocess.Popen(
            [sys.executable, str(folder / "driver.py"), str(config.points), str(store), str(log),
             str(Path(__file__).parent)],
        )  # fmt: skip
        while len(_lines(log)) == len(before) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.3)  # the workers of the killed run end
        twice += len(kept & set(_lines(log)[len(before) :]))
        now = _kept(config, store)
        lost += len(kept - now)
        kept = now
    resumed = run(study(config), execute=executor("serial"), store=store)
    undisturbed = run(study(config), execute=executor("serial"), store=folder / "undisturbed")
    same = resumed.frame[["x", "value"]].eq(undisturbed.frame[["x", "value"]])
    return lost, twice, int((~same).to_numpy().sum())


def _lines(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def _kept(config: Config, store: Path) -> set[int]:
    keys = {trial.key(1): trial.args.x for trial in trials(config)}
    with Store(store) as opened:
        return {keys[key] for key in opened.finished("00")}
