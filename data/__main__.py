"""Checks data sets, or writes the mini world as one.

    python -m data check DIR --tokenizer assets/mini/decoder/tokenizer.model --max-tokens 512
    python -m data check chats.json captions.jsonl --images pictures --template vicuna_v1
    python -m data mini DIR --problems 3000 --seed 0

`check` prints every fault it finds and a table of what there is, and exits with 2 when there is a fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.check import LengthRule, check
from data.commands import Parser, print_error
from data.errors import DataError
from data.mini.generate import generate
from data.pictures import slot_counter
from data.prompts import FORMATS, require_format
from data.report import report, report_sources
from data.source import RowSource, SourceSettings
from data.source_check import TokenRule, check_sources
from data.template import TEMPLATES, Template, make_template

# Those of the published layout: the tower's class token after every fourth of 24 blocks.
IMAGE_SLOTS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except DataError as error:
        print_error(error)
        return 2


def run_check(options: argparse.Namespace) -> int:
    """`check`: prints faults and counts."""
    require_format(options.format)
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        raise DataError(
            f"there is no folder {missing[0]}; name the one that holds problems.json, or a file of rows"
        )
    template = _template(options)
    faults = 0
    for folder in filter(Path.is_dir, options.paths):
        rule = None if template is None else LengthRule(template, options.format, options.max_tokens)
        result = check(folder, rule)
        faults += len(result.faults)
        print(report(result))
    if files := [path for path in options.paths if not path.is_dir()]:
        sources = [RowSource(SourceSettings(path, options.images)) for path in files]
        limit = None if template is None else TokenRule(template, options.max_tokens)
        found = check_sources(sources, limit)
        faults += len(found.faults)
        print(report_sources(found))
    return 2 if faults else 0


def _template(options: argparse.Namespace) -> Template | None:
    """What lengths are measured with, where a tokenizer is given."""
    if options.tokenizer is None:
        if options.max_tokens is not None:
            raise DataError("--max-tokens needs lengths; name a tokenizer with --tokenizer")
        return None
    if options.slots < 0:
        raise DataError(f"--slots is {options.slots}; give the tokens of a picture, 0 or more")
    from models.tokenizer import load_tokenizer  # noqa: PLC0415 - the command alone needs it

    try:
        tokenizer = load_tokenizer(options.tokenizer)
        return make_template(options.template, tokenizer, slot_counter(options.slots))
    except ValueError as error:  # the error class of models, which data does not know
        raise DataError(str(error)) from error


def run_mini(options: argparse.Namespace) -> int:
    """`mini`: writes the generated data set."""
    generate(options.folder, options.problems, options.seed)
    print(f"wrote {options.problems} problems to {options.folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m data", description="Checks data sets and writes one.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    checking = commands.add_parser("check", help="report every fault of data sets at once")
    checking.set_defaults(run=run_check)
    checking.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a file of rows, or the folder of a problems.json"
    )
    checking.add_argument(
        "--images", type=Path, metavar="DIR", help="where the rows' picture names start (default: the file's)"
    )
    checking.add_argument(
        "--format", default="QCM-ALE", metavar="NAME", help=f"whose lengths to show: {', '.join(FORMATS)}"
    )
    checking.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a decoder's tokenizer: show lengths"
    )
    checking.add_argument(
        "--template", default="lavin", metavar="NAME", help=f"whose lengths to show: {', '.join(TEMPLATES)}"
    )
    checking.add_argument(
        "--slots", type=int, default=IMAGE_SLOTS, metavar="N", help="tokens of a picture (default 6)"
    )
    checking.add_argument("--max-tokens", type=int, metavar="N", help="report samples longer than this")

    mini = commands.add_parser("mini", help="write a data set of the mini world")
    mini.set_defaults(run=run_mini)
    mini.add_argument("folder", type=Path, help="the folder to write to")
    mini.add_argument("--problems", type=int, default=3000, metavar="N", help="how many (default 3000)")
    mini.add_argument("--seed", type=int, default=0, help="another seed, other problems (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
