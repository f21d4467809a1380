"""``addis run``: re-runs papers."""

from __future__ import annotations

import gc
import json as json_text
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from addis.study import Record, Run

__all__ = ["run"]


def run(
    papers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PAPER"), tyro.conf.Positional],
    /,
    *,
    scale: Literal["tiny", "small", "paper"] = "tiny",
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None,
    executor: Literal["serial", "processes", "ray"] = "processes",
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None,
    store: Path = Path(".addis/store.sqlite"),
    results: Path = Path("results"),
    json: bool = False,
) -> int:
    """Re-runs the studies of papers and judges their claims.

    An interrupted run goes on where it was when the same command is given again. Exit code 1 means
    that trials failed; a claim that does not hold is a result, not a failure.

    Args:
        papers: Numbers or names of methods, or "all".
        scale: tiny takes under a minute on embedded data, small needs real data (see ADDIS_DATA),
            paper a GPU.
        device: Torch device, for studies that can use one.
        executor: Where trials are computed.
        workers: Processes, or Ray tasks at a time; by default one a core (one in all on a GPU).
        address: Of a running Ray cluster; without it, Ray starts on this machine.
        store: File that keeps finished trials.
        results: Folder for the record: claims, table and figures.
        json: Prints one object a paper, and nothing else, on standard output.
    """
    from rich.console import Console

    from addis.commands._output import silenced
    from addis.methods import methods
    from addis.study import executor as make_executor
    from addis.study import read_record, study, write_record
    from addis.study import run as run_study
    from addis.train import keep_freed_memory

    names = [m.study for m in methods()] if papers == ("all",) else list(papers)
    studies = {found.method.study: found for found in map(study, names)}
    if not studies:
        raise ValueError('name at least one paper, or "all"; addis list shows them')
    for name, value in (("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")):
        os.environ.setdefault(name, value)  # before the workers start: one pool of threads a trial
    keep_freed_memory()
    gc.freeze()  # what was imported is not collected now or at the end: 0.3 s less
    progress = Console(stderr=True)
    failed = 0
    for found in studies.values():
        where = str(device or getattr(found.scales.get(scale), "device", "cpu"))
        count = 1 if workers is None and where.startswith("cuda") else workers
        with silenced(json):
            execute = make_executor(executor, workers=count, threads=found.threads, address=address)
            done = run_study(
                found, scale, execute=execute, store=store, device=device, console=progress
            )
            record = read_record(write_record(done, results))
        failed += len(done.failures)
        _tell(done, record, json, progress)
    return 1 if failed else 0


def _tell(done: Run, record: Record, json: bool, progress: Console) -> None:
    from rich.console import Console
    from rich.markup import escape

    from addis.commands._claims import claims_table

    folder = record.folder
    if json:
        sys.stdout.write(json_text.dumps(summary(done, record), allow_nan=False) + "\n")
    else:
        console = Console()
        console.print(claims_table(record.content))
        total = len(done.frame)
        console.print(
            f"{total - done.computed} of {total} trials were in the store; record: {folder}"
        )
    for failure in done.failures:
        last = failure.error.strip().splitlines()[-1]
        settings = escape(str(dict(failure.settings)))
        progress.print(f"[red]failed[/] {failure.function} {settings}", highlight=False)
        progress.print(f"  {last}", markup=False, highlight=False)
    if done.failures:
        progress.print(
            f"[red]{len(done.failures)} of {len(done.frame)} trials failed[/]; their tracebacks "
            f"are in {folder / 'run.json'}. The same command computes only these again."
        )


def summary(done: Run, record: Record) -> dict[str, Any]:
    """The object that ``--json`` prints for one study; NaN and infinity are ``null``."""
    return {
        "study": done.study.method.study,
        "scale": done.scale,
        "seconds": round(done.seconds, 3),
        "claims": [
            {name: claim[name] for name in ("id", "text", "paper", "measured", "verdict")}
            for claim in record.content["claims"]
        ],
    }
