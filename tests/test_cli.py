from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from addis.cli import main
from addis.methods import methods
from addis.study import Row, StoreError, absent
from tests.study.trials import toy

COLOUR = re.compile(r"\x1b\[(\d+;)*3[1-7]m")


def words(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    return int(ended.value.code or 0)


@pytest.fixture
def toy_is_paper_99(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    changes: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("addis.study.study", lambda name: toy(**changes))
    return changes


def run_toy(*more: str) -> int:
    return words("run", "99", "--executor", "serial", *more)


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["list"], ["--version"]])
def test_answers_that_need_no_torch_do_not_import_it(args):
    code = (
        "import sys\nfrom addis.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_subcommand(capsys):
    assert words("--help") == 0
    shown = capsys.readouterr().out
    for name in ("bench", "explain", "list", "report", "run", "show"):
        assert f"• {name}" in shown


def test_no_words_at_all_is_help(capsys):
    assert words() == 0
    assert "subcommands" in capsys.readouterr().out


def test_list_in_json_is_the_records(capsys):
    assert words("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in listed] == [method.name for method in methods()]


def test_list_takes_wildcards_and_says_what_there_is(capsys):
    assert words("list", "ib*") == 0
    assert "addis.explain" in capsys.readouterr().out
    assert words("list", "nothing") == 2
    assert "no method is like 'nothing'; there are" in capsys.readouterr().err


def test_an_unknown_paper_is_one_line_and_exit_code_2(capsys):
    assert words("show", "98") == 2
    error = capsys.readouterr().err
    assert error.startswith("addis: no paper '98'; there are 02 (iba)")
    assert error.count("\n") == 1


def test_run_in_json_prints_one_object_of_the_plans_form(toy_is_paper_99, capsys):
    assert run_toy("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"study", "scale", "seconds", "claims"}
    assert [claim["verdict"] for claim in found["claims"]] == [
        "reproduced", "not reproduced", "not judged", "broken since",
    ]  # fmt: skip
    assert all(c.keys() == {"id", "text", "paper", "measured", "verdict"} for c in found["claims"])


def test_run_then_report_then_bench_less(toy_is_paper_99, capsys):
    assert run_toy() == 0
    assert "0 of 6 trials were in the store" in capsys.readouterr().out
    assert run_toy() == 0
    shown = capsys.readouterr().out
    assert "6 of 6 trials were in the store" in shown
    assert "not reproduced" in shown
    assert words("report") == 0
    assert Path("report/99.html").is_file()


def test_failed_trials_are_told_and_the_exit_code_is_1(toy_is_paper_99, capsys):
    toy_is_paper_99.update(behaviour="raise", bad=(3,))
    assert run_toy() == 1
    error = capsys.readouterr().err
    assert "ArithmeticError: x = 3" in error
    assert "1 of 6 trials failed" in error


def test_an_interruption_prints_the_command_that_goes_on(toy_is_paper_99, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("addis.study.run", interrupted)
    assert run_toy() == 130
    assert "go on with: addis run 99 --executor serial" in capsys.readouterr().err


def test_an_error_of_the_store_is_one_line(toy_is_paper_99, capsys, tmp_path):
    (tmp_path / "s").write_text("this is a shopping list " * 50)
    assert run_toy("--store", "s") == 2
    assert "is not a store of addis" in capsys.readouterr().err


def test_a_traceback_is_shown_where_asked(toy_is_paper_99, tmp_path, monkeypatch):
    (tmp_path / "s").write_text("this is a shopping list " * 50)
    monkeypatch.setenv("ADDIS_TRACEBACK", "1")
    with pytest.raises(StoreError):
        main(["run", "99", "--store", "s"])


def test_no_color_is_obeyed(toy_is_paper_99, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run_toy()
    assert COLOUR.search(capsys.readouterr().out)
    monkeypatch.setenv("NO_COLOR", "1")
    run_toy()
    assert not COLOUR.search(capsys.readouterr().out)


def test_bash_completes_subcommands_and_options():
    code = f"""
    PATH={Path(sys.executable).parent}:$PATH
    source <(addis --tyro-print-completion bash)
    complete_words() {{
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_addis; echo "${{COMPREPLY[@]}}"
    }}
    complete_words addis re
    complete_words addis run --sc
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "report"
    assert second.split()[0] == "--scale"


def test_zsh_completion_is_there():
    command = [sys.executable, "-m", "addis", "--tyro-print-completion", "zsh"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("#compdef addis")


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m addis list --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "[\n"
    assert done.stderr == ""


def test_show_tells_the_problem_the_scales_and_the_last_verdicts(toy_is_paper_99, capsys):
    assert words("show", "99") == 0
    shown = capsys.readouterr().out
    assert "Nobody has it." in shown
    assert "No results yet: addis run 99" in shown
    run_toy()
    assert words("show", "99") == 0
    assert "not reproduced" in capsys.readouterr().out
    assert words("show", "99", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scales"]["tiny"]["points"] == 6
    assert found["results"][0]["claims"][0]["id"] == "A"


def test_bench_prints_the_rows_and_keeps_them_for_the_report(monkeypatch, tmp_path, capsys):
    def rows(*, full: bool, device: str) -> Iterator[Row]:
        yield Row(
            work="work", peer="peer", version="1.2", unit="ms", addis=1.0, peer_value=2.0,
            ratio=0.5, target=0.8, note=f"{full} {device}",
        )  # fmt: skip
        yield absent("work", "nobody", "not installed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("addis.study.benchmarks", lambda paper: [rows])
    assert words("bench", "16", "--full") == 0
    shown = capsys.readouterr().out
    assert "peer 1.2" in shown
    assert "True cpu" in shown
    assert words("bench", "double-descent", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"paper", "machine", "rows"}
    assert [row["ratio"] for row in found["rows"]] == [0.5, None]
    assert Path("results/16/bench.json").is_file()


@pytest.mark.parametrize("command", ["run", "bench"])
def test_no_paper_at_all_is_an_error(command, capsys):
    assert words(command) == 2
    assert "name at least one paper" in capsys.readouterr().err
