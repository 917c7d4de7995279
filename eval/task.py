"""One evaluation, from adapter folders and official files to results.

`ask` (`asking.py`) streams answers to disk, `assemble` scores what lies there, without a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.asking import ask
from eval.benchmark import Benchmark, Question
from eval.errors import EvalError
from eval.leaks import LeakCheck
from eval.results import Result, said
from eval.settings import Settings, load_questions
from eval.stream import Line, head_of, read


def evaluate(settings: Settings) -> Result:
    """The result of one adapter, or of the untouched base."""
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        benchmark, questions = load_questions(settings, parts)
        ask(settings, benchmark, questions, parts)
        (result,) = assemble(benchmark, questions, parts).values()
        return result


def assemble(benchmark: Benchmark, questions: Sequence[Question], parts: Path) -> dict[str, Result]:
    """The results by column, from the answers of all processes."""
    head = head_of(parts)
    lines = {(line.column, line.id): line for line in read(parts)}
    check = LeakCheck(questions)
    results = {}
    for label, told in head["columns"].items():
        missing = [question.id for question in questions if (label, question.id) not in lines]
        if missing:
            raise EvalError(
                f"{parts}: {len(missing)} of {len(questions)} answers of {label} are missing (the first is "
                f"{missing[0]}); run the same command again to ask for the rest"
            )
        own = {question.id: lines[label, question.id] for question in questions}
        leaks = check.of(Path(told["adapter"]) if told["adapter"] else None)
        results[label] = _result(benchmark, questions, own, {**head, "column": told, "leaks": leaks})
    return results


def _result(
    benchmark: Benchmark, questions: Sequence[Question], lines: Mapping[str, Line], head: Mapping[str, Any]
) -> Result:
    """Scores the answers of one column."""
    options = {question.id: question.options for question in questions}
    texts = {key: said(line.prediction, options[key]) for key, line in lines.items()}
    scored = benchmark.score(questions, texts)
    predictions = {}
    for question in questions:
        mark, made = scored.marks.get(question.id), lines[question.id].prediction
        predictions[question.id] = replace(
            made,
            gold=question.gold,
            option=mark.read if mark is not None and isinstance(mark.read, int) else made.option,
            read=None if mark is None or isinstance(mark.read, int) else mark.read,
            score=None if mark is None else mark.score,
        )
    own = head["column"]
    checks = {
        "truncated": sum(line.cut for line in lines.values()),
        "unreadable_pictures": sum(line.unreadable for line in lines.values()),
        "pictures_left_out": sum(
            len(question.images) > 1 and "images" not in own["modalities"] for question in questions
        ),
        "leaks": head["leaks"],
    }
    told = {**head["settings"], **{key: value for key, value in own.items() if key != "digests"}}
    return Result(
        scores=scored.figures,
        predictions=predictions,
        settings={**told, "benchmark": benchmark.name, "truncated": checks["truncated"]},
        versions=head["versions"],
        digests={**head["digests"], **own["digests"]},
        checks=checks,
    )


def texts_of(result: Result, questions: Sequence[Question]) -> dict[str, str]:
    """The answers of a result as texts."""
    return {
        question.id: said(result.predictions[question.id], question.options)
        for question in questions
        if question.id in result.predictions
    }
