"""The wheel holds all that the command needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_code_pages_types_and_benchmarks_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "report/templates/index.html", "report/assets/style.css"):
        assert f"addis/{name}" in names
    assert "addis/train/_stacked_block.c" in names
    assert any(name.startswith("addis/benchmarks/b24_") for name in names)
    assert any(name.startswith("addis/studies/p24_") for name in names)
    assert not [name for name in names if name.startswith("tests")]


def test_it_lists_and_shows_a_study_away_from_the_checkout(wheel, tmp_path):
    """Its dependencies come from this environment; the code comes from the wheel alone."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def python(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = python("-c", "import addis; print(addis.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert "local-errors" in python("-m", "addis", "list")
    shown = python("-m", "addis", "run", "24", "--help") + python("-m", "addis", "show", "24")
    assert "Training Neural Networks with Local Error Signals" in shown
