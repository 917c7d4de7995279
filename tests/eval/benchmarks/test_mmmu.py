"""MMMU: its Parquet files, its prompts, both parsers, the shares, and the official answer files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import Question, find
from eval.errors import EvalError
from eval.scorers.mmmu import SUBJECTS, normalised, official_draw, open_correct, parse_choice, parse_open
from eval.scores import Mark
from tests.eval.benchmarks.options_files import struct, write_parquet

MMMU = find("mmmu")
CARS = {"A": "red car", "B": "blue car", "C": "green", "D": "none of these"}


def _row(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "id": f"validation_{name}",
        "question": "Which colour is in <image 1>?",
        "options": "['red', 'blue']",
        "answer": "A",
        "question_type": "multiple-choice",
        **{f"image_{number}": struct("red") if number == 1 else None for number in range(1, 8)},
    }
    return row | more


def _rows() -> dict[str, list[dict[str, Any]]]:
    several = {
        "question": "Which is like <image 3>?",
        "options": "['<image 1>', '<image 2>']",
        "answer": "B",
        "image_2": struct("blue"),
        "image_3": struct("green"),
    }
    number = {"question": "How many?", "question_type": "open", "options": "[]", "answer": "['4', 'four']"}
    return {
        "Math": [_row("Math_1"), _row("Math_2", **number)],
        "Art": [_row("Art_1", **several)],
    }


def _write(folder: Path, rows: dict[str, list[dict[str, Any]]], split: str = "validation") -> None:
    for subject, some in rows.items():
        write_parquet(folder / subject / f"{split}-00000-of-00001.parquet", some)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path, _rows())
    return tmp_path


def _load(folder: Path, split: str = "validation") -> list[Question]:
    return MMMU.load(folder, split, folder / "pictures")


def test_prompts_have_the_exact_bytes_of_the_official_configuration(folder: Path) -> None:
    art, choice, number = _load(folder)
    assert choice.prompt == (
        "Which colour is in <image 1>?\n\n(A) red\n(B) blue\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert number.prompt == "How many?\n\nAnswer the question using a single word or phrase."
    assert (choice.options, choice.gold) == (("A", "B"), "A")
    assert (number.options, number.gold) == ((), ["4", "four"])
    assert art.id == "validation_Art_1"


def test_only_options_with_several_pictures_show_more_than_the_first(folder: Path) -> None:
    names = [[path.name for path in question.images] for question in _load(folder)]
    assert names == [
        ["validation_Art_1_3.png", "validation_Art_1_1.png", "validation_Art_1_2.png"],
        ["validation_Math_1_1.png"],
        ["validation_Math_2_1.png"],
    ]


def test_shares_are_those_of_the_subjects_and_disciplines(folder: Path) -> None:
    answers = {"validation_Art_1": "perhaps", "validation_Math_1": "(A)", "validation_Math_2": "It is four."}
    scored = MMMU.score(_load(folder), answers)
    assert {name: (score.value, score.count) for name, score in scored.scores.items()} == {
        "Overall": (2 / 3, 3),
        "Overall-Art and Design": (0.0, 1),
        "Art": (0.0, 1),
        "Overall-Science": (1.0, 2),
        "Math": (1.0, 2),
    }
    assert scored.marks["validation_Art_1"] == Mark(None, 0.0)
    assert scored.marks["validation_Math_2"] == Mark("It is four.", 1.0)
    assert scored.unparsable == 1
    assert scored.notes["unread"] == ["validation_Art_1"]
    assert scored.notes["official"]["Overall"] == 0.667
    # the first option that the seed of the official code draws is A, and B is right
    assert scored.notes["official, random where unread (seed 42)"]["Overall"] == 0.667


def test_some_answers_score_those_alone_and_strange_ones_are_refused(folder: Path) -> None:
    questions = _load(folder)
    assert MMMU.score(questions, {"validation_Math_1": "B"}).scores["Overall"].count == 1
    with pytest.raises(EvalError, match="1 answers belong to no question"):
        MMMU.score(questions, {"validation_Math_1": "B", "other": "A"})


def test_the_official_answer_files_come_back(folder: Path) -> None:
    questions = _load(folder)
    answers = {"validation_Art_1": "perhaps", "validation_Math_1": "(A)", "validation_Math_2": "It is four."}
    MMMU.write(folder / "answers.json", questions, answers)
    assert MMMU.read(folder / "answers.json") == answers | {"validation_Math_1": "A"}
    output = folder / "outputs" / "Math" / "output.json"
    output.parent.mkdir(parents=True)
    output.write_text(json.dumps([{"id": "validation_Math_1", "response": "(A)"}]))
    assert MMMU.read(folder / "outputs") == {"validation_Math_1": "(A)"}


def test_the_test_split_has_no_score(folder: Path) -> None:
    rows = [_row("Art_1", answer="?"), _row("Art_2", answer="?", question_type="open")]
    _write(folder, {"Art": rows}, "test")
    (folder / "Math" / "validation-00000-of-00001.parquet").rename(folder / "Math" / "test-0.parquet")
    _write(folder, {"Math": [_row("Math_9", answer="?")]}, "test")
    (folder / "Math" / "test-0.parquet").unlink()
    questions = _load(folder, "test")
    scored = MMMU.score(questions, {question.id: "B" for question in questions})
    assert scored.scores == {}
    assert scored.marks["validation_Art_1"] == Mark("B", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": "['red'"}, "row 1: options is no list"),
        ({"options": "[1, 2]"}, "row 1: options is no list of texts"),
        ({"answer": "C"}, "row 1: answer 'C' is none of its options"),
        ({"image_1": None}, "row 1: has no picture"),
        ({"id": "../up"}, "row 1: id '../up' is no plain name"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _write(tmp_path, {"Art": [_row("Art_1") | change]})
    with pytest.raises(EvalError, match=message):
        _load(tmp_path)


def test_missing_and_double_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no folder of a subject in it, such as Accounting"):
        _load(tmp_path)
    (tmp_path / "Art").mkdir()
    with pytest.raises(EvalError, match=r"Art: no validation-\*.parquet in it"):
        _load(tmp_path)
    _write(tmp_path, {"Art": [_row("Art_1"), _row("Art_1")]})
    with pytest.raises(EvalError, match="row 2: id validation_Art_1 is there twice"):
        _load(tmp_path)
    with pytest.raises(EvalError, match="no file such as Accounting/output.json in it"):
        MMMU.read(tmp_path)
    assert MMMU.needs("validation")[29].path == "Sociology/validation-*.parquet"
    assert len(MMMU.needs("test")) == len(SUBJECTS) == 30


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B!'", None),  # the marks go in a fixed order, so the exclamation mark stays
        ("B'!", "B"),
        ("A or B", "B"),
        ("(A) beats B", "A"),  # brackets hide bare letters
        ("Both (A) and (C) but not (B)", "B"),
        ("b", None),
        ("A: red car", None),
        ("the green", None),  # five words or fewer are not compared with the options
        ("I think it must be Green or the RED car", "A"),
        ("", None),
    ],
)
def test_choices_are_read_as_officially(response: str, letter: str | None) -> None:
    assert parse_choice(response, CARS) == letter


@pytest.mark.parametrize(
    ("response", "forms"),
    [
        ("36 watts", {"36 watts", 36.0}),
        ("$1,000.50", {"$1,000.50", 1000.0, 0.5}),
        ("12,500", {12500.0, 500.0}),
        ("The answer is 3.14159", {3.14}),
        ("x = 1\ny = 2", {2.0}),  # an equation counts in the last line only
        ("It is 3\nso it is 4", {3.0, 4.0}),
        ("The answer is", {"is"}),
        ("it is so \nnothing", {"so"}),  # nothing stands behind "so ", which gives way to "is "
        (".5", {5.0}),  # a period at either end is stripped
        ("a", {" a", "a "}),
        ("1e3", {1000.0, 3.0}),
        ("", {""}),
    ],
)
def test_open_answers_are_read_as_officially(response: str, forms: set[str | float]) -> None:
    assert parse_open(response) == forms


def test_open_answers_are_compared_as_officially() -> None:
    assert open_correct("30", parse_open("about 30 of them"))
    assert open_correct(["1/2", "0.5"], parse_open("0.50"))
    assert open_correct("watt", parse_open("36 Watts"))
    assert not open_correct("a", parse_open("banana"))
    assert not open_correct("-5", parse_open("minus 5"))
    assert normalised("nan") != normalised("nan")  # a number that equals nothing


def test_random_options_are_those_of_the_official_seed() -> None:
    draw = official_draw()
    assert [draw("ABCD") for _ in range(4)] == ["A", "A", "C", "B"]


def test_parsed_answers_are_compared_as_they_stand(folder: Path) -> None:
    path = folder / "answers.json"
    found = {"validation_Art_1": "B", "validation_Math_1": "(A)", "validation_Math_2": "It is 4."}
    path.write_text(json.dumps(found), encoding="utf-8")
    scored = MMMU.score(_load(folder), MMMU.read(path))
    assert scored.marks["validation_Art_1"] == Mark("B", 1.0)
    assert scored.marks["validation_Math_1"] == Mark(None, 0.0)  # a parser would have read A
    assert scored.marks["validation_Math_2"].score == 1.0


def test_one_output_file_of_a_subject(folder: Path) -> None:
    path = folder / "output.json"
    path.write_text(json.dumps([{"id": "validation_Math_1", "response": "(A)"}]), encoding="utf-8")
    scored = MMMU.score(_load(folder), MMMU.read(path))
    assert scored.marks == {"validation_Math_1": Mark("A", 1.0)}
