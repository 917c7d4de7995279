"""`python -m eval seeds`: results of the same evaluation with several seeds of training, in one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.errors import EvalError
from eval.results import Result, read_result
from eval.statistics import over_seeds

SAME = ("benchmark", "split", "decode", "blind")
"""Settings that results of one table must share."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `seeds`."""
    parser.set_defaults(run=run)
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULT", help="result files, one of each seed"
    )


def run(options: argparse.Namespace) -> None:
    """Prints mean, deviation and interval of every score over the seeds."""
    if len(options.results) < 2:
        raise EvalError("seeds: one result says nothing of the deviation between seeds; name two or more")
    results = [read_result(path) for path in options.results]
    for path, result in zip(options.results[1:], results[1:], strict=True):
        _check_same(options.results[0], results[0], path, result)
    if not results[0].scores.categories:
        raise EvalError(f"{options.results[0]}: holds no scores; name results that are scored")
    print(table(results))


def table(results: list[Result]) -> str:
    """A line per score: its mean over the seeds, the deviation between them, and Student's interval."""
    names = list(results[0].scores.categories)
    width = max(len(name) for name in names)
    lines = [f"{'':<{width}}{'mean':>10}{'sd':>10}{'low':>10}{'high':>10}{'seeds':>10}"]
    for name in names:
        scores = [result.scores.categories[name] for result in results]
        values = [score.value * score.scale for score in scores if score.value is not None]
        if len(values) < len(results):
            lines.append(f"{name:<{width}}" + f"{'-':>10}" * 4 + f"{len(values):>10}")
            continue
        mean, deviation, (low, high) = over_seeds(values)
        cells = "".join(f"{value:>10.2f}" for value in (mean, deviation, low, high))
        lines.append(f"{name:<{width}}{cells}{len(values):>10}")
    return "\n".join(lines)


def _check_same(first: Path, one: Result, path: Path, other: Result) -> None:
    for key in SAME:
        if one.settings.get(key) != other.settings.get(key):
            raise EvalError(
                f"{path}: {key} is {other.settings.get(key)!r}, in {first} it is {one.settings.get(key)!r}; "
                "seeds are compared on one evaluation"
            )
    if one.digests.get("data") != other.digests.get("data"):
        raise EvalError(f"{path}: was made on other questions than {first}")
    if one.scores.categories.keys() != other.scores.categories.keys():
        raise EvalError(f"{path}: has other scores than {first}; evaluate both with one version")
