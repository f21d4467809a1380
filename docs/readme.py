"""Writes the figures and verdicts between the marks of README.md, from ``results/``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from addis.methods import methods
from addis.study import read_records, spread_text, value_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- verdicts: written by make readme -->", "<!-- end of verdicts -->"
SCALES = ("paper", "small")


def best_records() -> dict[str, dict[str, Any]]:
    """The fullest committed record of each paper."""
    records = [record.content for record in read_records(ROOT / "results")]
    chosen = [r for scale in reversed(SCALES) for r in records if r["scale"] == scale]
    return {record["study"]: record for record in chosen}


def text() -> str:
    """What stands between the marks."""
    records = best_records()
    lines = []
    for method in methods():
        record = records.get(method.study)
        lines += [f"### {method.study} {method.title} ({method.name})", "", method.summary, ""]
        if record is None:
            lines += [f"Not run at small scale yet: `addis run {method.study} --scale small`.", ""]
            continue
        folder = f"results/{method.study}/{record['scale']}"
        for figure in record["figures"][:1]:
            lines += [f"![{figure['alt']}]({folder}/{figure['file']})", ""]
        lines += [
            f"{record['scale']}, {record['date']}, {record['seconds']:.0f} s of computation:",
            "",
        ]
        lines += ["| claim | paper | measured | verdict |", "| --- | --- | --- | --- |"]
        lines += [row(claim) for claim in record["claims"]]
        lines.append("")
    return "\n".join(lines)


def row(claim: dict[str, Any]) -> str:
    """A claim as a line of a table."""
    measured = f"{value_text(claim['measured'], claim['unit'])} {spread_text(claim['spread'])}"
    paper = value_text(claim["paper"], claim["unit"])
    cells = (f"{claim['id']} {claim['text']}", paper, measured.strip(), claim["verdict"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Rewrites the file; with ``--check`` only says whether it is up to date."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    new = f"{head}{BEGIN}\n\n{text()}\n{END}{rest.split(END)[1]}"
    if "--check" in sys.argv:
        sys.exit(0 if new == old else "README.md is not up to date: make readme")
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
