from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from addis.cli import main
from addis.methods import methods
from addis.study import Claim, Executor, Row, StoreError, absent
from addis.study import executor as make_executor
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


def test_json_stands_alone_on_standard_output(toy_is_paper_99, capfd):
    toy_is_paper_99.update(behaviour="prints", bad=(0,))
    for executor in ("serial", "processes"):
        assert run_toy("--json", "--executor", executor, "--store", executor) == 0
        shown = capfd.readouterr()
        assert json.loads(shown.out)["study"] == "99"
        assert "hello" in shown.err
        assert "from a process" in shown.err


def test_json_has_no_number_that_json_lacks(toy_is_paper_99, capsys, monkeypatch):
    def claims(results: object) -> list[Claim]:
        numbers = (float("nan"), float("inf"), np.float32(0.5), np.int64(3))
        return [
            Claim(id=f"{i}", text="", paper=None, measured=number, holds=True)
            for i, number in enumerate(numbers)
        ]

    study = replace(toy(), claims=claims)
    monkeypatch.setattr("addis.study.study", lambda name: study)
    assert run_toy("--json") == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [claim["measured"] for claim in found["claims"]] == [None, None, 0.5, 3]


def test_two_names_of_a_paper_are_one(toy_is_paper_99, capsys):
    assert words("run", "99", "toy", "--executor", "serial", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "device", "workers"),
    [((), "cpu", None), ((), "cuda", 1), (("--device", "cuda:1"), "cpu", 1),
     (("--workers", "3"), "cuda", 3), (("--device", "cpu"), "cuda", None)],
)  # fmt: skip
def test_trials_on_one_gpu_are_computed_one_at_a_time(
    toy_is_paper_99, monkeypatch, args, device, workers
):
    toy_is_paper_99.update(device=device)
    asked = []

    def executor(name: str, *, workers: int | None, **_: object) -> Executor:
        asked.append(workers)
        return make_executor("serial")

    monkeypatch.setattr("addis.study.executor", executor)
    assert words("run", "99", *args) == 0
    assert asked == [workers]


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
    toy_is_paper_99.update(behaviour="raise", bad=(3,), log="[red]x")
    assert run_toy() == 1
    error = capsys.readouterr().err
    assert "ArithmeticError: x = 3" in error
    assert "'log': '[red]x'" in error.replace("\n", "")
    assert "1 of 6 trials failed" in error


def test_an_interruption_prints_the_command_that_goes_on(toy_is_paper_99, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("addis.study.run", interrupted)
    assert run_toy("--store", "my store") == 130
    said = "go on with: addis run 99 --executor serial --store 'my store'"
    assert said in capsys.readouterr().err


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


@pytest.mark.skipif(not shutil.which("script"), reason="no script(1) to stand in for a terminal")
@pytest.mark.parametrize("args", [["run", "--help"], ["nothing"]])
def test_help_and_errors_of_arguments_obey_no_color(args):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON_TYRO")}
    for no_color in ("", "1"):
        done = subprocess.run(
            ["script", "-qec", " ".join([sys.executable, "-m", "addis", *args]), "/dev/null"],
            env={**environment, "TERM": "xterm-256color", "NO_COLOR": no_color},
            capture_output=True, text=True,
        )  # fmt: skip
        assert bool(COLOUR.search(done.stdout)) == (not no_color), done.stdout


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


@pytest.mark.parametrize("command", ["list --json", "list", "show 16"])
def test_a_reader_that_leaves_early_is_no_error(command):
    code = f"set -o pipefail; {sys.executable} -m addis {command} | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


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
