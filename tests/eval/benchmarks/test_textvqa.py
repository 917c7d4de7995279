"""TextVQA: loading with and without the words of the OCR, prompts, the rule, LLaVA's answer lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.scorers.textvqa import accuracy, question_key
from tests.eval.benchmarks.short_answer_files import SHORT, edit, load, picture, write_json

TEXTVQA = find("textvqa")
QUESTIONS, OCR = "TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"


def row(image: str, question: str, answers: list[str]) -> dict[str, Any]:
    return {"image_id": image, "question": question, "answers": answers}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions about two pictures."""
    rows = [
        row("aa", "what brand is it?", ["Nokia"] * 2 + ["the nokia."] * 2 + ["samsung"] * 6),
        row("aa", "What does IT say?", ["10,000"] * 10),
        row("bb", "what brand is it?", ["none"] * 3 + ["ok"] * 7),
    ]
    write_json(tmp_path / QUESTIONS, {"data": rows})
    words = [{"image_id": "aa", "ocr_tokens": ["NOKIA", "10,000"]}, {"image_id": "bb", "ocr_tokens": []}]
    write_json(tmp_path / OCR, {"data": words})
    for name in ("aa", "bb"):
        picture(tmp_path / "train_images" / f"{name}.jpg")
    return tmp_path


IDS = ["aa: what brand is it?", "aa: what does it say?", "bb: what brand is it?"]
ANSWERS = dict(zip(IDS, ["Nokia", "10000", "0"], strict=True))


def test_prompts_with_the_words_of_the_ocr(folder: Path) -> None:
    questions = load("textvqa", folder)
    assert [question.id for question in questions] == IDS
    assert [question.prompt for question in questions] == [
        f"What brand is it?\nReference OCR token: NOKIA, 10,000\n{SHORT}",
        f"What does it say?\nReference OCR token: NOKIA, 10,000\n{SHORT}",
        f"What brand is it?\nReference OCR token: \n{SHORT}",
    ]
    assert questions[2].images == (folder / "train_images" / "bb.jpg",)
    assert [question_key(question.prompt) for question in questions] == [
        key.partition(": ")[2] for key in IDS
    ]


def test_prompts_without_them(folder: Path) -> None:
    (folder / OCR).unlink()
    assert load("textvqa", folder, "val-no-ocr")[0].prompt == f"What brand is it?\n{SHORT}"


def test_words_beside_the_questions_are_taken(folder: Path) -> None:
    (folder / OCR).unlink()
    rows = [{**row("aa", "q?", ["a"] * 10), "ocr_tokens": ["X", "Y"]}]
    write_json(folder / QUESTIONS, {"data": rows})
    assert load("textvqa", folder)[0].prompt == f"Q?\nReference OCR token: X, Y\n{SHORT}"


def test_scores(folder: Path) -> None:
    scored = TEXTVQA.score(load("textvqa", folder), ANSWERS)
    assert scored.scores["Accuracy"].value == pytest.approx((1 + 1 + 0.9) / 3)  # 4, 10 and 3 humans agree
    assert scored.notes["official"] == {"Samples": 3, "Accuracy": 96.67}
    assert [mark.read for mark in scored.marks.values()] == ["nokia", "10000", "0"]
    assert scored.scores["Accuracy"].count == 3


def test_some_answers_score_those_alone(folder: Path) -> None:
    scored = TEXTVQA.score(load("textvqa", folder), {IDS[2]: "the."})
    assert scored.scores["Accuracy"].value == 0.0
    assert scored.unparsable == 1 and scored.marks[IDS[2]].read is None


