"""Evaluates adapters, scores predictions, and compares results.

    python -m eval NAME --data DIR --adapter RUN --out result.json      NAME: scienceqa, pope, mme, ...
    python -m eval prepare NAME DIR
    python -m eval score [NAME] PREDICTIONS --data DIR
    python -m eval judge NAME ANSWERS --data DIR --url URL --out reviews
    python -m eval compare [NAME] A B
    python -m eval seeds A.json B.json C.json
    python -m eval report A.json B.json --out report.html

Each prints a table and exits with 0; a wrong input gives one line and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data.commands import Parser, print_error
from data.errors import DataError
from eval import benchmark as registry
from eval import (
    compare_command,
    judge_command,
    prepare_command,
    report_command,
    run_command,
    score_command,
    seeds_command,
)
from eval.errors import EvalError
from mma.errors import AdapterError
from models.errors import ModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        options.run(options)
    except (EvalError, DataError, ModelError, AdapterError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        if not run_command.is_child():
            print("stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m eval", description="Evaluation by the official rules of each benchmark.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in registry.names():
        benchmark = registry.find(name)
        run_command.add_arguments(commands.add_parser(name, help=f"ask a model {benchmark.title}"), benchmark)
    prepare_command.add_arguments(
        commands.add_parser("prepare", help="check official files for completeness")
    )
    score_command.add_score(commands.add_parser("score", help="score predictions without a model"))
    compare_command.add_arguments(
        commands.add_parser("compare", help="paired comparison of two result files")
    )
    judge_command.add_arguments(commands.add_parser("judge", help="have a judge grade answers"))
    seeds_command.add_arguments(commands.add_parser("seeds", help="mean and deviation over several seeds"))
    report_command.add_arguments(commands.add_parser("report", help="one HTML page of results"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
