"""A method is added by writing its files and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

METHOD = '''
"""Doubles: a toy."""

from addis.methods import Method

METHOD = Method(
    name="doubling", verb="analyze", title="Doubling", arxiv="0000.00000", study="98",
    venue="nowhere", summary="Doubles a number.",
)


def double(x: float) -> float:
    return 2 * x
'''
STUDY = """
from dataclasses import dataclass

from matplotlib.figure import Figure as Picture

from addis.analyze._doubling import METHOD, double
from addis.study import Claim, Figure, Study, Trial


@dataclass(frozen=True)
class Config:
    seeds: int = 3


@dataclass(frozen=True)
class Args:
    seed: int


def measure(args):
    return {"doubled": double(args.seed)}


def figures(results):
    picture = Picture()
    picture.subplots().plot(results["seed"], results["doubled"])
    return [Figure(name="line", figure=picture, alt="a rising line", caption="Twice as much.")]


STUDY = Study(
    method=METHOD,
    problem="Too little.",
    scales={"tiny": Config()},
    trials=lambda config: [Trial(measure, Args(seed)) for seed in range(config.seeds)],
    claims=lambda results: [
        Claim(id="D1", text="it doubles", paper=4, measured=float(results["doubled"].max()),
              holds=bool((results["doubled"] == 2 * results["seed"]).all()))
    ],
    figures=figures,
)
"""
BENCHMARK = """
from addis.study import absent


def rows(*, full=False, device="cpu"):
    yield absent("doubling", "abacus", "nobody has one here")
"""
COMMAND = '''
def doubling(x: float, /) -> None:
    """Doubles a number of yours."""
    print(2 * x)
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignore)
    package = folder / "src" / "addis"
    (package / "analyze" / "_doubling.py").write_text(METHOD.lstrip())
    (package / "studies" / "p98_doubling.py").write_text(STUDY.lstrip())
    (package / "commands" / "doubling.py").write_text(COMMAND.lstrip())
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "b98_doubling.py").write_text(BENCHMARK.lstrip())
    return folder


def addis(house: Path, *args: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(house / "src"), "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", "addis", *args],
        cwd=house, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_and_shown(house):
    assert "doubling" in addis(house, "list")
    assert "Too little." in addis(house, "show", "98")


def test_it_runs_in_processes_and_is_in_the_report(house):
    found = json.loads(addis(house, "run", "98", "--workers", "2", "--json"))
    assert found["claims"] == [
        {"id": "D1", "text": "it doubles", "paper": 4, "measured": 4.0, "verdict": "reproduced"}
    ]
    addis(house, "report")
    assert "Twice as much." in (house / "report" / "98.html").read_text()
    assert 'href="98.html"' in (house / "report" / "index.html").read_text()


def test_its_benchmark_and_its_command_are_found(house):
    (row,) = json.loads(addis(house, "bench", "98", "--json"))["rows"]
    assert row["version"] == "absent"
    assert addis(house, "doubling", "4").strip() == "8.0"
