"""Runs tasks of another evaluation program on a model of ours.

    python -m eval.engines lm_eval --adapter RUN --tasks mmlu --num_fewshot 5
    python -m eval.engines lmms_eval --adapter RUN --tasks pope

Options beside those that name the model are the program's own. A wrong input gives one line and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from data.commands import Parser, print_error
from data.errors import DataError
from eval.engines import opening
from eval.errors import EvalError
from eval.run_command import add_base, given_base
from mma.errors import AdapterError
from models.errors import ModelError

OURS = ("--model", "--model_args")
COMMANDS = {
    "lm_eval": ("lm_eval.__main__", "cli_evaluate"),
    "lmms_eval": ("lmms_eval.cli.dispatch", "main"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one program and gives its exit code."""
    # What is unknown is the program's; our parser would call it wrong.
    options, rest = argparse.ArgumentParser.parse_known_args(_parser(), arguments)
    own = {name: getattr(options, name) for name in ("adapter", "tokens_per_batch")}
    given = {**given_base(options), **{name: value for name, value in own.items() if value is not None}}
    try:
        if named := [option for option in rest if option.partition("=")[0] in OURS]:
            raise EvalError(
                f"{named[0]}: the model is ours; name it by --adapter RUN, or by --base.decoder DIR"
            )
        opening.named(given)  # before the program reads its tasks, which takes a while
        return _run(options.engine, ["--model", "mma", "--model_args", json.dumps(given), *rest])
    except (EvalError, DataError, ModelError, AdapterError) as error:
        print_error(error)
        return 2


def _run(engine: str, arguments: list[str]) -> int:
    """The program's own command with these arguments."""
    importlib.import_module(f"eval.engines.{engine}")  # says in a line where the program is not installed
    name, command = COMMANDS[engine]
    before, sys.argv = sys.argv, [engine, *arguments]
    try:
        getattr(importlib.import_module(name), command)()
    finally:
        sys.argv = before
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m eval.engines",
        description="Tasks of other evaluation programs on a model of ours.",
        epilog="All other options are the program's own.",
        allow_abbrev=False,
    )
    parser.add_argument("engine", choices=tuple(COMMANDS), help="the program")
    parser.add_argument("--adapter", metavar="RUN", help="an adapter folder or a run folder")
    parser.add_argument("--tokens_per_batch", metavar="N", help="tokens at once: memory and speed")
    add_base(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
