"""How claims read on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from addis.study import spread_text, value_text

__all__ = ["claims_table"]

_STYLES: Final = {
    "reproduced": "green",
    "not reproduced": "red",
    "broken since": "yellow",
    "not judged": "dim",
}


def claims_table(record: Mapping[str, Any]) -> Table:
    """The table of a record's claims: paper's number, measured number and verdict."""
    title = f"{record['study']} at {record['scale']}, {record['date']}, {record['seconds']:.0f} s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("claim", "paper", "measured", "verdict"):
        table.add_column(heading, ratio={"claim": 3, "measured": 2}.get(heading, 1))
    for claim in record["claims"]:
        style = _STYLES[claim["verdict"]]
        table.add_row(
            f"[bold]{escape(claim['id'])}[/]  {escape(claim['text'])}",
            escape(value_text(claim["paper"], claim["unit"])),
            escape(
                f"{value_text(claim['measured'], claim['unit'])} {spread_text(claim['spread'])}"
            ),
            f"[{style}]{claim['verdict']}[/]",
        )
    return table
