"""Writes the figures, verdicts and costs between the marks of README.md, from ``results/``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from addis.methods import Method, methods
from addis.study import read_records, spread_text, value_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- verdicts: written by make readme -->", "<!-- end of verdicts -->"
SCALES = ("paper", "small")
VERDICTS = ("reproduced", "not reproduced", "broken since", "not judged")


def best_records() -> dict[str, dict[str, Any]]:
    """The fullest committed record of each paper."""
    records = [record.content for record in read_records(ROOT / "results")]
    chosen = [r for scale in reversed(SCALES) for r in records if r["scale"] == scale]
    return {record["study"]: record for record in chosen}


def text() -> str:
    """What stands between the marks: a line a paper, then a figure and the claims of each."""
    records = best_records()
    lines = [
        "| paper | " + " | ".join(VERDICTS) + " | measured |",
        "| --- |" + " ---: |" * 4 + " --- |",
    ]
    lines += [summary(method, records.get(method.study)) for method in methods()]
    lines += ["", 'A claim whose column "paper" has a dash is a check that the paper lacks.']
    for method in methods():
        record = records.get(method.study)
        if record is None:
            continue
        folder = f"results/{method.study}/{record['scale']}"
        lines += ["", f"### {method.study} {method.title} ({method.name})", "", method.summary, ""]
        for figure in record["figures"][:1]:
            lines += [f"![{figure['alt']}]({folder}/{figure['file']})", "", figure["caption"], ""]
        lines += [f"<details><summary>Its {len(record['claims'])} claims</summary>", ""]
        lines += ["| claim | paper | measured | verdict |", "| --- | --- | --- | --- |"]
        lines += [row(claim) for claim in record["claims"]]
        lines += ["", "</details>", *costs(method.study)]
    return "\n".join(lines) + "\n"


def summary(method: Method, record: dict[str, Any] | None) -> str:
    """A paper as a line of the table of verdicts."""
    name = f"{method.study} {method.name}: {method.title}"
    if record is None:
        return f"| {name} | | | | | not yet: `addis run {method.study} --scale small` |"
    counts = [sum(c["verdict"] == verdict for c in record["claims"]) for verdict in VERDICTS]
    measured = f"{record['scale']}, {record['date']}, {record['seconds'] / 60:.0f} min of one core"
    return f"| {name} | " + " | ".join(map(str, counts)) + f" | {measured} |"


def row(claim: dict[str, Any]) -> str:
    """A claim as a line of a table."""
    measured = f"{value_text(claim['measured'], claim['unit'])} {spread_text(claim['spread'])}"
    paper = value_text(claim["paper"], claim["unit"])
    cells = (f"{claim['id']} {claim['text']}", paper, measured.strip(), claim["verdict"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def costs(study: str) -> list[str]:
    """The rows of a paper's benchmark that have a target, folded up."""
    path = ROOT / "results" / study / "bench.json"
    if not path.is_file():
        return []
    bench = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in bench["rows"] if None not in (row["ratio"], row["target"])]
    met = sum(row["ratio"] <= row["target"] for row in rows)
    lines = [
        f"<details><summary>Its cost beside others: {met} of {len(rows)} targets met</summary>"
    ]
    lines += ["", f"`addis bench {study}`, {bench['date']}, {bench['machine']['processor']}.", ""]
    lines += ["| work | beside | cost, of theirs | target |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        peer = f"{row['peer']} ({row['version']})".removesuffix(" (-)")
        numbers = (value_text(row["ratio"]), value_text(row["target"]))
        lines.append("| " + " | ".join((row["work"], peer, *numbers)) + " |")
    return ["", *lines, "", "</details>"]


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
