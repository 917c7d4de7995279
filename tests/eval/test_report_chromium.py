"""The report as people see it: in headless Chromium, on a phone and a desk, in light and dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.report import Report, write_report
from tests.eval import chromium
from tests.eval.report_files import ROUTES, graded_part, scienceqa_part, scienceqa_result

reason = chromium.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

PAPER = 718  # pixels of A4 between its margins
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WIDER = """[...document.querySelectorAll(SELECTOR)].filter(
    (one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    || one.scrollWidth > one.clientWidth + 1).map((one) => one.tagName + '.' + one.className)"""
LOW_CONTRAST = """(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = (one) => {
    for (let up = one; up; up = up.parentElement) {
      const colour = numbers(getComputedStyle(up).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('p, td, th, dd, dt, small, span, a, h1, h2, h3, h4, summary, label')]
    .filter((one) => one.textContent.trim() && one.getClientRects().length).filter((one) => {
      const [a, b] = [light(numbers(getComputedStyle(one).color)), light(behind(one))];
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
    }).map((one) => one.tagName + ': ' + one.textContent.slice(0, 40));
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    with chromium.browser() as opened:
        yield opened


@pytest.fixture
def page(tmp_path: Path, root: Path, problems: dict[str, Any]) -> Path:
    """A report with everything in it: two benchmarks, long words, three columns, routes."""
    gold = {pid: problem.answer for pid, problem in problems.items()}
    columns = {
        "tuned": scienceqa_result(problems, gold | {"1": 1}, sure=0.9),
        "blind": scienceqa_result(problems, gold | {"2": 0, "3": None}),
        "a-column-with-a-very-long-name/base": scienceqa_result(problems, dict.fromkeys(gold, 0), sure=0.6),
    }
    long = "unbreakable" * 40
    sums = {"ours": (1.0, 0.3, 0.0, 1.0), "theirs": (0.6, 0.0, 0.0, 1.0)}
    graded = graded_part(tmp_path / "graded", sums, theirs=long)
    path = tmp_path / "report.html"
    write_report(path, Report([scienceqa_part(root, columns), graded], ROUTES))
    return path


@pytest.mark.parametrize("scheme", chromium.SCHEMES)
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_fits_and_asks_for_nothing(
    browser: Any, page: Path, width: int, scheme: chromium.Scheme
) -> None:
    with chromium.opened(browser, page, width, scheme) as seen:
        assert seen.page.evaluate(OVERFLOW) <= 0
        outside = WIDER.replace("SELECTOR", "'p, dl, dd, ol, ul, figure:not(.map), h1, h2, form, article'")
        assert seen.page.evaluate(outside) == []
        assert seen.page.evaluate("[...document.images].every((one) => one.naturalWidth > 0)")
        assert seen.page.evaluate(LOW_CONTRAST) == []
        assert seen.said == []
        assert seen.asked == []


def test_dark_and_light_differ(browser: Any, page: Path) -> None:
    colours = []
    for scheme in chromium.SCHEMES:
        with chromium.opened(browser, page, 390, scheme) as seen:
            colours.append(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(251, 251, 250)", "rgb(22, 24, 27)"]


def visible(page: Any) -> int:
    """Cards of ScienceQA that are to be seen."""
    return int(page.locator("#cards-scienceqa-test article:visible").count())


def test_filters(browser: Any, page: Path) -> None:
    with chromium.opened(browser, page, 1280) as seen:
        form = seen.page.locator("form.filter").first
        said = form.locator("output")
        assert visible(seen.page) == 8
        assert said.inner_text() == "8 of 8 shown"
        column = form.locator("select")
        column.select_option(label="tuned")
        form.get_by_label("wrong").check(force=True)
        assert visible(seen.page) == 1
        assert said.inner_text() == "1 of 8 shown"
        column.select_option(label="blind")
        assert visible(seen.page) == 2  # one wrong, one unparsable
        form.get_by_label("unparsable").check(force=True)
        assert visible(seen.page) == 1
        form.get_by_label("changed").check(force=True)
        assert visible(seen.page) == 3  # 1, 2 and 3 came out otherwise than tuned
        form.get_by_label("all", exact=True).check(force=True)
        words = form.locator("input[type=search]")
        words.fill("PICTURE 3")
        assert visible(seen.page) == 1
        words.fill("nowhere")
        assert visible(seen.page) == 0
        assert said.inner_text() == "0 of 8 shown"
        # the other benchmark has a form of its own
        assert seen.page.locator("#cards-sums-all article:visible").count() == 4
        assert seen.said == []


def test_filters_by_keyboard(browser: Any, page: Path) -> None:
    with chromium.opened(browser, page, 390) as seen:
        seen.page.locator("form.filter input[type=radio]").first.focus()
        seen.page.keyboard.press("ArrowRight")  # to "wrong", by any column
        assert visible(seen.page) == 7  # all but question 6
        seen.page.keyboard.press("Tab")
        seen.page.keyboard.press("ArrowDown")  # to the first column
        assert visible(seen.page) == 1
        seen.page.keyboard.press("Tab")
        seen.page.keyboard.type("no such words")
        assert visible(seen.page) == 0
        seen.page.keyboard.press("Enter")  # sends nothing anywhere
        assert seen.asked == []


def test_focus_can_be_seen(browser: Any, page: Path) -> None:
    with chromium.opened(browser, page, 1280) as seen:
        for _ in range(25):
            seen.page.keyboard.press("Tab")
            style = seen.page.evaluate(
                """(() => { const one = document.activeElement;
                const shown = one.type === 'radio' ? one.nextElementSibling : one;
                return one === document.body ? 'solid' : getComputedStyle(shown).outlineStyle; })()"""
            )
            assert style == "solid"


def test_without_a_script_every_question_is_shown(browser: Any, page: Path) -> None:
    with chromium.opened(browser, page, 390, script=False) as seen:
        assert seen.page.locator("article:visible").count() == 12
        assert seen.page.locator("form.filter:visible").count() == 0
        assert seen.page.locator("noscript p:visible").count() == 2


def test_nothing_is_cut_off_on_paper(browser: Any, page: Path, tmp_path: Path) -> None:
    with chromium.opened(browser, page, PAPER, "dark") as seen:
        seen.page.emulate_media(media="print", color_scheme="dark")
        assert seen.page.evaluate(OVERFLOW) <= 0
        assert seen.page.evaluate(WIDER.replace("SELECTOR", "'.scroll, table, article, dd, p, figure'")) == []
        assert seen.page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 30, 33)"  # on white
        assert seen.page.locator("form.filter:visible").count() == 0
        seen.page.emulate_media(media="screen")
        assert not seen.page.evaluate("document.querySelector('details:not([open])') === null")
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert seen.page.evaluate("document.querySelector('details:not([open])') === null")
        assert seen.said == []