def test_the_last_of_two_equal_questions_gives_the_answers(folder: Path) -> None:
    rows = [row("aa", "Which?", ["old"] * 10), row("aa", "which?", ["new"] * 10)]
    write_json(folder / QUESTIONS, {"data": rows})
    questions = load("textvqa", folder)
    assert [question.id for question in questions] == ["aa: which?", "aa: which? #2"]
    TEXTVQA.write(folder / "answers.jsonl", questions, {"aa: which?": "old", "aa: which? #2": "new"})
    answers = TEXTVQA.read(folder / "answers.jsonl")
    assert answers == {"aa: which?": "old", "aa: which? #2": "new"}
    assert TEXTVQA.score(questions, answers).scores["Accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("OCR tokens: A, B. Question: What IS\nit? Short answer:", "what is\nit?"),
        ("OCR tokens: A Question: a Short answer: Question: b Short answer:", "a"),
        ("Which?\nReference OCR token: \nAnswer", "which?"),
        ("Reference OCR token: A\nWhich?\nAnswer", "which?"),
        ("Reference OCR token:A\nReference OCR token: Which?\nAnswer", "reference ocr token: which?"),
        ("Which?\nAnswer", "which?"),
        ("Reference OCR token: A\nWhich?", "reference ocr token: a"),  # two lines: always the first
    ],
)
def test_question_of_a_prompt(prompt: str, key: str) -> None:
    assert question_key(prompt) == key


@pytest.mark.parametrize(
    "prompt", ["Which?", "a\nb\nc", "a\nReference OCR token: b\nc\nd", "OCR tokens: A Question: b", ""]
)
def test_a_prompt_without_question_is_refused(prompt: str) -> None:
    with pytest.raises(EvalError, match="is (no|a) prompt .* ask again"):
        question_key(prompt)


def test_both_sides_are_always_normalised() -> None:
    assert accuracy("NOKIA.", ["the Nokia"] * 10) == ("nokia", 1.0)
    with pytest.raises(EvalError, match="needs 10 human answers, got 9"):
        accuracy("a", ["a"] * 9)


def test_answer_lines(folder: Path) -> None:
    questions = load("textvqa", folder)
    TEXTVQA.write(folder / "answers.jsonl", questions, ANSWERS)
    assert TEXTVQA.read(folder / "answers.jsonl") == ANSWERS
    first = (folder / "answers.jsonl").read_text().splitlines()[0]
    assert first.startswith(
        '{"question_id": "aa", "prompt": "What brand is it?\\nReference OCR token: NOKIA, 10,000\\n'
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (QUESTIONS, '"Nokia", ', "", "data 1: 9 answers, not 10; fetch"),
        (
            QUESTIONS,
            '"image_id": "aa"',
            '"image_id": "cc"',
            "OCR_v0.2_val.json: has nothing about picture cc",
        ),
        (QUESTIONS, '"question"', '"q"', "data 1: has no 'question'"),
        (QUESTIONS, '"data"', '"rows"', "0.5.1_val.json: has no 'data'"),
        (OCR, '"ocr_tokens"', '"tokens"', "OCR_v0.2_val.json, data 1: has no 'ocr_tokens'"),
    ],
)
def test_broken_files(folder: Path, file: str, old: str, new: str, message: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(EvalError, match=message):
        load("textvqa", folder)


def test_missing_and_foreign_things_are_named(folder: Path) -> None:
    (folder / "train_images" / "bb.jpg").unlink()
    with pytest.raises(EvalError, match="textvqa: 1 of 2 pictures are missing .the first is .*bb.jpg"):
        load("textvqa", folder)
    with pytest.raises(EvalError, match="textvqa: 1 answers belong to no question .the first is 'x'."):
        TEXTVQA.score([], {"x": "a"})
    write_json(folder / QUESTIONS, {"data": []})
    with pytest.raises(EvalError, match="holds no questions"):
        load("textvqa", folder)
    (folder / "answers.jsonl").write_text('{"question_id": "aa", "prompt": "one line", "text": "a"}\n')
    with pytest.raises(
        EvalError, match="answers.jsonl: line 1: 'one line' is no prompt of TextVQA in 1 lines"
    ):
        TEXTVQA.read(folder / "answers.jsonl")


def test_the_list_for_evalai_names_questions_by_number(folder: Path) -> None:
    content = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
    for number, one in enumerate(content["data"], 34602):
        one["question_id"] = number
    write_json(folder / QUESTIONS, content)
    rows = [{"question_id": 34602 + place, "answer": text} for place, text in enumerate(ANSWERS.values())]
    write_json(folder / "answers.json", rows)
    questions = load("textvqa", folder)
    answers = TEXTVQA.read(folder / "answers.json")
    assert TEXTVQA.score(questions, answers) == TEXTVQA.score(questions, ANSWERS)
