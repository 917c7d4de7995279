"""MathVista's shortcuts, normalisation and shares equal the official ones (MMA_GOLDEN/eval/mathvista)."""

from __future__ import annotations

from typing import Any

import pytest

from eval.scorers.mathvista import Problem, normalise, report, shortcut
from tests.golden.cases import Case, cases

CASES = cases("mathvista")
ASKED = "<LLM>"
pytestmark = pytest.mark.skipif(not CASES, reason="no golden cases of mathvista (set MMA_GOLDEN)")


def _problem(row: dict[str, Any]) -> Problem:
    return Problem(row["question_type"], row["answer_type"], row["choices"], row.get("precision"))


def _check_shortcuts(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        found = shortcut(line["response"], _problem(line), line["quick_extract"])
        assert (ASKED if found is None else found) == line["extraction"], line


def _check_normalisation(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert normalise(line["extraction"], _problem(line)) == line["normalized"], line


def _check_results(rows: dict[str, dict[str, Any]], official: dict[str, Any]) -> None:
    predictions = {pid: normalise(row["extraction"], _problem(row)) for pid, row in rows.items()}
    assert predictions == official["prediction"]
    right = [pid for pid, row in rows.items() if predictions[pid] == row["answer"]]
    assert sorted(right) == sorted(official["correct_ids"])
    table = report([({**row, **row["metadata"]}, pid in right) for pid, row in rows.items()])
    average = table["average"]["accuracy"]
    for key, values in official["scores"].items():
        if key == "average":
            assert average.value == pytest.approx(values["accuracy"], abs=1e-9)
            assert average.count == values["total"]
            assert len(right) == values["correct"]
            continue
        assert table[key].keys() == values.keys()
        for value, (correct, total) in values.items():
            assert table[key][value].count == total, (key, value)
            assert table[key][value].value == pytest.approx(correct / total, abs=1e-9), (key, value)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mathvista_is_scored_as_officially(case: Case) -> None:
    if "scores" in case.official:
        _check_results(case.json(), case.official)
        return
    lines = case.lines()
    if "quick_extract" in lines[0]:
        _check_shortcuts(lines)
    elif "normalized" in lines[0]:
        _check_normalisation(lines)
    else:
        pytest.fail(f"{case}: lines with {sorted(lines[0])} are not known here")
