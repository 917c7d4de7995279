"""AI2D: its Parquet files, its prompt, both rules, and the log of samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.benchmark import Question, find
from eval.errors import EvalError
from eval.scorers.ai2d import lmms_filtered, lmms_match, vlmevalkit_letter
from eval.scores import Mark
from tests.eval.benchmarks.options_files import struct, write_parquet

AI2D = find("ai2d")
CHAIN = ["grasshopper", "frog", "snake", "hawk and owl"]


def _rows() -> list[dict[str, Any]]:
    return [
        {"question": "Who eats the frog?", "options": CHAIN, "answer": "2", "image": struct("red")},
        {"question": "Who eats nobody?", "options": CHAIN, "answer": "0", "image": struct("blue")},
        {"question": "What is green?", "options": CHAIN, "answer": "1", "image": struct("green")},
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", _rows()[:2])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", _rows()[2:])
    return tmp_path


def _load(folder: Path) -> list[Question]:
    return AI2D.load(folder, "test", folder / "pictures")


def test_rows_become_questions_with_exact_prompts(folder: Path) -> None:
    questions = _load(folder)
    assert [(question.id, question.gold) for question in questions] == [("0", "C"), ("1", "A"), ("2", "B")]
    assert questions[2].prompt == (
        "What is green?\nA. grasshopper\nB. frog\nC. snake\nD. hawk and owl\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert questions[0].options == ("A", "B", "C", "D")
    with Image.open(questions[1].images[0]) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_both_rules_are_scored(folder: Path) -> None:
    questions = _load(folder)
    answers = {"0": "The answer is C", "1": "a.", "2": "dunno"}
    scored = AI2D.score(questions, answers)
    assert {name: score.value for name, score in scored.scores.items()} == {
        "Overall": 1 / 3,
        "exact_match (lmms-eval)": 1 / 3,
    }
    assert scored.marks == {"0": Mark("C", 1.0), "1": Mark(None, 0.0), "2": Mark(None, 0.0)}
    assert scored.unparsable == 2
    with pytest.raises(EvalError, match="2 of 3 questions have no answer"):
        AI2D.score(questions, {"0": "C"})


def test_the_log_comes_back(folder: Path) -> None:
    answers = {"0": "C. snake\nsurely", "1": " B", "2": "ü"}
    path = folder / "log.jsonl"
    AI2D.write(path, _load(folder), answers)
    assert AI2D.read(path) == answers
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert first["filtered_resps"] == ["C"] and first["exact_match"] == 1.0 and first["target"] == "C"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"doc_id": 1, "resps": []}, "line 1: resps holds no single text"),
        ({"resps": [["A"]]}, "line 1: has no 'doc_id'"),
        ({"doc_id": 1, "resps": ["A"]}, "line 2: '1' is answered a second time"),
    ],
)
def test_a_broken_log_is_named(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    (tmp_path / "log.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line)}\n")
    with pytest.raises(EvalError, match=message):
        AI2D.read(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "4"}, "row 1: answer '4' is the place of no option"),
        ({"options": ["one"]}, "row 1: has 1 options"),
        ({"image": None}, "row 1: has no picture"),
        ({"image": {"bytes": b"", "path": None}}, "row 1: image holds no picture"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [_rows()[0] | change])
    with pytest.raises(EvalError, match=message):
        _load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvalError, match=r"data: no test-\*.parquet in it"):
        _load(tmp_path)
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    write_parquet(path, [{"question": "Without the rest?"}])
    with pytest.raises(EvalError, match="row 1: has no 'options'"):
        _load(tmp_path)
    path.write_text("no table")
    with pytest.raises(EvalError, match="row 1 cannot be read as Parquet; fetch the file again"):
        _load(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EvalError, match="needs the package pyarrow: pip install pyarrow"):
        _load(tmp_path)
    assert AI2D.needs("test")[0].path == "data/test-*.parquet"


@pytest.mark.parametrize(
    ("answer", "filtered", "right"),
    [
        ("B", "B", True),
        ("b", "b", True),
        ("B.frog", "B", True),
        ("  B. frog", "B", True),
        ("(B)", "(B)", True),
        (" B", " B", False),  # blanks are kept
        ("B .", "B .", False),
        ("b. frog", "b. frog", False),  # only a capital is taken out
        ("frog", "frog", False),
    ],
)
def test_lmms_filters_and_compares(answer: str, filtered: str, right: bool) -> None:
    assert lmms_filtered(answer) == filtered
    assert lmms_match(answer, "B") == right


def test_an_answer_is_stripped_before_its_length_counts() -> None:
    choices = {"A": "cat", "B": "dog"}
    assert vlmevalkit_letter("  a cat          ", choices) == "A"
    assert vlmevalkit_letter("mouse", choices) == "Z"
