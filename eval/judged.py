"""Benchmarks whose answers a judge grades: reviews, how they are made, kept and scored.

A benchmark file has `JUDGED = Judged(...)` beside its `BENCHMARK`. Without reviews such a benchmark has no
scores. Knows no benchmark and no network.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.answer_files import check_own
from eval.benchmark import Answers, Question, find
from eval.errors import EvalError
from eval.judge import Judge, Request
from eval.scores import Mark, Scored


@dataclass(frozen=True)
class Review:
    """What a judge said of one answer.

    Args:
        model: The judge's name.
        content: Its reply, as the official review file keeps it.
        values: What was read from it: a grade, or the numbers of the reference and of the answer.
        swapped: Whether the judge saw the answer before the reference.
    """

    model: str
    content: str
    values: tuple[float, ...]
    swapped: bool = False


Reviews = Mapping[str, Sequence[Review]]
"""Question id -> its reviews, run by run; where both orders were judged, each run has two."""


@dataclass(frozen=True)
class Setting:
    """How often the judge is asked.

    Args:
        runs: Times over; the scores are means over them.
        swapped: Ask each time in both orders, because judges prefer the first answer. Pairs only.
    """

    runs: int = 1
    swapped: bool = False


@dataclass(frozen=True)
class Judged:
    """The judged half of a benchmark.

    Args:
        judge: The judge of the published numbers; another one gives other numbers.
        pairs: Whether two answers are compared, in a review file for each run and order.
        requests: (questions, answers, setting) -> what a judge is asked at first, e.g. for an estimate.
        review: (questions, answers, judge, setting) -> reviews.
        score: (questions, answers, reviews) -> scores.
        read: The reviews of an official review or grade file, or of a folder with one for each run.
        write: (path, questions, reviews) writes it.
        swaps: Whether answers may be judged in both orders.
    """

    judge: str
    pairs: bool
    requests: Callable[[Sequence[Question], Answers, Setting], list[Request]]
    review: Callable[[Sequence[Question], Answers, Judge, Setting], dict[str, list[Review]]]
    score: Callable[[Sequence[Question], Answers, Reviews], Scored]
    read: Callable[[Path], dict[str, list[Review]]]
    write: Callable[[Path, Sequence[Question], Reviews], None]
    swaps: bool


def judged(name: str) -> Judged | None:
    """The judged half of the benchmark of a name; None where no judge is needed."""
    find(name)  # refuses a name that is none
    found: Judged | None = getattr(importlib.import_module(f"eval.benchmarks.{name}"), "JUDGED", None)
    return found


def unjudged(benchmark: str, questions: Sequence[Question], answers: Answers) -> Scored:
    """What can be said of answers that no judge has seen: nothing but which are empty."""
    check_own(benchmark, questions, answers)
    marks = {id_: Mark(text or None, None) for id_, text in answers.items()}
    return Scored(
        scores={},
        marks=marks,
        notes={"judged": "not judged: no scores without a judge's reviews of these answers"},
    )


def check_reviews(
    benchmark: str, questions: Sequence[Question], reviews: Reviews, whole: bool = True
) -> tuple[list[Question], int]:
    """The questions with reviews, and how many reviews each has; refuses reviews that do not fit together."""
    known = {question.id for question in questions}
    if strange := [id_ for id_ in reviews if id_ not in known]:
        raise EvalError(
            f"{benchmark}: {len(strange)} reviews belong to no question (the first is {strange[0]!r}); "
            "name the data they were made on"
        )
    missing = [question.id for question in questions if question.id not in reviews]
    if not reviews or (whole and missing):
        raise EvalError(
            f"{benchmark}: {len(missing)} of {len(questions)} questions have no review (the first is "
            f"{missing[0] if missing else 'none'}); judge the rest"
        )
    counts = {id_: len(found) for id_, found in reviews.items()}
    first = next(iter(counts.values()))
    if uneven := [id_ for id_, count in counts.items() if count != first]:
        raise EvalError(
            f"{benchmark}: question {uneven[0]!r} has {counts[uneven[0]]} reviews where others have {first}; "
            "judge all of them equally often"
        )
    return [question for question in questions if question.id in reviews], first


def fact(question: Question, name: str, benchmark: str, file: str) -> Any:
    """A part of the judge's message that comes from a file of the user; says which where it is missing."""
    if name not in question.facts:
        raise EvalError(
            f"{benchmark}: judging needs {file} in the data folder; `python -m eval prepare {benchmark}` "
            "says where it is published"
        )
    return question.facts[name]


def text_digest(text: str) -> str:
    """SHA-256 of a text, kept with the scores that depend on it."""
    return hashlib.sha256(text.encode()).hexdigest()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population deviation."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
