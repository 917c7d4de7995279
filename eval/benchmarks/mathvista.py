"""MathVista: mathematics in pictures, from `testmini.json` and `images/`.

The official extraction asks a language model for the answer in a longer response. Here it is asked of
none: such a response is normalised as it stands, and `notes` say how many there were. A result file of the
official code is read with the extractions it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import Final, check_present, refuse_none
from eval.benchmark import Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import ANEW, Row, read_object, row_of
from eval.results import write_text
from eval.scorers.mathvista import KEYS, MULTI_CHOICE, Problem, names_choice, normalise, report, shortcut
from eval.scores import Mark, Score, Scored, unscored

SOURCE = "https://huggingface.co/datasets/AI4Math/MathVista"
HIDDEN = ""  # stands where the answers of the test split would
ANSWER_TYPES = ("text", "integer", "float", "list")


def needs(split: str) -> list[Needed]:
    """The problems and the pictures."""
    return [Needed(f"{split}.json", SOURCE), Needed("images", f"{SOURCE}, images.zip")]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The problems in the order of the file."""
    path = folder / f"{split}.json"
    rows = {pid: row_of(value, f"{path}: problem {pid}") for pid, value in read_object(path).items()}
    questions = [_question(pid, row, folder, split == "test") for pid, row in rows.items()]
    if not questions:
        raise EvalError(f"{path}: holds no problem; fetch the file again")
    check_present("mathvista", [question.images[0] for question in questions])
    return questions


def _question(pid: str, row: Row, folder: Path, hidden: bool) -> Question:
    _check(row)
    problem = _problem(row.values)
    letters = tuple(chr(ord("A") + place) for place in range(len(problem.choices or ())))
    return Question(
        pid,
        row.text("query"),
        (folder / row.text("image"),),
        letters if problem.question_type == MULTI_CHOICE else (),
        (row.text("answer", HIDDEN) or None) if hidden else row.text("answer"),
        {"row": dict(row.values), "keys": _keys(row), "choices": problem.choices},
    )


def _problem(row: Mapping[str, Any]) -> Problem:
    return Problem(row["question_type"], row["answer_type"], row["choices"], row["precision"])


def _check(row: Row) -> None:
    """Refuse a problem that could not be scored."""
    kind, answer = row.text("question_type"), row.text("answer_type")
    choices = None if row.any("choices") is None else row.texts("choices")
    if kind not in (MULTI_CHOICE, "free_form") or answer not in ANSWER_TYPES:
        raise EvalError(f"{row.where}: is of the unknown type {kind}, {answer}; fetch the file again")
    if kind == MULTI_CHOICE and not choices:
        raise EvalError(f"{row.where}: is multi_choice without choices; fetch the file again")
    precision = row.any("precision")
    if answer == "float" and kind != MULTI_CHOICE and not isinstance(precision, int | float):
        raise EvalError(f"{row.where}: is a float without a precision; fetch the file again")


def _keys(row: Row) -> dict[str, Any]:
    """What the scores are broken down by: two columns, and the metadata."""
    inner = row_of(row.any("metadata"), f"{row.where}, metadata")
    keys: dict[str, Any] = {}
    for key in KEYS:
        if key == "skills":
            keys[key] = inner.texts(key)
        else:
            keys[key] = (row if key in row.values else inner).text(key)
    return keys


def _prediction(text: str, problem: Problem) -> str | None:
    extraction = shortcut(text, problem)
    return normalise(text if extraction is None else extraction, problem)


def _unclear(text: str, problem: Problem) -> bool:
    """Whether the official code would ask a model for an answer that is not plain to see."""
    if isinstance(text, Final) or shortcut(text, problem) is not None:
        return False
    if problem.question_type == MULTI_CHOICE:
        return not names_choice(text, problem)
    return problem.answer_type in ("text", "list") or normalise(text, problem) is None


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The average, and the share of each value of the metadata, over the problems that were answered."""
    answered = [question for question in questions if question.id in answers]
    check_complete(BENCHMARK, answered, answers)
    problems = {question.id: _problem(question.facts["row"]) for question in answered}
    read = {key: _prediction(answers[key], problem) for key, problem in problems.items()}
    if answered and all(question.gold is None for question in answered):
        return unscored(read)
    right = {question.id: read[question.id] == question.gold for question in answered}
    table = report([(question.facts["keys"], right[question.id]) for question in answered])
    unclear = [key for key, problem in problems.items() if _unclear(answers[key], problem)]
    return Scored(
        _named(table),
        {key: Mark(text, float(right[key])) for key, text in read.items()},
        {"unclear without a model": unclear},
    )


def _named(table: Mapping[str, Mapping[str, Score]]) -> dict[str, Score]:
    """One name for each score, since some values occur under two keys."""
    scores = {"average": table["average"]["accuracy"]}
    for key in KEYS:
        scores |= {f"{key}: {value}": score for value, score in table[key].items()}
    return scores


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The official result file: each problem with response, extraction, prediction and judgement."""
    content = {}
    for question in questions:
        if question.id in answers:
            text, problem = answers[question.id], _problem(question.facts["row"])
            extraction = shortcut(text, problem)
            prediction = _prediction(text, problem)
            content[question.id] = {
                **question.facts["row"],
                "response": text,
                "extraction": text if extraction is None else extraction,
                "prediction": prediction,
                "true_false": None if question.gold is None else prediction == question.gold,
            }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, str]:
    """The extractions of a result file, or the responses where none was tried.

    An extraction may be a number or a list; the official code takes it as Python writes it.
    """
    answers = {}
    for pid, value in read_object(path, ANEW).items():
        row = row_of(value, f"{path}: problem {pid}", ANEW)
        tried = row.values.get("extraction")
        answers[pid] = row.text("response") if tried is None else Final(str(tried))
    refuse_none(path, answers)
    return answers


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista",
    version=1,
    rule="MathVista calculate_score.py, extraction without a language model",
    splits=("testmini", "test"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=1024,
    sizes={"testmini": 1000, "test": 5141},
    published=(
        Published("LLaVA-1.5-13B", "average", 27.6, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "average", 34.6, "LLaVA MODEL_ZOO"),
        Published("LLaVA-LLaMA-2-13B", "average", 26.1, "MathVista, results"),
    ),
)
