"""``addis show``: a paper, its study and its latest results."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["show"]


def show(
    paper: Annotated[str, tyro.conf.arg(metavar="PAPER"), tyro.conf.Positional],
    /,
    *,
    results: Path = Path("results"),
    json: bool = False,
) -> None:
    """Shows a paper: what its study does at each scale, and the claims as last judged.

    Args:
        paper: Its number or its method's name.
        results: Folder of the records that `addis run` writes.
        json: Prints one object instead.
    """
    import dataclasses

    from rich.console import Console
    from rich.markup import escape

    from addis.commands._claims import claims_table
    from addis.study import read_records, study

    found = study(paper)
    records = [r.content for r in read_records(results) if r.content["study"] == found.method.study]
    scales = {scale: dataclasses.asdict(config) for scale, config in found.scales.items()}
    if json:
        content = {
            "method": dataclasses.asdict(found.method),
            "problem": found.problem,
            "scales": scales,
            "notes": found.notes,
            "results": records,
        }
        sys.stdout.write(json_text.dumps(content, indent=1) + "\n")
        return
    console = Console()
    method = found.method
    console.print(f"[bold]{escape(method.title)}[/] ({method.venue}, arXiv {method.arxiv})")
    console.print(f"addis.{method.verb}: {method.summary}\n", markup=False)
    console.print(found.problem + "\n", markup=False)
    for scale, config in scales.items():
        settings = ", ".join(f"{name}={value}" for name, value in config.items())
        console.print(f"[bold]{scale}[/]: {escape(settings)}", highlight=False)
    for note in found.notes:
        console.print(f"- {note}", markup=False)
    for record in records:
        console.print()
        console.print(claims_table(record))
    if not records:
        console.print(f"\nNo results yet: addis run {method.study}")
