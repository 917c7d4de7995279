"""VQAv2: loading of scored and unscored splits, prompts, scores worked out by hand, both official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.scorers.vqa import lmms, official
from tests.eval.benchmarks.short_answer_files import SHORT, edit, load, picture, write_json, write_jsonl

VQAV2 = find("vqav2")
VAL = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEST = "v2_OpenEnded_mscoco_test2015_questions.json"
TEST_DEV = "v2_OpenEnded_mscoco_test-dev2015_questions.json"


def questions_file(path: Path, *rows: tuple[int, int, str]) -> None:
    rows_of = [{"question_id": key, "image_id": image, "question": text} for key, image, text in rows]
    write_json(path, {"info": {}, "task_type": "Open-Ended", "questions": rows_of})


def annotation(key: int, kind: str, begin: str, answers: list[str]) -> dict[str, Any]:
    return {
        "question_id": key,
        "image_id": 42,
        "answer_type": kind,
        "question_type": begin,
        "multiple_choice_answer": answers[0],
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
            for place, answer in enumerate(answers)
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four questions of val; of test three, one of them in test-dev."""
    questions_file(
        tmp_path / VAL,
        (42000, 42, "Is it red?"),
        (42001, 42, "How many?"),
        (42002, 42, "What is it?"),
        (42003, 42, "What color?"),
    )
    rows = [
        annotation(42000, "yes/no", "is it", ["yes"] * 10),
        annotation(42001, "number", "how many", ["2"] * 8 + ["two", "3"]),
        annotation(42002, "other", "what is", ["The dog."] * 2 + ["cat"] * 8),
        annotation(42003, "other", "what", ["it's red"] * 10),
    ]
    write_json(tmp_path / ANNOTATIONS, {"annotations": rows})
    questions_file(tmp_path / TEST, (7000, 7, "Who?"), (7001, 7, "Where?"), (8000, 8, "Why?"))
    questions_file(tmp_path / TEST_DEV, (7001, 7, "Where?"))
    picture(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    for number in (7, 8):
        picture(tmp_path / "test2015" / f"COCO_test2015_{number:012d}.jpg")
    return tmp_path


ANSWERS = {"42000": "Yes", "42001": "Two.", "42002": "dog", "42003": "It's red"}


def test_questions(folder: Path) -> None:
    questions = load("vqav2", folder)
    assert [question.id for question in questions] == [*ANSWERS]
    assert questions[0].prompt == f"Is it red?\n{SHORT}"
    assert questions[0].images == (folder / "val2014" / "COCO_val2014_000000000042.jpg",)
    assert questions[2].gold == ("The dog.",) * 2 + ("cat",) * 8


def test_scores(folder: Path) -> None:
    scored = VQAV2.score(load("vqav2", folder), ANSWERS)
    values = {name: score.value for name, score in scored.scores.items()}
    # two humans of ten say dog; M4C makes "it 's red" of 42003, where identical answers stay as they are
    expected = {
        **{"Overall": 2.6 / 4, "yes/no": 1.0, "number": 1.0, "other": 0.3},
        **{"question type: how many": 1.0, "question type: is it": 1.0},
        **{"question type: what": 0.0, "question type: what is": 0.6},
    }
    assert values == pytest.approx(expected)
    assert [*values] == [*expected]
    assert scored.notes["official"]["overall"] == 65.0
    assert scored.notes["official"]["perAnswerType"] == {"yes/no": 100.0, "number": 100.0, "other": 30.0}
    assert scored.notes["official"]["perQuestionType"]["what is"] == 60.0
    # as they are, "Yes" is no "yes" and "It's red" no "it's red"
    assert scored.notes["overall of answers that M4C did not normalise"] == 40.0
    assert scored.marks["42003"].read == "it 's red" and scored.unparsable == 0


@pytest.mark.parametrize(
    ("answer", "humans", "expected"),
    [
        ("cat", ["cat"] * 1 + ["dog"] * 9, 0.3),
        ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),
        ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
        ("Cat", ["cat"] * 10, 0.0),  # all the same: compared as they stand
        ("cat\n", [" cat"] * 10, 1.0),  # but for blanks around
        ("pizza", ["Pizza\n"] * 5 + ["Pizza"] * 5, 0.0),  # which are gone when "all the same" is looked at
        ("Cat", ["cat"] * 9 + ["dog"], 1.0),
        ("", ["the"] * 3 + ["dog"] * 7, 0.9),  # an article alone is nothing
    ],
)
def test_official_accuracy(answer: str, humans: list[str], expected: float) -> None:
    assert official(answer, humans).accuracy == pytest.approx(expected)


def test_lmms_always_normalises() -> None:
    assert lmms("A cat.", ["cat"] * 10) == ("cat", 1.0)


