"""Vicuna-80: loading, the rule of a category, messages, scores, old review files, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.judge import FunctionJudge
from eval.judged import Setting
from tests.eval.benchmarks.judged_files import ScriptedJudge, judged_part, load, vicuna80
from tests.eval.benchmarks.short_answer_files import edit, write_jsonl

BENCH = find("vicuna80")
JUDGED = judged_part("vicuna80")
ANSWERS = {"1": "In a bed.", "2": "for", "3": "Then."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vicuna80(tmp_path)
    return tmp_path


def test_questions(folder: Path) -> None:
    found = [(one.id, one.prompt, one.images) for one in load("vicuna80", folder)]
    assert found == [("1", "How to sleep?", ()), ("2", "Write a loop.", ()), ("3", "What if?", ())]


def test_what_the_judge_is_asked(folder: Path) -> None:
    judge = ScriptedJudge(lambda request: "8 9")
    JUDGED.review(load("vicuna80", folder), ANSWERS, judge, Setting())
    first, second, third = (str(request.messages[1]["content"]) for request in judge.asked)
    assert first == (
        "[Question]\nHow to sleep?\n\n[Assistant 1]\nBaseline 1\n\n[End of Assistant 1]\n\n[Assistant 2]\n"
        "In a bed.\n\n[End of Assistant 2]\n\n[System]\nRule of default.\n\n"
    )
    assert second.endswith("Rule of coding.\n\n")
    assert third.endswith("Rule of default.\n\n")


def test_scores_of_an_old_review_file(folder: Path) -> None:
    lines = [{"question_id": place, "text": "8 9\nx", "score": [8.0, 9.0 - place]} for place in (1, 2, 3)]
    write_jsonl(folder / "review.jsonl", lines)
    questions = load("vicuna80", folder)
    scored = JUDGED.score(questions, ANSWERS, JUDGED.read(folder / "review.jsonl"))
    assert scored.scores["all"].value == pytest.approx(21 / 24)
    assert scored.scores["first_x10"].value == pytest.approx(8.0)
    assert scored.notes["official"] == [{"all": [87.5, 80.0, 70.0]}]
    assert scored.notes["judges"] == ["unknown"]


def test_a_model_of_ours_judges(folder: Path) -> None:
    judge = FunctionJudge("ours", lambda texts: ["10 5" for _ in texts])
    questions = load("vicuna80", folder)
    reviews = JUDGED.review(questions, ANSWERS, judge, Setting())
    assert JUDGED.score(questions, ANSWERS, reviews).scores["all"].value == pytest.approx(0.5)
    BENCH.write(folder / "answers.jsonl", questions, ANSWERS)
    assert BENCH.read(folder / "answers.jsonl") == ANSWERS


def test_a_part_of_the_questions_can_be_judged(folder: Path) -> None:
    questions = load("vicuna80", folder)
    some = {"2": "for"}
    reviews = JUDGED.review(questions, some, ScriptedJudge(lambda request: "8 4"), Setting())
    assert JUDGED.score(questions, some, reviews).scores["all"].count == 1
    with pytest.raises(EvalError, match=r"vicuna80: 3 of 3 questions have no review \(the first is 1\)"):
        JUDGED.score(questions, some, {})


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("question.jsonl", '["Write a loop."]', '["a", "b"]', r"line 2: has 2 turns, not one"),
        ("question.jsonl", '"category": "generic"', '"kind": 1', r"line 1: has no 'category'"),
        (
            "answer_gpt35.jsonl",
            '"question_id": 3',
            '"question_id": 4',
            r"answer_gpt35.jsonl has no answer to 3",
        ),
        ("rule.json", '"default"', '"other"', r"line 1: rule.json has no rule 'default'"),
    ],
)
def test_broken_files(folder: Path, file: str, old: str, new: str, said: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(EvalError, match=said):
        load("vicuna80", folder)
