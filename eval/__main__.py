"""Evaluates an adapter, scores predictions, or compares two results.

    python -m eval scienceqa --data DIR --split test --adapter RUN --out result.json
    python -m eval score PREDICTIONS --data DIR
    python -m eval compare A.json B.json

Each prints a table and exits with 0; a wrong input gives one line and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from data.commands import Parser, print_error
from data.errors import DataError
from data.scienceqa import Problem, load_problems, load_split
from eval.compare import compare
from eval.errors import EvalError
from eval.results import Prediction, check_writable, read_predictions, write_result
from eval.scienceqa import score
from mma.cli.base_options import NUMBERS, OPTIONS
from mma.errors import AdapterError
from models.errors import ModelError

BASE = {"decoder": "folder of the decoder", **OPTIONS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (EvalError, DataError, ModelError, AdapterError) as error:
        print_error(error)
        return 2
    return 0


def run_scienceqa(options: argparse.Namespace) -> None:
    """`scienceqa`: asks a model every question of a split, writes the result file, prints the scores."""
    # imported here: rescoring and comparing need no model, and so none of its libraries
    from eval.task import Settings, evaluate  # noqa: PLC0415

    check_writable(options.out)
    given = vars(options)
    base = {name: given[f"base.{name}"] for name in BASE if given[f"base.{name}"] is not None}
    names = {field.name for field in fields(Settings)} - {"base"}
    result = evaluate(Settings(**{name: given[name] for name in names}, base=base))
    write_result(options.out, result)
    print(result.scores.table())
    print(f"wrote {options.out}")


def run_score(options: argparse.Namespace) -> None:
    """`score`: scores a prediction file again, without a model."""
    problems = load_problems(options.data)
    predictions = with_gold(options.predictions, read_predictions(options.predictions), problems)
    if options.split is not None:
        predictions = of_split(options, predictions)
    print(score(problems, {pid: made.option for pid, made in predictions.items()}).table())


def run_compare(options: argparse.Namespace) -> None:
    """`compare`: two files of predictions over the questions they share."""
    problems = load_problems(options.data) if options.data is not None else None
    sides = []
    for path in (options.a, options.b):
        predictions = read_predictions(path)
        if problems is not None:
            predictions = with_gold(path, predictions, problems)
        elif any(made.gold is None for made in predictions.values()):
            raise EvalError(f"{path}: holds no right answers; name the data set with --data DIR")
        sides.append(predictions)
    print(compare(*sides).table())


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


def of_split(options: argparse.Namespace, predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
    """The predictions of one split, which must be complete."""
    pids = [problem.pid for problem in load_split(options.data, options.split)]
    if not pids:
        raise EvalError(f"{options.data}: split {options.split!r} is empty; name another")
    missing = [pid for pid in pids if pid not in predictions]
    if missing:
        raise EvalError(
            f"{options.predictions}: {len(missing)} of {len(pids)} questions of split {options.split!r} have "
            f"no prediction (the first is {missing[0]}); leave --split out to score those that have one"
        )
    return {pid: predictions[pid] for pid in pids}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m eval", description="Evaluation on ScienceQA.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_scienceqa(commands.add_parser("scienceqa", help="ask a model and write a result file"))

    scoring = commands.add_parser("score", help="score predictions without a model")
    scoring.set_defaults(run=run_score)
    scoring.add_argument(
        "predictions", type=Path, help="a result file, or a published one: question id -> index of the option"
    )
    scoring.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with problems.json")
    scoring.add_argument("--split", help="score exactly this split (default: every question in the file)")

    comparing = commands.add_parser("compare", help="paired comparison of two result files (McNemar test)")
    comparing.set_defaults(run=run_compare)
    comparing.add_argument("a", type=Path, metavar="A.json", help="a result file or published predictions")
    comparing.add_argument("b", type=Path, metavar="B.json", help="the one to compare it with")
    comparing.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with problems.json, for files without right answers"
    )
    return parser


def _add_scienceqa(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_scienceqa)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with problems.json")
    parser.add_argument("--split", default="test", help="split of pid_splits.json (default: test)")
    parser.add_argument(
        "--adapter",
        type=Path,
        required=True,
        metavar="RUN",
        help="an adapter folder or a run folder (of several stages the last counts)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="result file to write")
    parser.add_argument(
        "--decode",
        choices=("choice", "generate"),
        default="choice",
        help="choice: the likeliest option letter, in one pass (default); "
        "generate: the letter in the generated text",
    )
    parser.add_argument("--blind", action="store_true", help="show noise in place of every picture")
    parser.add_argument("--no-adapter", action="store_true", help="evaluate the base without the adapter")
    parser.add_argument("--format", metavar="NAME", help="prompt format (default: the adapter's own)")
    parser.add_argument(
        "--long",
        choices=("error", "truncate"),
        default="error",
        help="what to do with a question that the decoder cannot hold (default: error)",
    )
    _add_number(parser, "--max-new-tokens", 64, "longest generated answer")
    _add_number(parser, "--tokens-per-batch", 4096, "tokens at once: memory and speed, not the result")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    base = parser.add_argument_group("base", "where the base lies, if not where the adapter folder says")
    for name, meaning in BASE.items():
        kind = int if name in NUMBERS else str
        base.add_argument(f"--base.{name}", type=kind, metavar="VALUE", help=meaning)


def _add_number(parser: argparse.ArgumentParser, name: str, default: int, meaning: str) -> None:
    parser.add_argument(name, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")


if __name__ == "__main__":
    sys.exit(main())
