"""MMLU's prompt, letters and averages equal the official ones (MMA_GOLDEN/eval/mmlu)."""

from __future__ import annotations

from typing import Any

import pytest

from eval.scorers.mmlu import CATEGORIES, Item, letter_of, prompt, report, unweighted
from tests.golden.cases import Case, cases

CASES = cases("mmlu")
pytestmark = pytest.mark.skipif(not CASES, reason="no golden cases of mmlu (set MMA_GOLDEN)")


def _item(cells: list[str]) -> Item:
    return Item(cells[0], cells[1:-1], cells[-1])


def _check_prompts(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        # -1 stands for all of them
        shots = [_item(cells) for cells in line["dev"]][: None if line["k"] == -1 else line["k"]]
        assert prompt(line["subject"], shots, _item(line["test"])) == line["prompt"], line["id"]


def _check_scores(lines: list[dict[str, Any]], official: dict[str, Any]) -> None:
    judged = [(line["subject"], letter_of(line["top_logprobs"]) == line["answer"]) for line in lines]
    scores = report(judged)
    assert scores["Average"].value == pytest.approx(official["average_weighted_by_question"], abs=1e-9)
    assert unweighted(scores) == pytest.approx(official["average_over_subjects_unweighted"], abs=1e-9)
    assert official["categories"].keys() <= CATEGORIES.keys()
    for category, share in official["categories"].items():
        assert scores[category].value == pytest.approx(share, abs=1e-9), category
    for subject, (share, count) in official["subjects"].items():
        assert scores[subject].value == pytest.approx(share, abs=1e-9), subject
        assert scores[subject].count == count, subject


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mmlu_is_scored_as_officially(case: Case) -> None:
    lines = case.lines()
    if "prompt" in lines[0]:
        _check_prompts(lines)
    elif "top_logprobs" in lines[0] and "subjects" in case.official:
        _check_scores(lines, case.official)
    else:
        pytest.fail(f"{case}: lines with {sorted(lines[0])} are not known here")
