"""GQA: loading, prompts, the figures of the official script worked out by hand, the prediction file."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.scorers.gqa import Spread, lmms_match, prediction, steps, words
from tests.eval.benchmarks.short_answer_files import SHORT, edit, load, picture, write_json, write_jsonl

GQA = find("gqa")
FILE = "testdev_balanced_questions.json"


def row(question: str, answer: str, kind: str, group: str | None, *operations: str) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer,
        "imageId": "n1",
        "isBalanced": True,
        "types": {"structural": kind, "semantic": "attr", "detailed": "x"},
        "groups": {"global": group, "local": "y"},
        "semantic": [
            {"operation": name, "argument": argument, "dependencies": []}
            for name, argument in (operation.split(": ") for operation in operations)
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five balanced questions and one that does not count."""
    rows = {
        "201": row("Is it red?", "no", "verify", None, "select: bag (1)", "verify color: red"),
        "202": row("What color is it?", "light blue", "query", "color", "select: bag (1)", "query: color"),
        "203": row("What color is that?", "red", "query", "color", "select: bag (1)", "query: name"),
        "204": row("What is this?", "cow", "query", "animal", "select: this (-)", "query: name"),
        "205": row("Is there a cow?", "yes", "verify", None, "select: cow (2)", "exist: ?"),
        "206": {**row("Is it?", "yes", "verify", None), "isBalanced": False},
    }
    write_json(tmp_path / FILE, rows)
    picture(tmp_path / "images" / "n1.jpg")
    return tmp_path


ANSWERS = {"201": "No.", "202": "Light Blue", "203": "light blue", "204": "cow .", "205": ""}


def test_questions(folder: Path) -> None:
    questions = load("gqa", folder)
    assert [question.id for question in questions] == [*ANSWERS]
    assert questions[0].prompt == f"Is it red?\n{SHORT}"
    assert questions[0].images == (folder / "images" / "n1.jpg",)
    assert questions[1].gold == "light blue"


def test_scores(folder: Path) -> None:
    scored = GQA.score(load("gqa", folder), ANSWERS)
    values = {name: score.value for name, score in scored.scores.items()}
    # Colors: each right answer twice expected 1, found 2 and 0: (1 + 1) * 2; animals: (1 - 0)^2 / 1 * 1
    expected = {
        **{"Accuracy": 2 / 5, "Binary": 1 / 2, "Open": 1 / 3, "Distribution": 5 / 3 / 100},
        **{"Accuracy / structural type: query": 1 / 3, "Accuracy / structural type: verify": 1 / 2},
        "Accuracy / semantic type: attr": 2 / 5,
        **{"Accuracy / steps number: 1": 0.0, "Accuracy / steps number: 2": 1.0},
        **{"Accuracy / words number: 3": 1 / 2, "Accuracy / words number: 4": 1 / 3},
    }
    assert values == pytest.approx(expected)
    assert [*values] == [*expected]
    official = scored.notes["official"]
    assert (official["Accuracy"], official["Open"], official["Distribution"]) == (40.0, 33.33, 0.02)
    assert official["Accuracy / words number"] == {"3": [50.0, 2], "4": [33.33, 3]}
    assert official["Validity"] == official["Plausibility"] == 0.0
    assert scored.unparsable == 1 and scored.marks["205"].read is None
    assert scored.marks["204"].read == "cow " and scored.marks["204"].score == 0.0
    assert scored.scores["Distribution"].scale == 1


def test_without_groups_there_is_no_distribution(folder: Path) -> None:
    questions = [question for question in load("gqa", folder) if question.facts["group"] is None]
    scored = GQA.score(questions, {question.id: "no" for question in questions})
    assert scored.scores["Distribution"].value is None and scored.notes["official"]["Distribution"] == 0.0
    assert scored.scores["Open"].value is None and scored.notes["official"]["Open"] == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("No...", "no"),
        ("light blue .", "light blue "),
        (" No", " no"),
        ("U.S.", "u.s"),
        (".", ""),
    ],
)
def test_prediction(text: str, expected: str) -> None:
    assert prediction(text) == expected
    assert prediction(expected) == expected  # a file that is read back is not changed


