"""`python -m eval score`: scores files of answers by official data, without a model."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from data.scienceqa import Problem, load_problems, load_split
from eval import benchmark as registry
from eval.answer_files import for_scoring
from eval.benchmark import Benchmark, Question
from eval.benchmarks.scienceqa import read_llava, score_llava
from eval.errors import EvalError
from eval.judged import judged
from eval.results import (
    FORMAT,
    Prediction,
    Result,
    check_writable,
    read_predictions,
    read_result,
    said,
    write_text,
)
from eval.scienceqa import score
from eval.scores import Mark, Scored

FIRST = "scienceqa"
"""The benchmark of a file for which none is named."""


def add_score(parser: argparse.ArgumentParser) -> None:
    """The options of `score`."""
    parser.set_defaults(run=run_score)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[NAME] PREDICTIONS",
        help=f"benchmark (default: {FIRST}), and a result file or answers in the official format",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with the official files"
    )
    parser.add_argument(
        "--split",
        help="score exactly this split (default: the first one; of scienceqa every question in the file)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores and every mark there")


def run_score(options: argparse.Namespace) -> None:
    """`score`: scores a file of answers, without a model."""
    name, path = _named(options.words)
    if options.json is not None:
        check_writable(options.json)
    benchmark = registry.find(name)
    if name == FIRST:
        scored = _scienceqa(path, options.data, options.split)
    else:
        scored = scored_file(benchmark, path, options.data, options.split)
    print(scored.figures.table())
    if options.json is not None:
        write_scores(options.json, benchmark, scored)
        print(f"wrote {options.json}")


def _named(words: list[str]) -> tuple[str, Path]:
    """Benchmark and file."""
    if len(words) == 1:
        return FIRST, Path(words[0])
    if len(words) > 2:
        raise EvalError(f"score: {len(words) - 1} files are named; name one, or a folder of them")
    return words[0], Path(words[1])


def scored_file(benchmark: Benchmark, path: Path, data: Path, split: str | None) -> Scored:
    """The scores of a result file, of official answers, or of a judge's reviews."""
    split = benchmark.known(split or benchmark.splits[0])
    with tempfile.TemporaryDirectory() as unpacked, for_scoring():
        questions = benchmark.load(data, split, Path(unpacked))
        half = judged(benchmark.name)
        if half is None or _is_result(path):
            return benchmark.score(questions, answers_of(benchmark, path, questions))
        try:
            reviews = half.read(path)
        except EvalError as error:
            return benchmark.score(questions, _unreviewed(benchmark, path, error))
        return half.score(questions, {}, reviews)


def _unreviewed(benchmark: Benchmark, path: Path, error: EvalError) -> dict[str, str]:
    """The answers in a file without reviews; where it holds none either, what is wrong with its reviews."""
    try:
        return benchmark.read(path)
    except EvalError:
        raise error from None


def answers_of(benchmark: Benchmark, path: Path, questions: list[Question]) -> dict[str, str]:
    """The answers in a result file, or in an official one."""
    if not _is_result(path):
        return benchmark.read(path)
    result = read_result(path)
    asked = result.settings.get("benchmark", benchmark.name)
    if asked != benchmark.name:
        raise EvalError(f"{path}: holds answers to {asked}, not to {benchmark.name}; name a result of it")
    return _of_result(path, result, questions)


def _is_result(path: Path) -> bool:
    """Whether a file is one of `python -m eval NAME`."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(200)


def _of_result(path: Path, result: Result, questions: list[Question]) -> dict[str, str]:
    """The answers in a result file, as text."""
    options = {question.id: question.options for question in questions}
    for key, made in result.predictions.items():
        if made.text is None and made.option is not None and made.option >= len(options.get(key, ())):
            raise EvalError(f"{path}: question {key!r} is not in the data; name the data it was made on")
    return {key: said(made, options.get(key, ())) for key, made in result.predictions.items()}


def _scienceqa(path: Path, data: Path, split: str | None) -> Scored:
    """Options by their index, as ScienceQA's own files have them; LLaVA's answers over a whole split."""
    if path.is_file() and not _is_result(path) and (given := read_llava(path)) is not None:
        return score_llava(path, given, load_split(data, split or "test", scoring=True))
    problems = load_problems(data, scoring=True)
    predictions = with_gold(path, read_predictions(path), problems)
    if split is not None:
        predictions = _of_split(path, data, split, predictions)
    found = score(problems, {pid: made.option for pid, made in predictions.items()})
    marks = {pid: Mark(made.option, float(made.option == made.gold)) for pid, made in predictions.items()}
    return Scored(found.categories, marks)


def _of_split(
    path: Path, data: Path, split: str, predictions: Mapping[str, Prediction]
) -> dict[str, Prediction]:
    """The predictions of one split, which must be complete."""
    pids = [problem.pid for problem in load_split(data, split, scoring=True)]
    if not pids:
        raise EvalError(f"{data}: split {split!r} is empty; name another")
    missing = [pid for pid in pids if pid not in predictions]
    if missing:
        raise EvalError(
            f"{path}: {len(missing)} of {len(pids)} questions of split {split!r} have "
            f"no prediction (the first is {missing[0]}); leave --split out to score those that have one"
        )
    return {pid: predictions[pid] for pid in pids}


def write_scores(path: Path, benchmark: Benchmark, scored: Scored) -> None:
    """Write scores, and what every answer earned, as JSON."""
    content = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "rule": benchmark.rule,
        "scores": {name: asdict(found) for name, found in scored.scores.items()},
        "unparsable": scored.unparsable,
        "notes": dict(scored.notes),
        "marks": {key: asdict(mark) for key, mark in scored.marks.items()},
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def with_gold(
    path: Path, predictions: Mapping[str, Prediction], problems: Mapping[str, Problem]
) -> dict[str, Prediction]:
    """The predictions with the right answers of a data set, after checking that they belong to it."""
    for pid, made in predictions.items():
        if pid not in problems:
            raise EvalError(f"{path}: question {pid!r} is not in the data set; name the one it was made on")
        problem = problems[pid]
        if made.option is not None and made.option >= len(problem.choices):
            raise EvalError(
                f"{path}: question {pid!r} has the options 0 to {len(problem.choices) - 1}, "
                f"but the prediction is {made.option}"
            )
        if made.gold not in (None, problem.answer):
            raise EvalError(
                f"{path}: question {pid!r} was scored with the right answer {made.gold}, the data set has "
                f"{problem.answer}; it is another data set"
            )
    return {pid: replace(made, gold=problems[pid].answer) for pid, made in predictions.items()}
