"""The report in a headless Chromium, opened from disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from addis.report import build
from tests.report.test_build import results

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.xdist_group("browser"),
]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    return build(results(folder), folder / "report")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    yield page
    page.close()
    assert problems == []


def column(page: sync_api.Page, table: str, number: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr:visible > :nth-child({number})")
    return [text.split("\n")[0] for text in cells.all_inner_texts()]


def test_the_index_leads_to_every_page_and_back(page, index):
    page.goto(index.as_uri())
    assert page.title() == "Papers · addis"
    page.get_by_role("link", name="toy").click()
    assert page.get_by_role("heading", level=1).inner_text() == "A toy"
    page.get_by_role("link", name="all papers").click()
    assert page.title() == "Papers · addis"


def test_images_load(page, index):
    page.goto((index.parent / "99.html").as_uri())
    image = page.locator("figure img")
    image.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('figure img').naturalWidth > 0")
    assert image.get_attribute("alt") == "a line"


def test_tables_sort_numbers_as_numbers_both_ways(page, index):
    page.goto((index.parent / "99.html").as_uri())
    page.locator("#timings").get_by_role("button", name="addis").click()
    assert column(page, "timings", 3) == ["1 ms", "3 ms", "12 ms"]
    page.locator("#timings").get_by_role("button", name="addis").click()
    assert column(page, "timings", 3) == ["12 ms", "3 ms", "1 ms"]
    assert page.locator("#timings th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_tables_filter_by_text_and_verdict(page, index):
    page.goto((index.parent / "99.html").as_uri())
    page.get_by_label("Show rows with").fill("SUMS")
    assert column(page, "claims-tiny", 1) == ["A", "B"]
    page.get_by_label("verdict").select_option("not reproduced")
    assert column(page, "claims-tiny", 1) == ["B"]
    assert "1 of 4 rows" in page.get_by_role("status").inner_text()


def test_the_keyboard_alone_sorts(page, index):
    page.goto(index.as_uri())
    button = page.locator("#papers").get_by_role("button", name="Method")
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, "papers", 2) == sorted(column(page, "papers", 2))


@pytest.mark.parametrize("name", ["index", "99"])
def test_a_phone_scrolls_the_tables_not_the_page(page, index, name):
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto((index.parent / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "99"])
def test_text_has_the_contrast_that_wcag_asks_for(page, index, name, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto((index.parent / f"{name}.html").as_uri())
    assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [channels(getComputedStyle(element).color), background(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const where = `${element.tagName} ${element.textContent.slice(0, 30)}`;
    if (ratio < 4.5) poor.push(`${where} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
