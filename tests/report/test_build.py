from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from addis.methods import methods
from addis.report import build
from addis.study import Row, executor, run, write_bench, write_record
from tests.study.trials import toy


def results(folder: Path, **changes: object) -> Path:
    done = run(toy(**changes), execute=executor("serial"), store=folder / "store")
    write_record(done, folder / "results")
    rows = [
        Row(work=f"work {n} <b>", peer="peer", version="1.2", unit="ms", addis=a, peer_value=2.0,
            ratio=a / 2, target=0.8, note="why")
        for n, a in enumerate((1.0, 12.0, 3.0))
    ]  # fmt: skip
    write_bench("99", rows, folder / "results")
    return folder / "results"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [named[k] or "" for k in ("href", "src") if named.get(k)]
        if tag == "img":
            self.images.append(named)


def test_every_page_links_only_to_what_is_there(tmp_path):
    index = build(results(tmp_path), tmp_path / "report")
    pages = sorted(index.parent.glob("*.html"))
    assert {page.stem for page in pages} == {"index", "99", *(m.study for m in methods())}
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert links.found
        for link in links.found:
            if not link.startswith(("https://arxiv.org/", "data:", "#")):
                assert (page.parent / link).is_file(), (page.name, link)
        assert all(image["alt"] for image in links.images)


def test_a_page_shows_claims_numbers_figure_machine_and_command(tmp_path):
    index = build(results(tmp_path), tmp_path / "report")
    page = (index.parent / "99.html").read_text(encoding="utf-8")
    for text in (
        "sums are finite", "broken since", "Broken by: X", "no GPU", "± 0.1", "[1, 3]", "a line",
        "Sums against x.", "addis run 99 --scale tiny", "Nobody has it.", "A toy.", "6 trials",
        "work 0 &lt;b&gt;",
    ):  # fmt: skip
        assert text in page, text
    assert re.search(r'"number reached" data-sort="0.5"', page)
    assert page.count('"number missed"') == 2
    assert '<td class="number">1 of 3</td>' in index.read_text(encoding="utf-8")


def test_failures_are_shown(tmp_path):
    index = build(results(tmp_path, behaviour="raise", bad=(1,)), tmp_path / "report")
    page = (index.parent / "99.html").read_text(encoding="utf-8")
    assert "1 of 6 trials failed" in page
    assert "ArithmeticError: x = 1" in page


def test_text_of_a_record_is_never_markup(tmp_path):
    folder = results(tmp_path)
    path = folder / "99" / "tiny" / "run.json"
    content = json.loads(path.read_text())
    content["problem"] = content["claims"][0]["text"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(content))
    index = build(folder, tmp_path / "report")
    assert "<script>alert" not in (index.parent / "99.html").read_text()


def test_a_record_cannot_write_outside_the_report(tmp_path):
    folder = results(tmp_path)
    path = folder / "99" / "tiny" / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"study": "../../evil"}))
    with pytest.raises(ValueError, match="another study or scale"):
        build(folder, tmp_path / "report")
    content["figures"][0]["file"] = "../../../store"
    path.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError):
        build(folder, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_new_report_replaces_the_earlier_one_whole(tmp_path):
    folder = results(tmp_path)
    index = build(folder, tmp_path / "report")
    (index.parent / "old.html").touch()
    assert build(folder, tmp_path / "report") == index
    assert not (index.parent / "old.html").exists()
    assert not list(tmp_path.glob(".report-*"))


def test_an_earlier_report_stays_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    folder = results(tmp_path)
    index = build(folder, tmp_path / "report")
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path.name == "new":
            raise OSError("no room")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no room"):
        build(folder, tmp_path / "report")
    assert index.is_file()
    assert not list(tmp_path.glob(".report-*"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    folder = results(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else than a report"):
        build(folder, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()


@pytest.mark.parametrize("index", ["<p>my site", '<meta name="generator" content="addis">'])
def test_a_site_with_files_of_its_own_is_left_alone(tmp_path, index):
    folder = results(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text(index)
    (tmp_path / "site" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds something else than a report"):
        build(folder, tmp_path / "site")
    assert (tmp_path / "site" / "thesis.txt").exists()


def test_no_results_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="addis run all makes some"):
        build(tmp_path / "results", tmp_path / "report")