def test_lmms_passes_over_case_and_punctuation() -> None:
    assert lmms_match("T-Shirt!", "tshirt") and not lmms_match("t shirt", "tshirt")


def test_steps_and_words() -> None:
    program = [("select", "bag (1)"), ("query", "name"), ("query", "name tag"), ("choose name", "a|b")]
    assert steps([*program, ("exist", "?"), ("filter", "existing"), ("filter color", "name")]) == 2
    assert words("  What is  it? ") == 3


def test_distribution_is_what_the_slow_sum_gives() -> None:
    random = Random(3)
    answers = [(random.choice("gh"), random.choice("abc"), random.choice("abcd")) for _ in range(200)]
    spread = Spread(answers)
    assert spread.distribution(np.array(spread.counts)) == pytest.approx(slow_distribution(answers))
    some = random.choices(answers, k=20)  # not every kind is drawn
    counts = np.array([some.count(kind) for kind in dict.fromkeys(answers)])
    assert spread.distribution(counts) == pytest.approx(slow_distribution(some))


def slow_distribution(answers: list[tuple[str, str, str]]) -> float:
    groups = defaultdict(list)
    for group, gold, answer in answers:
        groups[group].append((gold, answer))
    total = 0.0
    for some in groups.values():
        for right in {gold for gold, _ in some}:
            due = sum(gold == right for gold, _ in some)
            found = sum(answer == right for _, answer in some)
            total += (found - due) ** 2 / due * len(some)
    return total / len(answers) / 100


def test_prediction_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    GQA.write(path, load("gqa", folder), ANSWERS)
    assert json.loads(path.read_text())[:2] == [
        {"questionId": "201", "prediction": "no"},
        {"questionId": "202", "prediction": "light blue"},
    ]
    questions = load("gqa", folder)
    assert GQA.score(questions, GQA.read(path)).scores == GQA.score(questions, ANSWERS).scores


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"isBalanced": true', '"isBalanced2": true', "question 201: has no 'isBalanced'; fetch"),
        ('"answer": "no"', '"answer": 3', "question 201: answer is 3, not a text; fetch"),
        ('"global": null', '"global": 4', "question 201, groups: global is 4, not a text or null"),
        ('"operation": "select"', '"operator": "select"', "question 201, semantic 1: has no 'operation'"),
        ('"structural": "verify"', '"other": 1', "question 201, types: has no 'structural'"),
        ('"imageId": "n1"', '"imageId": "n2"', "gqa: 1 of 2 pictures are missing .the first is .*n2.jpg"),
    ],
)
def test_broken_questions(folder: Path, old: str, new: str, message: str) -> None:
    edit(folder / FILE, old, new)
    with pytest.raises(EvalError, match=message):
        load("gqa", folder)


def test_no_balanced_questions_are_refused(folder: Path) -> None:
    write_json(folder / FILE, {})
    with pytest.raises(EvalError, match="holds no balanced questions; fetch"):
        load("gqa", folder)


def test_predictions_must_be_complete(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EvalError, match="gqa: 4 of 5 questions have no answer .the first is 202.; the official"
    ):
        GQA.score(load("gqa", folder), {"201": "no"})
    write_json(tmp_path / "twice.json", [{"questionId": "1", "prediction": "a"}] * 2)
    with pytest.raises(EvalError, match="item 2: '1' is answered a second time"):
        GQA.read(tmp_path / "twice.json")


def test_an_official_file_is_scored_as_it_stands_and_may_hold_more(folder: Path) -> None:
    found = {**ANSWERS, "201": "no", "202": "Light Blue", "206": "yes", "999": "cow"}
    write_json(folder / "p.json", [{"questionId": key, "prediction": text} for key, text in found.items()])
    scored = GQA.score(load("gqa", folder), GQA.read(folder / "p.json"))
    right = {key: mark.score for key, mark in scored.marks.items()}
    assert right == {"201": 1, "202": 0, "203": 0, "204": 0, "205": 0}


def test_llavas_answer_lines_are_converted(folder: Path) -> None:
    write_jsonl(folder / "a.jsonl", [{"question_id": key, "text": text} for key, text in ANSWERS.items()])
    answers = GQA.read(folder / "a.jsonl")
    assert GQA.score(load("gqa", folder), answers).scores["Accuracy"].value == 2 / 5
