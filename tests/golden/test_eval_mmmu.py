"""MMMU's parsers and shares equal the official ones (MMA_GOLDEN/eval/mmmu)."""

from __future__ import annotations

from typing import Any

import pytest

from eval.scorers.mmmu import MULTIPLE_CHOICE, Response, judge, open_correct, parse_choice, parse_open, report
from tests.golden.cases import Case, cases

CASES = cases("mmmu")
RANDOM = "__random__"
pytestmark = pytest.mark.skipif(not CASES, reason="no golden cases of mmmu (set MMA_GOLDEN)")


def _choices(line: dict[str, Any]) -> dict[str, str]:
    return {letter: line["index2ans"][letter] for letter in line["all_choices"]}


def _check_choices(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert (parse_choice(line["response"], _choices(line)) or RANDOM) == line["parsed"], line


def _check_open(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        parsed = parse_open(line["response"])
        assert sorted(map(repr, parsed)) == line["parsed"], line
        assert open_correct(line["answer"], parsed) == line["correct"], line


def _check_outputs(lines: list[dict[str, Any]], official: dict[str, Any]) -> None:
    judged, unread = {}, []
    for line in lines:
        choices = _choices(line) if line["question_type"] == MULTIPLE_CHOICE else None
        found = judge(Response(line["id"], line["subject"], line["answer"], choices, line["response"]))
        judged[line["id"]] = (line["subject"], found.right)
        if found.read is None:
            unread.append(line["id"])
    assert sorted(pid for pid, (_, right) in judged.items() if right) == sorted(official["correct_ids"])
    assert sorted(unread) == sorted(official["random_fallback_ids"])
    scores = report(list(judged.values()))
    assert scores["Overall"].value == pytest.approx(official["overall_with_fallback_wrong"], abs=1e-6)
    for subject, (share, count) in official["subjects"].items():
        assert scores[subject].value == pytest.approx(share, abs=1e-6), subject
        assert scores[subject].count == count, subject
    for discipline, share in official["domains"].items():
        assert scores[f"Overall-{discipline}"].value == pytest.approx(share, abs=1e-6), discipline


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mmmu_is_scored_as_officially(case: Case) -> None:
    lines = case.lines()
    if {"all_choices", "parsed"} <= lines[0].keys():
        _check_choices(lines)
    elif {"parsed", "correct"} <= lines[0].keys():
        _check_open(lines)
    elif {"question_type", "response", "subject"} <= lines[0].keys() and "correct_ids" in case.official:
        _check_outputs(lines, case.official)
    else:
        pytest.fail(f"{case}: lines with {sorted(lines[0])} are not known here")
