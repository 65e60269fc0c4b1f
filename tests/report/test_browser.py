"""The page in a real headless browser, on a desk and on a phone, in light and in dark.

Any Chromium will do: the one that `playwright install chromium` fetches, one of the system, or what
RAYCURATE_TEST_CHROMIUM names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycurate.report import write_report
from tests.report import outputs
from tests.report.evaluations import change, write_evaluation

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra 'dev') is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LONG = "a_name_without_any_place_to_break_" * 12
WIDTHS = (1280, 768, 375)

# What the page shows that it should not: figures of no size or out of sight, small print, text that is cut off.
PROBLEMS = """() => {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) found.push(`the body is ${root.scrollWidth} wide`);
  for (const figure of document.querySelectorAll('figure svg')) {
    const box = figure.getBoundingClientRect();
    const title = figure.querySelector('title').textContent;
    if (!figure.checkVisibility() || box.width < 250 || box.height < 80) found.push(`${title}: ${box.width} wide`);
    if (box.left < 0 || box.right > root.clientWidth) found.push(`${title}: beyond the screen`);
    for (const text of figure.querySelectorAll('text')) {
      const size = parseFloat(getComputedStyle(text).fontSize) * box.width / figure.viewBox.baseVal.width;
      const at = text.getBoundingClientRect();
      if (size < 11) found.push(`${title}: "${text.textContent}" has ${size} pixels`);
      if (at.left < box.left - 2 || at.right > box.right + 2 || at.top < box.top - 2 || at.bottom > box.bottom + 2)
        found.push(`${title}: "${text.textContent}" is cut off`);
    }
  }
  for (const card of document.querySelectorAll('.card'))
    if (card.scrollWidth > card.clientWidth + 1) found.push(`${card.querySelector('h3').textContent}: overflows`);
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        named = os.environ.get("RAYCURATE_TEST_CHROMIUM")
        path = named or (own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None))
        if path is None:
            pytest.skip("no Chromium: `playwright install chromium`, or a package of the system")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = outputs.write_run(tmp_path_factory.mktemp("runs") / "demo", **{outputs.name(0): LONG})
    asked = [change(LONG, 0.1, 0.9, 1), change("Short?", 0.9, 0.1, 2)]
    write_evaluation(workdir / "eval", changes=asked, names={"base": 0.4, "finetuned": 0.5, LONG: 0.3})
    write_report(str(workdir))
    return workdir / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_in_a_browser(browser: Any, report: Path, width: int, scheme: str):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(PROBLEMS) == []
    assert said == []
    assert asked == [report.as_uri()]
    assert page.evaluate("() => document.querySelectorAll('figure svg').length") >= 18
    ink = page.evaluate("() => getComputedStyle(document.querySelector('figure svg text')).fill")
    light = sum(int(part) for part in ink[4:-1].split(",")[:3]) > 3 * 128
    assert light == (scheme == "dark")  # the colours of the figures are the page's
    context.close()


def test_links_lead_to_their_sections(browser: Any, report: Path):
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.goto(report.as_uri())
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(link.get_attribute("href"))
        assert target.evaluate("one => Math.abs(one.getBoundingClientRect().top) < innerHeight")
    assert page.get_by_role("img", name="Training loss by step").count() == 1
    assert page.get_by_role("table", name="Every stage that has left an output").count() == 1
    page.close()
