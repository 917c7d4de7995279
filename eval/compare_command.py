"""`python -m eval compare`: paired tests between any two files of answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from data.scienceqa import Problem, load_problems
from eval import benchmark as registry
from eval.compare import compare
from eval.errors import EvalError
from eval.results import Prediction, read_predictions
from eval.score_command import FIRST, scored_file, with_gold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    parser.set_defaults(run=run)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[NAME] A B",
        help="two result files; with a benchmark's name and --data, files in its official formats too",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the official files, for files without right answers",
    )
    parser.add_argument("--split", help="split of the official files (default: the first)")


def run(options: argparse.Namespace) -> None:
    """Prints who is better, and whether the difference may be chance."""
    name, files = _named(options.words)
    if name != FIRST:
        if options.data is None:
            raise EvalError(
                f"compare: files of {name} are scored first; name its official files with --data DIR"
            )
        sides = [_marked(name, path, options.data, options.split) for path in files]
    else:
        problems = load_problems(options.data, scoring=True) if options.data is not None else None
        sides = [_told(path, problems) for path in files]
    print(compare(*sides).table())


def _named(words: list[str]) -> tuple[str, list[Path]]:
    """Benchmark and files."""
    *name, a, b = words if len(words) > 1 else (*words, "")
    if len(name) > 1 or not b:
        raise EvalError(
            f"compare: {len(words)} words are given; name two files, with a benchmark before them or not"
        )
    return (name[0] if name else FIRST), [Path(a), Path(b)]


def _marked(name: str, path: Path, data: Path, split: str | None) -> dict[str, Prediction]:
    """What every answer of a file earned."""
    marks = scored_file(registry.find(name), path, data, split).marks
    return {key: Prediction(None, text="", score=mark.score) for key, mark in marks.items()}


def _told(path: Path, problems: dict[str, Problem] | None) -> dict[str, Prediction]:
    """The answers of a result file, or of options by their index."""
    predictions = read_predictions(path)
    if problems is not None:
        return with_gold(path, predictions, problems)
    if any(made.option is not None and made.gold is None for made in predictions.values()):
        raise EvalError(f"{path}: holds no right answers; name the data set with --data DIR")
    return predictions
