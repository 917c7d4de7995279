"""The report is one well-formed page with everything inside."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data.scienceqa import Problem
from eval.charts import heat_map
from eval.errors import EvalError
from eval.report import Report, example_ids, write_report
from eval.results import Prediction, Result
from eval.scienceqa import score

VOID = {"meta", "img", "br", "link", "hr", "input"}
ROUTES = {
    "decoder.blocks.0.attn_norm": {"text": [0.75, 0.25], "image": [0.4, 0.6]},
    "decoder.blocks.1.attn_norm": {"text": [0.5, 0.5], "image": [0.1, 0.9]},
}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what the page refers to and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def result(problems: dict[str, Problem], options: dict[str, int | None]) -> Result:
    predictions = {pid: Prediction(option, problems[pid].answer) for pid, option in options.items()}
    settings = {"split": "test", "note": "<b>&", "base": {"decoder": "folder"}}
    return Result(score(problems, options), predictions, settings, {"torch": "2"}, {"data": "abc"})


@pytest.fixture
def report(root: Path, problems: dict[str, Problem], tmp_path: Path) -> Report:
    gold = {pid: problem.answer for pid, problem in problems.items()}
    loss = tmp_path / "loss.png"
    Image.new("RGB", (40, 20), "white").save(loss)
    results = {
        "tuned": result(problems, dict(gold)),
        "blind": result(problems, gold | {"2": 0, "3": None}),
        "base": result(problems, dict.fromkeys(gold, 0)),
    }
    return Report(results, problems, root, ROUTES, loss)


def written(tmp_path: Path, report: Report) -> str:
    path = tmp_path / "report.html"
    write_report(path, report)
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path, report: Report) -> None:
    text = written(tmp_path, report)
    page = Page(text)
    assert len(page.references) == 4  # three questions with a picture and the loss curve
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "http" not in text
    assert not re.search(r"url\(|@import|<script", text)


def test_pictures_are_the_problems_own_at_report_size(tmp_path: Path, report: Report) -> None:
    page = Page(written(tmp_path, report))
    content = base64.b64decode(page.references[0].split(",")[1])
    picture = Image.open(io.BytesIO(content))
    assert picture.size == (320, 192)
    assert picture.getpixel((5, 5)) == (40, 100, 200)


def test_page_tells_scores_answers_routes_and_facts(tmp_path: Path, report: Report) -> None:
    said = " ".join(" ".join(Page(written(tmp_path, report)).text).split())
    assert "tuned 100.00 % (95 % interval 67.56 to 100.00)" in said
    assert "LAN 0 - - -" in said
    assert "unparsable 0 1 0" in said
    assert "blind none ✗" in said
    assert "Look <here> & there." in said
    assert "decoder.blocks.1.attn_norm" in said
    assert "0.90" in said
    assert "<b>&" in said
    assert "base.decoder folder" in said


def test_every_question_is_an_example_in_a_small_set(report: Report) -> None:
    assert example_ids(report) == ["2", "3", "5", "1", "4", "6", "7", "8"]


def test_parts_that_are_not_given_are_left_out(
    tmp_path: Path, root: Path, problems: dict[str, Problem]
) -> None:
    only = result(problems, {"1": 0})
    text = written(tmp_path, Report({"tuned": only}, problems, root))
    Page(text)
    assert "Routing table" not in text
    assert "<h2>Loss</h2>" not in text
    assert "There is one system only." in text


def test_a_question_outside_the_data_set(root: Path, problems: dict[str, Problem]) -> None:
    made = result(problems, {"1": 0})
    with pytest.raises(EvalError, match="question 1 of 'tuned' is not in the data set given"):
        Report({"tuned": made}, {"2": problems["2"]}, root)


def test_too_many_results(root: Path, problems: dict[str, Problem]) -> None:
    made = result(problems, {"1": 0})
    with pytest.raises(EvalError, match="5 results; it shows 1 to 4"):
        Report({str(place): made for place in range(5)}, problems, root)


def test_heat_map_has_a_cell_per_route_and_darker_for_more() -> None:
    drawing = heat_map(ROUTES)
    cells = [float(value) for value in re.findall(r'class="cell".*?fill-opacity="([\d.]+)"', drawing)]
    assert cells == pytest.approx([0.6 * w for w in (0.75, 0.25, 0.4, 0.6, 0.5, 0.5, 0.1, 0.9)])
