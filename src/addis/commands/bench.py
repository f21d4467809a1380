"""``addis bench``: times addis beside its peers."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from addis.study import Row

__all__ = ["bench"]


def bench(
    papers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PAPER"), tyro.conf.Positional],
    /,
    *,
    full: bool = False,
    device: str = "cpu",
    results: Path = Path("results"),
    json: bool = False,
) -> None:
    """Times addis and its peers on the same work, in one run, and prints the ratios.

    A ratio is a cost, ours over theirs: under 1 is ahead. A peer that is not installed is a row
    that says so.

    Args:
        papers: Numbers or names of methods, "00" for the ground they stand on, or "all".
        full: Takes the real sizes, which needs more than five minutes.
        device: Torch device.
        results: Folder where the rows are kept for the report.
        json: Prints one object a paper instead of a table.
    """
    from rich.console import Console

    from addis.commands._output import silenced
    from addis.methods import methods
    from addis.study import benchmarks, find, write_bench
    from addis.train import keep_freed_memory

    names = ["00", *(m.study for m in methods())] if papers == ("all",) else list(papers)
    if not names:
        raise ValueError('name at least one paper, or "all"; addis list shows them')
    keep_freed_memory()
    console = Console()
    progress = Console(stderr=True)
    for name in names:
        paper = name if name == "00" else find(name).study
        rows = []
        with silenced(json), progress.status(f"timing {paper}"):
            for benchmark in benchmarks(paper):
                for row in benchmark(full=full, device=device):
                    rows.append(row)
                    progress.log(f"{row.work}: {row.peer}", markup=False, highlight=False)
        content = write_bench(paper, rows, results)
        if json:
            sys.stdout.write(json_text.dumps(content) + "\n")
        else:
            console.print(_table(rows))


def _table(rows: list[Row]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("work", "peer", "unit", "addis", "peer's", "ratio", "target"):
        table.add_column(
            heading, justify="left" if heading in {"work", "peer", "unit"} else "right"
        )
    for row in rows:
        style = ""
        if row.ratio is not None and row.target is not None:
            style = "green" if row.ratio <= row.target else "red"
        values = (row.addis, row.peer_value, row.ratio, row.target)
        numbers = ["-" if value is None else f"{value:.4g}" for value in values]
        words = map(escape, (row.work, f"{row.peer} {row.version}", row.unit))
        table.add_row(*words, *numbers, style=style)
        if row.note:
            table.add_row(f"  {escape(row.note)}", style="dim")
    return table
