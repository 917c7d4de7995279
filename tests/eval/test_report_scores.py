"""The report's figures of a benchmark: what guessing gives, which scores share an axis, differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.scienceqa import Problem
from eval.report_guess import guessing
from eval.report_parts import Part
from eval.report_scores import (
    bars_section,
    calibrated,
    calibration_section,
    differences_section,
    overview,
    scores_section,
)
from eval.results import Prediction, Result
from eval.scores import Score, Scores
from tests.eval.report_files import Page, graded_part, scienceqa_part, scienceqa_result


@pytest.fixture
def part(root: Path, problems: dict[str, Problem]) -> Part:
    gold = {pid: problem.answer for pid, problem in problems.items()}
    columns = {
        "tuned": scienceqa_result(problems, gold | {"1": 1}, sure=0.9),
        "base": scienceqa_result(problems, dict.fromkeys(gold, 0), sure=0.8),
    }
    return scienceqa_part(root, columns)


def test_guessing_is_known_for_every_category_of_scienceqa(part: Part) -> None:
    found = guessing(part)
    assert set(found) == {"NAT", "SOC", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"}  # none asked of LAN
    # options of questions 1 to 8: 2, 3, 4, 2, 5, 2, 3, 4
    assert found["Avg"] == pytest.approx(100 * (3 / 2 + 2 / 3 + 2 / 4 + 1 / 5) / 8)
    assert found["IMG"] == pytest.approx(100 * (1 / 3 + 1 / 4 + 1 / 5) / 3)


def test_guessing_is_not_known_without_questions(part: Part) -> None:
    assert guessing(replace(part, questions={})) == {}


def test_guessing_is_not_known_of_a_score_that_is_no_share_of_right_answers(part: Part) -> None:
    ours = part.columns["tuned"]
    other = replace(ours, scores=Scores({"F1": Score(0.9, 0.8, 1.0, 8), "Avg": Score(0.875, 0, 1, 8)}, 0))
    assert set(guessing(replace(part, columns={"tuned": other}))) == {"Avg"}


def test_guessing_finds_a_category_by_the_facts_of_its_questions(part: Part) -> None:
    questions = {
        pid: replace(one, facts={"kind": "odd" if int(pid) % 2 else "even"})
        for pid, one in part.questions.items()
    }
    # tuned is wrong on question 1 alone
    scores = Scores({"odd": Score(0.75, 0, 1, 4), "even": Score(1.0, 0, 1, 4)}, 0)
    column = replace(part.columns["tuned"], scores=scores)
    found = guessing(replace(part, questions=questions, columns={"tuned": column}))
    assert found == {
        "odd": pytest.approx(100 * (1 / 2 + 1 / 4 + 1 / 5 + 1 / 3) / 4),
        "even": pytest.approx(100 * (1 / 3 + 1 / 2 + 1 / 2 + 1 / 4) / 4),
    }


def test_guessing_is_not_known_where_questions_are_scored_in_groups(part: Part) -> None:
    ours = part.columns["tuned"]
    marked = {
        pid: replace(made, gold="A", score=1.0 if pid == "2" else None)
        for pid, made in ours.predictions.items()
    }
    column = replace(ours, predictions=marked, scores=Scores({"Overall": Score(1.0, 0.2, 1.0, 1)}, 0))
    assert guessing(replace(part, columns={"tuned": column})) == {}


def test_guessing_is_not_known_where_questions_have_no_options(tmp_path: Path) -> None:
    assert guessing(graded_part(tmp_path, {"ours": (1.0, 1.0, 0.0, 0.0)})) == {}


def test_sums_have_an_axis_apart_from_their_parts(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0,) * 4})
    drawn = bars_section(part)
    assert drawn.count("<figure>") == 2
    assert ">2000<" in drawn
    assert ">400<" in drawn


def test_further_scores_open_on_demand(part: Part) -> None:
    many = {f"kind {place}": Score(0.5, 0.4, 0.6, 10) for place in range(40)}
    one = replace(part, columns={"ours": Result(Scores(many, 0), {}, {}, {}, {})})
    for drawn in (scores_section(one), bars_section(one)):
        shown, more = drawn.split("<details>")
        assert "kind 15" in shown
        assert "kind 16" not in shown
        assert "kind 39" in more
        assert "24 more" in more


def test_scienceqas_headline_is_the_last_of_its_table(part: Part) -> None:
    said = Page(overview([part])).said
    assert said == "ScienceQA, test Avg, 8 questions tuned 87.50 % 52.9 – 97.8 base 25.00 % 7.1 – 59.1"


def test_difference_counts_who_alone_was_right(part: Part) -> None:
    said = Page(differences_section(part)).said
    # tuned alone on 2, 3, 4, 5, 7, 8; base alone on 1; both on 6: p = 2 * (1 + 7) / 2 ** 7
    assert "base +62.50" in said
    assert "8 6 1 0.12 McNemar, exact" in said
    assert "only tuned right" in said


def test_difference_of_graded_answers(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0, 0.5, 0.0, 1.0), "theirs": (0.5, 0.5, 0.0, 1.0)})
    said = Page(differences_section(part)).said
    assert "theirs +12.50" in said
    assert "4 – – 1 random signs" in said


def test_difference_between_different_data_is_refused_in_words(part: Part) -> None:
    other = part.columns["base"]
    moved = {pid: replace(made, gold=made.gold + 1) for pid, made in other.predictions.items()}
    said = Page(
        differences_section(
            replace(part, columns={"ours": part.columns["tuned"], "x": replace(other, predictions=moved)})
        )
    ).said
    assert "x: question 1 has the right answer 0 in A but 1 in B" in said


def test_calibration_of_chosen_answers(part: Part) -> None:
    found = calibrated(part.columns["tuned"])
    assert found is not None
    assert (found.count, found.right) == (8, 0.875)
    assert found.confidence == pytest.approx(0.9)
    assert found.error == pytest.approx(0.025)
    assert "tuned 2.50 90.00 87.50 8 base 55.00 80.00 25.00 8" in Page(calibration_section(part)).said


def test_generated_answers_have_no_calibration(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0,) * 4})
    assert calibrated(part.columns["ours"]) is None
    assert calibration_section(part) == ""


def test_answers_without_a_mark_are_left_out_of_calibration() -> None:
    made = {
        "1": Prediction(0, None, likelihoods=(-0.1, -3.0)),
        "2": Prediction(0, 0, likelihoods=(-0.1, -3.0)),
    }
    found = calibrated(Result(Scores({}, 0), made, {}, {}, {}))
    assert found is not None
    assert found.count == 1
