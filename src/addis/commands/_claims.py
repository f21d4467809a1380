"""How claims read on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

__all__ = ["claims_table", "number"]

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
    for heading in ("claim", "", "paper", "measured", "verdict"):
        table.add_column(heading, no_wrap=heading in {"claim", "verdict"})
    for claim in record["claims"]:
        style = _STYLES[claim["verdict"]]
        table.add_row(
            claim["id"],
            escape(claim["text"]),
            number(claim["paper"], claim["unit"]),
            number(claim["measured"], claim["unit"]) + _spread(claim["spread"]),
            f"[{style}]{claim['verdict']}[/]",
        )
    return table


def number(value: float | str | None, unit: str) -> str:
    """A value with its unit, four digits at most."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else f"{value:.4g}"
    return escape(f"{text} {unit}".strip())


def _spread(spread: float | list[float] | tuple[float, float] | None) -> str:
    if spread is None:
        return ""
    if isinstance(spread, int | float):
        return f" ± {spread:.2g}"
    return escape(f" [{spread[0]:.4g}, {spread[1]:.4g}]")
