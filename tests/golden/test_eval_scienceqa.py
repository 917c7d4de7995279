"""ScienceQA answers are read as by four public evaluators, and scored as officially.

Needs the golden files (MMA_GOLDEN/eval/scienceqa).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from data.scienceqa import Problem
from eval.scienceqa import CATEGORIES, score
from eval.scorers.scienceqa import READERS, lavin, llava, lmms, option
from tests.golden.cases import Case, cases

CASES = cases("scienceqa")
FAILED = "FAILED"
OFFICIAL_NAMES = {
    "NAT": "acc_natural",
    "SOC": "acc_social",
    "LAN": "acc_language",
    "TXT": "acc_has_text",
    "IMG": "acc_has_image",
    "NO": "acc_no_context",
    "G1-6": "acc_grade_1_6",
    "G7-12": "acc_grade_7_12",
    "Avg": "acc_average",
}
pytestmark = pytest.mark.skipif(not CASES, reason="no golden cases of scienceqa (set MMA_GOLDEN)")


def _problems(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Problem]:
    """Problems of rows whose texts were left out; only what the scores depend on is there."""
    blank: dict[str, Any] = dict.fromkeys(
        ("question", "task", "topic", "category", "skill", "lecture", "solution"), ""
    )
    used = ("answer", "hint", "image", "grade", "subject", "split")
    return {
        pid: Problem(pid=pid, choices=tuple(row["choices"]), **blank, **{name: row[name] for name in used})
        for pid, row in rows.items()
    }


def _check_nine(
    problems: Mapping[str, Problem], options: Mapping[str, int | None], official: Mapping[str, str]
) -> None:
    found = {name: category.value for name, category in score(problems, options).categories.items()}
    assert {name: f"{(value or 0) * 100:.2f}" for name, value in found.items()} == {
        name: official[OFFICIAL_NAMES[name]] for name in CATEGORIES
    }


def _check_extraction(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        for name in ("llava", "lavin", "gpt3"):
            assert (READERS[name](line["output"]) or FAILED) == line[f"{name}_letter"], (name, line)
        index = option(llava(line["output"]), line["n_choices"])
        assert (-1 if index is None else index) == line["llava_index"], line
        for column, value in line.items():
            if hit := re.fullmatch(r"lmms_score_if_gold_([A-Z])", column):
                assert (lmms(line["output"]) == hit[1]) == bool(value), line


def _check_stdout(
    problems: Mapping[str, Problem],
    answers: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, int | None],
    line: str,
) -> None:
    """LLaVA's printed line, which takes pictures from the stored prompts."""
    right = {pid: option == problems[pid].answer for pid, option in options.items()}
    seen = [pid for pid in options if "<image>" in answers.get(pid, {"prompt": ""})["prompt"]]
    correct, pictured = sum(right.values()), sum(right[pid] for pid in seen)
    assert line == (
        f"Total: {len(right)}, Correct: {correct}, Accuracy: {correct / len(right) * 100:.2f}%, "
        f"IMG-Accuracy: {pictured / len(seen) * 100:.2f}%"
    )


def _split(case: Case) -> list[str]:
    """The ids of the test split, or of the only one."""
    place = next(place for place, path in enumerate(case.paths()) if path.name == "pid_splits.json")
    splits = case.json(place)
    assert "test" in splits or len(splits) == 1, f"{case}: which split?"
    return list(splits.get("test") or next(iter(splits.values())))


def _check_answers(case: Case) -> None:
    """LLaVA's answer file: over a split where one is named, or over what was answered."""
    files = {path.name: place for place, path in enumerate(case.paths())}
    problems = _problems(case.json(files["problems.json"]))
    place = next(place for name, place in files.items() if name.endswith(".jsonl"))
    answers = {str(line["question_id"]): line for line in case.lines(place)}
    pids = _split(case) if "pid_splits.json" in files else list(answers)
    texts = {pid: answers[pid]["text"] if pid in answers else FAILED for pid in pids}
    options = {pid: option(llava(text), len(problems[pid].choices)) for pid, text in texts.items()}
    official, compared = case.official, 0
    if "stdout" in official:
        _check_stdout(problems, answers, options, official["stdout"])
        compared += 1
    if "unparsed_ids" in official:
        unread = [pid for pid, found in options.items() if found is None]
        assert sorted(unread) == sorted(official["unparsed_ids"])
        compared += 1
    if "nine_with_minus1_wrong" in official:
        _check_nine(problems, options, official["nine_with_minus1_wrong"])
        compared += 1
    if "llava_index" in official:
        assert {pid: -1 if found is None else found for pid, found in options.items()} == official[
            "llava_index"
        ]
        compared += 1
    if "lavin_letter" in official:
        assert {pid: lavin(text) or FAILED for pid, text in texts.items()} == official["lavin_letter"]
        compared += 1
    assert compared, f"{case}: nothing known to compare in {sorted(official)}"


def _check_results(case: Case) -> None:
    files = {path.name: place for place, path in enumerate(case.paths())}
    problems = _problems(case.json(files["problems.json"]))
    place = next(place for name, place in files.items() if name not in ("problems.json", "pid_splits.json"))
    results = case.json(place)
    pids = _split(case) if "pid_splits.json" in files else list(problems)
    found = {pid: results.get("results", results)[pid] for pid in pids}
    options = {pid: None if index == -1 else index for pid, index in found.items()}
    _check_nine(problems, options, case.official)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scienceqa_is_scored_as_officially(case: Case) -> None:
    names = {path.name for path in case.paths()}
    if "problems.json" not in names and "n_choices" in case.lines()[0]:
        _check_extraction(case.lines())
    elif "problems.json" in names and any(name.endswith(".jsonl") for name in names):
        _check_answers(case)
    elif "problems.json" in names and OFFICIAL_NAMES["Avg"] in case.official:
        _check_results(case)
    else:
        pytest.fail(f"{case}: files {sorted(names)} are not known here")
