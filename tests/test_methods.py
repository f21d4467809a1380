from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import addis
from addis.methods import Method, _records, methods
from addis.study import benchmarks, find, study

ROOT = Path(__file__).parents[1]
TABLE = methods()
NUMBERS = sorted({method.study for method in TABLE})


def test_import_addis_loads_nothing_heavy_and_rooms_load_on_use():
    code = (
        "import sys, addis\n"
        "assert not {'torch', 'numpy', 'pandas', 'importlib.metadata'} & sys.modules.keys()\n"
        "assert 'explain' in dir(addis)\n"
        "assert 'torch' not in sys.modules\n"
        "addis.explain\n"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_room_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'kitchen'"):
        _ = addis.kitchen


def write(folder: Path, text: str) -> list[Method]:
    (folder / "m.py").write_text(f"from x import Method\n{text}")
    return list(_records(folder))


def test_a_record_is_read_without_importing_its_file(tmp_path):
    text = 'METHOD = Method(\n name="a", verb="v", title="T", arxiv="1", study="01", venue="V", summary="S",\n)\nraise SystemExit'  # noqa: E501
    (record,) = write(tmp_path, text)
    assert (record.name, record.version) == ("a", 1)


@pytest.mark.parametrize(
    "text",
    ["METHOD = Method(name=f(), verb='v')", "METHOD = Method('a')", "METHOD = Method(nam='a')"],
)
def test_a_record_that_is_not_literal_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="METHOD must be a literal record"):
        write(tmp_path, text)


@pytest.mark.parametrize("name", ["2", "02", "iba", "IBA"])
def test_a_paper_is_found_by_number_and_by_name(name):
    assert find(name).name == "iba"


@pytest.mark.parametrize("method", TABLE, ids=lambda method: method.name)
class TestConformance:
    """What every method of the house must have."""

    def test_everything_its_package_exports_has_a_docstring(self, method: Method):
        package = importlib.import_module(f"addis.{method.verb}")
        public = {
            name: value
            for name, value in vars(package).items()
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
        }
        assert public
        assert [name for name, value in public.items() if not value.__doc__] == []

    def test_its_study_imports_and_has_every_scale(self, method: Method):
        found = study(method.study)
        assert found.scales.keys() == {"tiny", "small", "paper"}
        assert found.problem
        for scale, config in found.scales.items():
            keys = [trial.key(method.version) for trial in found.trials(config)]
            assert keys, scale
            assert len(set(keys)) == len(keys), scale

    def test_it_has_a_benchmark(self, method: Method):
        assert list(benchmarks(method.study))

    def test_it_has_a_page_an_example_and_a_line_in_the_readme(self, method: Method):
        (page,) = (ROOT / "docs" / "methods").glob(f"{method.study}-*.md")
        (example,) = (ROOT / "examples").glob(f"{method.study}_*.py")
        assert example.name in page.read_text(encoding="utf-8")
        assert f"| {method.study} {method.name}: " in (ROOT / "README.md").read_text(
            encoding="utf-8"
        )


@pytest.mark.parametrize("number", NUMBERS)
def test_its_example_runs(number, tmp_path):
    (example,) = (ROOT / "examples").glob(f"{number}_*.py")
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
