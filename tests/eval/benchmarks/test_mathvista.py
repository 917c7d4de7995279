"""MathVista: its files, shortcuts, normalisation, shares per kind, and the official result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import Question, find
from eval.errors import EvalError
from eval.scorers.mathvista import Problem, edit_distance, normalise, shortcut
from eval.scores import Mark
from tests.eval.benchmarks.options_files import drawn

MATHVISTA = find("mathvista")
METADATA = {
    "language": "english",
    "source": "IconQA",
    "category": "math-targeted-vqa",
    "task": "figure question answering",
    "context": "table",
    "grade": "daily life",
    "img_width": 8,
    "img_height": 6,
}


def _problem(pid: str, skills: list[str], **more: Any) -> dict[str, Any]:
    problem = {
        "pid": pid,
        "question": "How many?",
        "image": f"images/{pid}.jpg",
        "choices": None,
        "unit": None,
        "precision": None,
        "answer": "4",
        "question_type": "free_form",
        "answer_type": "integer",
        "metadata": {**METADATA, "skills": skills},
        "query": f"Hint: a number, please.\nQuestion: How many? ({pid})",
    }
    return problem | more


def _problems() -> dict[str, dict[str, Any]]:
    choice = {
        "question_type": "multi_choice",
        "answer_type": "text",
        "choices": ["Yes", "No"],
        "answer": "No",
    }
    number = {"answer_type": "float", "precision": 1.0, "answer": "1.2"}
    return {
        "1": _problem("1", ["arithmetic reasoning", "logical reasoning"]),
        "2": _problem("2", ["logical reasoning"], **choice),
        "3": _problem("3", ["arithmetic reasoning"], **number),
    }


def _write(folder: Path, problems: dict[str, Any]) -> None:
    (folder / "testmini.json").write_text(json.dumps(problems), encoding="utf-8")
    (folder / "images").mkdir(exist_ok=True)
    for pid in problems:
        (folder / "images" / f"{pid}.jpg").write_bytes(drawn("red", "JPEG"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path, _problems())
    return tmp_path


def _load(folder: Path) -> list[Question]:
    return MATHVISTA.load(folder, "testmini", folder / "pictures")


def test_questions_are_asked_as_the_file_words_them(folder: Path) -> None:
    one, two, _ = _load(folder)
    assert one.prompt == "Hint: a number, please.\nQuestion: How many? (1)"
    assert (one.id, one.gold, one.options) == ("1", "4", ())
    assert (two.gold, two.options) == ("No", ("A", "B"))
    assert two.images == (folder / "images" / "2.jpg",)


def test_shares_are_told_apart_by_kind(folder: Path) -> None:
    scored = MATHVISTA.score(_load(folder), {"1": "4.0", "2": "(A)", "3": "1.24"})
    values = {name: (score.value, score.count) for name, score in scored.scores.items()}
    assert next(iter(values)) == "average"
    assert values["average"] == (2 / 3, 3)
    assert values["question_type: multi_choice"] == (0.0, 1)
    assert values["answer_type: integer"] == (1.0, 1)
    assert values["skills: arithmetic reasoning"] == (1.0, 2)
    assert values["skills: logical reasoning"] == (0.5, 2)
    assert values["grade: daily life"] == (2 / 3, 3)
    assert scored.marks == {"1": Mark("4", 1.0), "2": Mark("Yes", 0.0), "3": Mark("1.2", 1.0)}
    assert scored.unparsable == 0
    assert scored.notes == {"unclear without a model": []}


def test_what_is_no_number_is_wrong_and_a_choice_is_always_found(folder: Path) -> None:
    scored = MATHVISTA.score(_load(folder), {"1": "It is 4.", "2": "Not at all", "3": ""})
    assert scored.marks == {"1": Mark(None, 0.0), "2": Mark("No", 1.0), "3": Mark(None, 0.0)}
    assert scored.unparsable == 2
    assert scored.notes["unclear without a model"] == ["1", "2"]


def test_some_answers_score_those_alone_and_strange_ones_are_refused(folder: Path) -> None:
    assert MATHVISTA.score(_load(folder), {"1": "4"}).scores["average"].count == 1
    with pytest.raises(EvalError, match="1 answers belong to no question"):
        MATHVISTA.score(_load(folder), {"1": "4", "99": "4"})


def test_the_result_file_comes_back(folder: Path) -> None:
    questions, path = _load(folder), folder / "results.json"
    MATHVISTA.write(path, questions, {"1": "4", "2": "B", "3": "1.20"})
    assert MATHVISTA.read(path) == {"1": "4", "2": "B", "3": "1.2"}
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["2"]["prediction"] == "No" and content["2"]["true_false"] is True
    assert content["2"]["metadata"]["skills"] == ["logical reasoning"]
    content["1"] |= {"response": "Well, it must be four.", "extraction": "4"}
    content["2"] |= {"response": "No.", "extraction": None}
    path.write_text(json.dumps(content))
    assert MATHVISTA.read(path) == {"1": "4", "2": "No.", "3": "1.2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "problem 1: query is None, not a text"),
        ({"answer_type": "date"}, "problem 1: is of the unknown type free_form, date"),
        ({"question_type": "multi_choice"}, "problem 1: is multi_choice without choices"),
        ({"answer_type": "float"}, "problem 1: is a float without a precision"),
        ({"metadata": []}, "problem 1, metadata: is .*, not an object"),
        ({"metadata": METADATA}, "problem 1, metadata: has no 'skills'"),
    ],
)
def test_broken_problems_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _write(tmp_path, {"1": _problem("1", []) | change})
    with pytest.raises(EvalError, match=message):
        _load(tmp_path)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "images" / "2.jpg").unlink()
    with pytest.raises(EvalError, match=r"1 of 3 pictures are missing \(the first is .*2.jpg\)"):
        _load(folder)
    (folder / "testmini.json").write_text("{}")
    with pytest.raises(EvalError, match="testmini.json: holds no problem"):
        _load(folder)
    assert [need.path for need in MATHVISTA.needs("testmini")] == ["testmini.json", "images"]


FRACTIONS = Problem("multi_choice", "text", ["3/11", "8/11", "6/11", "3/5"], None)
WHOLE = Problem("free_form", "integer", None, None)
FLOAT = Problem("free_form", "float", None, 1)


@pytest.mark.parametrize(
    ("response", "problem", "quick", "extraction"),
    [
        ("", WHOLE, False, ""),
        ("8/11", FRACTIONS, False, "8/11"),
        ("B", FRACTIONS, False, None),
        (" 14 ", WHOLE, False, "14"),
        ("14.0", WHOLE, False, None),
        ("0.60", FLOAT, False, "0.6"),
        ("nan", FLOAT, False, "nan"),
        ('So: The answer is "14".', WHOLE, True, "14"),
        ('So: The answer is "14".', WHOLE, False, None),
        ('The answer is "14"', WHOLE, True, None),  # without the period
        ("[1, 2]", Problem("free_form", "list", None, None), True, None),
    ],
)
def test_shortcuts(response: str, problem: Problem, quick: bool, extraction: str | None) -> None:
    assert shortcut(response, problem, quick) == extraction


@pytest.mark.parametrize(
    ("extraction", "problem", "normalised"),
    [
        (" B ", FRACTIONS, "8/11"),
        ("(c) and (D)", FRACTIONS, "6/11"),  # the first one in brackets wins, in either case
        ("b", FRACTIONS, "3/5"),  # a small letter is a text; the shortest choice is nearest
        ("(E) 8/11", FRACTIONS, "3/5"),  # a letter beyond the choices hides the text behind it
        ("", FRACTIONS, "3/5"),
        ("none", FRACTIONS, "3/11"),  # the first of equals
        (None, Problem("multi_choice", "text", ["Now", "None"], None), "None"),
        ("-5.9", WHOLE, "-5"),
        ("1,000", WHOLE, None),
        ("inf", WHOLE, None),
        ("1e3", WHOLE, "1000"),
        ("1", FLOAT, "1.0"),
        ("0.25", FLOAT, "0.2"),  # to the even digit
        ("2.5 m", FLOAT, None),
        (None, FLOAT, None),
        ("1.0", Problem("free_form", "float", None, None), None),
        ("[1, 2]", Problem("free_form", "list", None, None), "[1, 2]"),
        (None, Problem("free_form", "list", None, None), "None"),
        ("red", Problem("free_form", "text", None, None), "red"),
    ],
)
def test_normalisation(extraction: str | None, problem: Problem, normalised: str | None) -> None:
    assert normalise(extraction, problem) == normalised


def _slow_distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        _slow_distance(one[1:], other) + 1,
        _slow_distance(one, other[1:]) + 1,
        _slow_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("", "abc"), ("abc", ""), ("kitten", "sittin"), ("ab", "ba"), ("aab", "baa"), ("x", "x")],
)
def test_edit_distance_is_that_of_a_plain_recursion(one: str, other: str) -> None:
    assert edit_distance(one, other) == _slow_distance(one, other)


def test_an_extraction_may_be_a_number_or_a_list(folder: Path) -> None:
    path = folder / "results.json"
    found = {"1": {"extraction": 4.0}, "2": {"extraction": ["a", 1]}, "3": {"extraction": 1.23}}
    path.write_text(json.dumps(found), encoding="utf-8")
    answers = MATHVISTA.read(path)
    assert answers == {"1": "4.0", "2": "['a', 1]", "3": "1.23"}
    scored = MATHVISTA.score(MATHVISTA.load(folder, "testmini", folder), answers)
    assert (scored.marks["1"], scored.marks["3"]) == (Mark("4", 1.0), Mark("1.2", 1.0))


def test_hidden_answers_give_the_file_for_the_server(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "testmini.json").read_text())
    for row in rows.values():
        row["answer"] = ""
    (folder / "test.json").write_text(json.dumps(rows))
    questions = find("mathvista").load(folder, "test", tmp_path / "unpacked")
    assert all(question.gold is None for question in questions)
    answers = {question.id: "The answer is 3" for question in questions}
    scored = find("mathvista").score(questions, answers)
    assert scored.scores == {} and all(mark.score is None for mark in scored.marks.values())
    find("mathvista").write(tmp_path / "out.json", questions, answers)
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content) == list(rows)
    assert all(row["true_false"] is None and row["response"] == "The answer is 3" for row in content.values())


def test_extractions_are_not_unclear_to_a_model(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "testmini.json").read_text())
    answers = {
        pid: {**row, "response": "Well, hard to say.", "extraction": row["answer"]}
        for pid, row in rows.items()
    }
    (tmp_path / "result.json").write_text(json.dumps(answers))
    questions = MATHVISTA.load(folder, "testmini", tmp_path)
    scored = MATHVISTA.score(questions, MATHVISTA.read(tmp_path / "result.json"))
    assert scored.notes["unclear without a model"] == []
