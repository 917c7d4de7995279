"""ScienceQA: how a model's texts are read, and LLaVA's files over a whole split, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.scienceqa import FIELDS
from eval.__main__ import main
from eval.benchmark import find
from eval.benchmarks.scienceqa import read_option
from eval.errors import EvalError
from tests.eval.benchmarks.short_answer_files import write_json, write_jsonl

SCIENCEQA = find("scienceqa")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", 1),
        (" B\n", 1),
        ("B. a fox", 1),
        ("The answer is B.", 1),
        ("The answer is B", 1),  # as LaVIN's formats are read here
        ("The answer is B. The answer is C.", 1),
        ("B.", None),  # LLaVA wants a blank behind it
        ("b", None),
        ("C", None),  # there are two options
        ("(B)", None),
        ("a fox", None),
        ("", None),
    ],
)
def test_how_a_text_is_read(text: str, option: int | None) -> None:
    assert read_option(text, 2) == option


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four problems of the test split and one of another."""
    row: dict[str, Any] = {
        **dict.fromkeys(FIELDS, ""),
        "question": "Why?",
        "choices": ["a", "b"],
        "image": None,
        "grade": "grade2",
        "subject": "natural science",
    }
    rows = {
        str(number): {**row, "answer": number % 2, "split": "val" if number == 5 else "test"}
        for number in range(1, 6)
    }
    write_json(tmp_path / "problems.json", rows)
    write_json(tmp_path / "pid_splits.json", {"test": ["1", "2", "3", "4"], "val": ["5"]})
    return tmp_path


LINES = [
    {"question_id": "1", "prompt": "<image>\nWhy?", "text": "B. since"},
    {"question_id": "2", "prompt": "Why?", "text": "The answer is A"},  # nothing follows the letter
    {"question_id": "3", "prompt": "<image>\nWhy?", "text": "C"},  # no such option
    {"question_id": "5", "prompt": "Why?", "text": "B"},  # of another split
]


def scored(path: Path, folder: Path, *more: str) -> dict[str, Any]:
    out = folder / "scores.json"
    words = ["score", "scienceqa", str(path), "--data", str(folder), "--json", str(out), *more]
    assert main(words) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_llavas_lines_are_scored_over_the_whole_split(folder: Path) -> None:
    write_jsonl(folder / "a.jsonl", LINES)
    found = scored(folder / "a.jsonl", folder)
    assert (found["scores"]["Avg"]["value"], found["scores"]["Avg"]["count"]) == (0.25, 4)
    assert found["unparsable"] == 3
    assert found["marks"]["4"] == {"read": None, "score": 0.0}
    assert found["notes"]["official"] == {"Total": 4, "Correct": 1, "Accuracy": 25.0, "IMG-Accuracy": 50.0}
    assert scored(folder / "a.jsonl", folder, "--split", "val")["scores"]["Avg"]["value"] == 1.0


def test_llavas_analysis_is_scored_alike(folder: Path) -> None:
    letters = {"1": "B", "2": "FAILED", "3": "C"}
    rows = [
        {"question_id": key, "parsed_ans": letter, "is_multimodal": key != "2"}
        for key, letter in letters.items()
    ]
    write_json(folder / "analysis.json", {"correct": rows[:1], "incorrect": rows[1:]})
    found = scored(folder / "analysis.json", folder)
    assert found["scores"]["Avg"]["value"] == 0.25
    assert found["notes"]["official"]["IMG-Accuracy"] == 50.0


def test_answers_to_other_questions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "a.jsonl", [{"question_id": "77", "prompt": "", "text": "A"}])
    assert main(["score", "scienceqa", str(folder / "a.jsonl"), "--data", str(folder)]) != 0
    assert "holds no answer to any question of this split" in capsys.readouterr().err


def test_indices_that_are_none(folder: Path) -> None:
    write_json(folder / "a.json", {"1": 30})
    with pytest.raises(EvalError, match="not a result file of ScienceQA"):
        SCIENCEQA.read(folder / "a.json")