def test_result_file_of_val(folder: Path, tmp_path: Path) -> None:
    questions, path = load("vqav2", folder), tmp_path / "results.json"
    VQAV2.write(path, questions, ANSWERS)
    assert json.loads(path.read_text())[2:] == [
        {"question_id": 42002, "answer": "dog"},
        {"question_id": 42003, "answer": "it 's red"},
    ]
    assert VQAV2.score(questions, VQAV2.read(path)).scores == VQAV2.score(questions, ANSWERS).scores


@pytest.mark.parametrize(("split", "asked"), [("test-dev", ["7001"]), ("test", ["7000", "7001", "8000"])])
def test_upload_holds_every_test_question(folder: Path, tmp_path: Path, split: str, asked: list[str]) -> None:
    questions, path = load("vqav2", folder, split), tmp_path / "upload.json"
    assert [question.id for question in questions] == asked
    assert questions[0].images[0].parent == folder / "test2015"
    answers = {"7001": "The red one."}
    VQAV2.write(path, questions, answers)
    assert json.loads(path.read_text()) == [
        {"question_id": 7000, "answer": ""},
        {"question_id": 7001, "answer": "red 1"},
        {"question_id": 8000, "answer": ""},
    ]
    scored = VQAV2.score(questions, answers)
    assert scored.scores == {} and scored.unparsable == 0
    assert scored.marks["7001"].read == "red 1" and scored.marks["7001"].score is None


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (VAL, '"question_id": 42001', '"question_id": 42000', "questions 2: a second question 42000; fetch"),
        (
            VAL,
            '"question_id": 42001',
            '"question_id": 5',
            "annotations.json: has no answers to question 5; fetch",
        ),
        (VAL, '"image_id": 42', '"image_id": "42"', "questions 1: image_id is '42', not a whole number"),
        (VAL, '"questions"', '"rows"', "val2014_questions.json: has no 'questions'"),
        (
            ANNOTATIONS,
            '"answer_id": 2',
            '"answer_id": 1',
            "annotations 1: its answers are too few or share an ans",
        ),
        (ANNOTATIONS, '"answer_type"', '"type"', "annotations 1: has no 'answer_type'"),
    ],
)
def test_broken_files(folder: Path, file: str, old: str, new: str, message: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(EvalError, match=message):
        load("vqav2", folder)


def test_missing_things_are_named(folder: Path) -> None:
    (folder / "test2015" / "COCO_test2015_000000000008.jpg").unlink()
    with pytest.raises(EvalError, match="vqav2: 1 of 2 pictures are missing .the first is .*00008.jpg"):
        load("vqav2", folder, "test")
    questions_file(folder / VAL, (42000, 42, "Is it red?"))
    with pytest.raises(EvalError, match="val2014_questions.json: lacks 3 questions that are answered"):
        load("vqav2", folder)
    questions_file(folder / VAL)
    with pytest.raises(EvalError, match="holds no questions"):
        load("vqav2", folder)


def test_answers_must_be_complete(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="vqav2: 3 of 4 questions have no answer .the first is 42001."):
        VQAV2.score(load("vqav2", folder), {"42000": "yes"})
    write_json(tmp_path / "twice.json", [{"question_id": 1, "answer": "a"}] * 2)
    with pytest.raises(EvalError, match="item 2: '1' is answered a second time"):
        VQAV2.read(tmp_path / "twice.json")
    questions = load("vqav2", folder, "test-dev")
    questions_file(folder / TEST, (1, 7, "Who?"))
    with pytest.raises(EvalError, match="question 7001 is not among the test questions; fetch"):
        VQAV2.write(tmp_path / "upload.json", questions, {"7001": "a"})


def test_an_official_file_is_scored_as_it_stands(folder: Path) -> None:
    rows = [
        {"question_id": 42000, "answer": "Yes"},  # ten times "yes": nothing is normalised, so wrong
        {"question_id": 42001, "answer": "Two."},
        {"question_id": 42002, "answer": "dog"},
        {"question_id": 42003, "answer": "it 's red"},
    ]
    write_json(folder / "results.json", rows)
    answers = VQAV2.read(folder / "results.json")
    scored = VQAV2.score(load("vqav2", folder), answers)
    assert [scored.marks[str(key)].score for key in (42000, 42001, 42002, 42003)] == pytest.approx(
        [0, 1, 0.6, 0]
    )
    assert [*scored.notes] == ["official"]
    VQAV2.write(folder / "again.json", load("vqav2", folder), answers)
    assert json.loads((folder / "again.json").read_text()) == rows


def test_llavas_answer_lines_are_texts_of_a_model(folder: Path) -> None:
    lines = [{"question_id": int(key), "prompt": "", "text": text} for key, text in ANSWERS.items()]
    write_jsonl(folder / "answers.jsonl", lines)
    answers = VQAV2.read(folder / "answers.jsonl")
    assert VQAV2.score(load("vqav2", folder), answers) == VQAV2.score(load("vqav2", folder), ANSWERS)
