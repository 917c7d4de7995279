"""GQA, testdev balanced: questions about scenes with one right word or phrase each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import Final, add_answer, check_present, llava_texts, refuse_none
from eval.benchmark import SHORT, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import ANEW, Row, read_object, read_rows, row_of
from eval.resampling import score_of_kinds
from eval.results import write_text
from eval.scorers import gqa
from eval.scores import Mark, Score, Scored

QUESTIONS = "testdev_balanced_questions.json"
GROUPS = {
    "Accuracy / structural type": "structural",
    "Accuracy / semantic type": "semantic",
    "Accuracy / steps number": "steps",
    "Accuracy / words number": "words",
}
"""The official tables, and the fact of a question that each is by."""


def needs(split: str) -> list[Needed]:
    """The questions and the pictures."""
    return [
        Needed(QUESTIONS, "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip"),
        Needed("images", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),
    ]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The balanced questions, which alone count."""
    path = folder / QUESTIONS
    rows = {key: row_of(value, f"{path}: question {key}") for key, value in read_object(path).items()}
    questions = [_question(folder, key, row) for key, row in rows.items() if row.any("isBalanced")]
    if not questions:
        raise EvalError(f"{path}: holds no balanced questions; fetch the file again")
    check_present("gqa", (question.images[0] for question in questions))
    return questions


def _question(folder: Path, key: str, row: Row) -> Question:
    types = row_of(row.any("types"), f"{row.where}, types")
    groups = row_of(row.any("groups"), f"{row.where}, groups")
    steps = [(step.text("operation"), str(step.any("argument"))) for step in row.rows("semantic")]
    group = groups.any("global")
    if not isinstance(group, str | None):
        raise EvalError(f"{groups.where}: global is {group!r}, not a text or null; fetch the file again")
    return Question(
        id=key,
        prompt=f"{row.text('question')}\n{SHORT}",
        images=(folder / "images" / f"{row.id('imageId')}.jpg",),
        gold=row.text("answer"),
        facts={
            "structural": types.text("structural"),
            "semantic": types.text("semantic"),
            "steps": gqa.steps(steps),
            "words": gqa.words(row.text("question")),
            "group": group,
        },
    )


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The figures that the official script prints from the questions alone."""
    # As in that script, predictions for other questions, such as the unbalanced ones, are passed over.
    answers = {question.id: answers[question.id] for question in questions if question.id in answers}
    check_complete(BENCHMARK, questions, answers)
    read = {question.id: _converted(answers[question.id]) for question in questions}
    marks = {
        one.id: Mark(read[one.id] if read[one.id].strip() else None, float(read[one.id] == one.gold))
        for one in questions
    }

    def right(some: Sequence[Question]) -> Score:
        return Score.of(sum(marks[question.id].score == 1 for question in some), len(some))

    query = [question for question in questions if question.facts["structural"] == "query"]
    binary = [question for question in questions if question.facts["structural"] != "query"]
    scores = {"Accuracy": right(questions), "Binary": right(binary), "Open": right(query)}
    official: dict[str, Any] = {name: _percent(value) for name, value in scores.items()}
    grouped = [
        (one.facts["group"], one.gold, read[one.id]) for one in questions if one.facts["group"] is not None
    ]
    spread = gqa.Spread(grouped)
    scores["Distribution"] = score_of_kinds(spread.distribution, spread.counts, scale=1)
    # Two zeros stand where the script, as LLaVA runs it, misses its file of choices.
    official |= {"Validity": 0.0, "Plausibility": 0.0}
    official["Distribution"] = round(scores["Distribution"].value or 0.0, 2)
    for table, fact in GROUPS.items():
        found = _table(questions, fact, right)
        scores |= {f"{table}: {kind}": value for kind, value in found.items()}
        official[table] = {kind: [_percent(value), value.count] for kind, value in found.items()}
    return Scored(scores, marks, {"official": official})


def _converted(text: str) -> str:
    """The prediction that an answer is; one of an official file stands as it is."""
    return text if isinstance(text, Final) else gqa.prediction(text)


def _table(
    questions: Sequence[Question], fact: str, right: Callable[[Sequence[Question]], Score]
) -> dict[str, Score]:
    kinds = sorted({question.facts[fact] for question in questions})
    return {str(kind): right([one for one in questions if one.facts[fact] == kind]) for kind in kinds}


def _percent(value: Score) -> float:
    """As the script prints it; the mean of nothing is 0 there."""
    return round(100 * (value.value or 0.0), 2)


def read(path: Path) -> dict[str, str]:
    """The predictions of the official file, or the texts in LLaVA's answer lines."""
    if path.suffix == ".jsonl":
        return llava_texts(path)
    answers: dict[str, str] = {}
    for row in read_rows(path, ANEW):
        add_answer(answers, row.id("questionId"), Final(row.text("prediction")), row.where)
    refuse_none(path, answers)
    return answers


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The official file of predictions, converted as LLaVA does."""
    rows = [{"questionId": one.id, "prediction": _converted(answers[one.id])} for one in questions]
    write_text(path, json.dumps(rows, ensure_ascii=False) + "\n")


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    version=1,
    rule="GQA's eval.py on answers converted by LLaVA's convert_gqa_for_eval.py",
    splits=("testdev_balanced",),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=128,
    sizes={"testdev_balanced": 12578},
    published=(
        Published("LLaVA-1.5-7B", "Accuracy", 62.0, "LLaVA MODEL_ZOO"),
        Published("LLaVA-1.5-13B", "Accuracy", 63.3, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "Accuracy", 64.2, "LLaVA MODEL_ZOO"),
        Published("TinyLLaVA-Phi-2-SigLIP-3.1B", "Accuracy", 62.1, "TinyLLaVA_Factory README"),
    ),
)
