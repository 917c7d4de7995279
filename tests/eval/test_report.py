"""The report is one well-formed page with everything inside."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.scienceqa import Problem
from eval.errors import EvalError
from eval.report import Report
from eval.report_html import thumbnail
from eval.report_parts import Part
from eval.results import Result
from eval.scores import Scores
from tests.eval.report_files import (
    ROUTES,
    Page,
    graded_part,
    page_of,
    scienceqa_part,
    scienceqa_result,
)


@pytest.fixture
def report(root: Path, problems: dict[str, Problem], tmp_path: Path) -> Report:
    gold = {pid: problem.answer for pid, problem in problems.items()}
    loss = tmp_path / "loss.png"
    Image.new("RGB", (40, 20), "white").save(loss)
    results = {
        "tuned": scienceqa_result(problems, dict(gold), sure=0.9),
        "blind": scienceqa_result(problems, gold | {"2": 0, "3": None}),
        "base": scienceqa_result(problems, dict.fromkeys(gold, 0), sure=0.6),
    }
    return Report([scienceqa_part(root, results)], ROUTES, loss, title="A & B")


def test_page_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path, report: Report) -> None:
    text = page_of(tmp_path, report)
    page = Page(text)
    pictures = [reference for reference in page.references if reference.startswith("data:image/")]
    assert len(pictures) == 4  # three questions with a picture and the loss curve
    inside = {reference for reference in page.references if reference.startswith("#")}
    assert inside == {"#scienceqa-test", "#routing", "#loss", "#facts"}
    assert all(f'id="{reference[1:]}"' in text for reference in inside)
    assert set(page.references) - set(pictures) - inside == {"data:,"}  # the icon, or a browser asks for one
    assert "http" not in text
    assert not re.search(r"url\(|@import|<script src", text)


def test_pictures_are_the_problems_own(tmp_path: Path, report: Report) -> None:
    page = Page(page_of(tmp_path, report))
    address = next(reference for reference in page.references if reference.startswith("data:image/"))
    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert picture.size == (480, 288)
    assert picture.getpixel((5, 5)) == pytest.approx((40, 100, 200), abs=3)


def test_page_tells_scores_answers_routes_and_facts(tmp_path: Path, report: Report) -> None:
    said = Page(page_of(tmp_path, report)).said
    assert "A & B" in said
    assert "tuned 100.00 % 67.6 – 100.0" in said
    assert "LAN – – – 0" in said
    assert "unparsable 0 1 0" in said
    assert "blind nothing read ✗" in said
    assert "tuned B 90% sure ✓" in said
    assert "Look <here> & there." in said
    assert "sites are decoder.blocks.*.attn_norm" in said
    assert "Specialised: modalities get mixtures" in said
    assert "0.90" in said
    assert "<b>&" in said
    assert "base. decoder folder" in said


def test_published_scores_stand_beside_with_their_source(tmp_path: Path, report: Report) -> None:
    said = Page(page_of(tmp_path, report)).said
    assert "LaVIN-7B LaVIN-13B LLaVA-13B GPT-3 CoT" in said
    assert "89.41 90.83 90.92 75.17" in said
    assert "LLaVA-13B, GPT-3 CoT: table of the LaVIN and LLaVA papers" in said
    assert "over the official 4,241 questions, ours over 8: they cannot be compared" in said


def test_small_sets_say_what_they_cannot_tell(
    root: Path, tmp_path: Path, problems: dict[str, Problem]
) -> None:
    half = {
        pid: problem.answer if pid < "5" else 1 - min(1, problem.answer) for pid, problem in problems.items()
    }
    part = scienceqa_part(root, {"tuned": scienceqa_result(problems, half)})
    # (1.96 + 0.8416) * sqrt(2 * 0.5 * 0.5 / 8)
    assert "with 8 questions a difference below 70.0 points" in Page(page_of(tmp_path, Report([part]))).said


def test_parts_that_are_not_given_are_left_out(
    tmp_path: Path, root: Path, problems: dict[str, Problem]
) -> None:
    part = scienceqa_part(root, {"tuned": scienceqa_result(problems, {"1": 0})})
    text = page_of(tmp_path, Report([part]))
    page = Page(text)
    assert "Routing" not in page.said
    assert "<h2>Loss</h2>" not in text
    assert "Calibration" not in page.said
    assert "There is one system only" in page.said


def test_every_benchmark_has_its_section(tmp_path: Path, report: Report) -> None:
    graded = graded_part(tmp_path / "graded", {"ours": (1.0, 0.3, 0.0, 1.0), "theirs": (0.6, 0.0, 0.0, 1.0)})
    text = page_of(tmp_path, Report([*report.parts, graded]))
    page = Page(text)
    assert '<section id="scienceqa-test">' in text
    assert '<section id="sums-all">' in text
    assert "Sums <test> Perception , 4 questions ours 1200.50 1000 – 1400" in page.said.replace(
        "Perception,", "Perception ,"
    )
    assert "Other-7B" in page.said
    assert "1510.7" in page.said
    assert "ours: truncated: 2" in page.said
    assert "unreadable pictures" not in page.said
    assert "random signs" in page.said
    assert "30% right" in page.said
    assert "red (2), blue (1)" in page.said
    assert "</script><b>red</b> read as red" in page.said


def test_answers_that_nobody_has_scored(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (None,) * 4, "theirs": (None,) * 4})
    bare = {
        name: replace(result, scores=Scores({}, 0, {"judged": "not judged: no reviews"}))
        for name, result in part.columns.items()
    }
    said = Page(page_of(tmp_path, Report([replace(part, columns=bare)]))).said
    assert "These answers are not scored" in said
    assert "not scored, 4 questions" in said
    assert "theirs: no answer has a mark" in said
    assert "ours: judged: not judged: no reviews" in said


def test_without_the_official_files_answers_are_shown_alone(
    tmp_path: Path, problems: dict[str, Problem], report: Report
) -> None:
    part = replace(report.parts[0], questions={})
    page = Page(page_of(tmp_path, Report([part])))
    assert "With --data scienceqa=DIR the questions and pictures are shown too." in page.said
    assert "right answer B tuned B" in page.said
    assert not [reference for reference in page.references if reference.startswith("data:image/")]


def test_a_question_outside_the_data_set(root: Path, problems: dict[str, Problem]) -> None:
    part = scienceqa_part(root, {"tuned": scienceqa_result(problems, {"1": 0})})
    with pytest.raises(EvalError, match="question 1 of 'tuned' is not in the data given for scienceqa"):
        replace(part, questions={"2": part.questions["2"]})


def test_too_many_results(root: Path, problems: dict[str, Problem]) -> None:
    made = scienceqa_result(problems, {"1": 0})
    with pytest.raises(EvalError, match="7 results of ScienceQA, test; it shows 1 to 6 side by side"):
        scienceqa_part(root, {str(place): made for place in range(7)})


def test_no_results_at_all() -> None:
    with pytest.raises(EvalError, match="there are no results"):
        Report([])


def test_a_picture_shrinks_until_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.effect_noise((1000, 500), 90).convert("RGB").save(path)
    whole, size = thumbnail(path, 10_000_000)
    assert size == (480, 240)
    small, size = thumbnail(path, len(whole) // 2)
    assert size in {(240, 120), (360, 180)}
    assert len(small) <= len(whole) // 2
    assert thumbnail(path, 1)[1] == (160, 80)


def test_a_small_picture_is_not_blown_up(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (20, 10)).save(path)
    assert thumbnail(path, 100_000)[1] == (20, 10)


def test_all_pictures_together_keep_within_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.report.PICTURES", 4 * 3000)
    part: Part = graded_part(tmp_path, {"ours": (1.0, 0.0, 0.0, 1.0)})
    text = page_of(tmp_path, Report([part]))
    pictures = re.findall(r'src="(data:image/[^"]+)"', text)
    assert len(pictures) == 4
    assert all(len(picture) <= 3000 for picture in pictures)


def test_what_columns_share_is_told_once(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0,) * 4, "theirs": (1.0,) * 4})
    ours = part.columns["ours"]
    other: Result = replace(ours, settings={**ours.settings, "adapter": "runs/y"})
    text = page_of(tmp_path, Report([replace(part, columns={"ours": ours, "theirs": other})]))
    said = Page(text[text.index('id="facts"') - 10 :].replace("</main>", "").partition("<script>")[0]).said
    assert said.count("generate") == 1
    assert "ours: runs/x" in said
    assert "theirs: runs/y" in said
