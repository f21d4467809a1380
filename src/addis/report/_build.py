"""Turns the records under ``results`` into pages that open from disk, with no network and no
server.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2

from addis.methods import Method, methods
from addis.study import RESULTS, read_bench, read_records, spread_text, value_text

__all__ = ["build"]

_HERE: Final = Path(__file__).parent
_MARK: Final = '<meta name="generator" content="addis">'
_SCALES: Final = ("paper", "small", "tiny")  # the fullest evidence first
_VERDICTS: Final = ("reproduced", "not reproduced", "broken since", "not judged")


@dataclass(slots=True)
class Paper:
    """What a page shows: a method, its records (fullest scale first) and its benchmark."""

    method: Method
    records: list[dict[str, Any]] = field(default_factory=list)
    bench: dict[str, Any] | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many claims have each verdict, in the fullest record."""
        claims = self.records[0]["claims"] if self.records else []
        return Counter(claim["verdict"] for claim in claims)

    @property
    def ahead(self) -> tuple[int, int] | None:
        """Benchmark rows that reach their target, and rows that have one."""
        if self.bench is None:
            return None
        judged = [r for r in self.bench["rows"] if None not in (r["ratio"], r["target"])]
        return sum(row["ratio"] <= row["target"] for row in judged), len(judged)


def build(results: Path = RESULTS, out: Path = Path("report")) -> Path:
    """Writes the report.

    Args:
        results: Folder of the records that runs and benchmarks wrote.
        out: Folder to write; an earlier report there is replaced.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: There are no records, a file is no record, or ``out`` is a folder of something
            else.
        OSError: ``out`` cannot be written.
    """
    papers = _papers(results)
    if not any(paper.records for paper in papers):
        raise ValueError(f"no results under {results}; addis run all makes some")
    if out.exists() and any(out.iterdir()) and not _is_report(out):
        raise ValueError(f"{out} holds something else than a report; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".report-", dir=out.parent))
    try:
        (new / "new").mkdir()
        _write(papers, new / "new")
        old = new / "old"
        if out.exists():
            out.rename(old)
        try:
            (new / "new").rename(out)
        except OSError:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out / "index.html"


def _is_report(folder: Path) -> bool:
    """Whether all that is in the folder's top level is of a report of ours."""
    index = folder / "index.html"
    return (
        index.is_file()
        and _MARK in index.read_text(encoding="utf-8", errors="replace")
        and all(
            path.name in ("assets", "figures") or path.suffix == ".html"
            for path in folder.iterdir()
        )
    )


def _papers(results: Path) -> list[Paper]:
    papers = {method.study: Paper(method) for method in methods()}
    for record in read_records(results):
        number = record.content["study"]
        if number not in papers:
            papers[number] = Paper(Method(**record.content["method"]))
        papers[number].records.append(record.content | {"folder": record.folder})
    for paper in papers.values():
        paper.records.sort(key=lambda record: _SCALES.index(record["scale"]))
        paper.bench = read_bench(paper.method.study, results)
    return [papers[number] for number in sorted(papers)]


def _write(papers: list[Paper], folder: Path) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": value_text, "spread": spread_text, "cell": _cell}
    shutil.copytree(_HERE / "assets", folder / "assets")
    index = environment.get_template("index.html").render(papers=papers, verdicts=_VERDICTS)
    (folder / "index.html").write_text(index, encoding="utf-8")
    page = environment.get_template("paper.html")
    for position, paper in enumerate(papers):
        for record in paper.records:
            _copy_figures(record, folder)
        before = papers[position - 1] if position else None
        after = papers[position + 1] if position + 1 < len(papers) else None
        html = page.render(paper=paper, before=before, after=after, verdicts=_VERDICTS)
        (folder / f"{paper.method.study}.html").write_text(html, encoding="utf-8")


def _copy_figures(record: Mapping[str, Any], folder: Path) -> None:
    """Puts a record's pictures beside the pages: plain names in the record's own folder only."""
    target = folder / "figures" / f"{record['study']}-{record['scale']}"
    target.mkdir(parents=True, exist_ok=True)
    for figure in record["figures"]:
        name = Path(figure["file"]).name
        shutil.copyfile(record["folder"] / name, target / name)


def _cell(value: object) -> str:
    """A cell of a study's table."""
    return value_text(value) if isinstance(value, int | float | str | None) else str(value)
