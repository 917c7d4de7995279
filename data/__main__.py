"""Checks a data set, or writes the mini world as one.

    python -m data check DIR --tokenizer assets/mini/decoder/tokenizer.model --max-tokens 512
    python -m data mini DIR --problems 3000 --seed 0

`check` prints every fault it finds and a table of the splits, and exits with 2 when there is a fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from data.check import LengthRule, check
from data.commands import Parser, print_error
from data.errors import DataError
from data.mini.generate import generate
from data.prompts import FORMATS, require_format
from data.report import report
from data.template import LavinTemplate

# Lengths are those of the published layout: the tower's class token after every fourth of 24 blocks.
IMAGE_SLOTS = 6


class LengthTokenizer:
    """A SentencePiece model as far as lengths need it; `models.tokenizer` has the one for use."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"there is no tokenizer {path}; name a SentencePiece tokenizer.model")
        self._model = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(path.read_bytes())
        except RuntimeError as error:
            raise DataError(f"{path} is not a SentencePiece model; name a tokenizer.model") from error
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self._line_break = len(self._model.encode("\n"))

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end."""
        if continues:
            # A line break keeps the dummy space away from the text and merges with nothing.
            return list(self._model.encode("\n" + text)[self._line_break :])
        return list(self._model.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return str(self._model.decode(list(ids)))


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
    rule = None
    if options.tokenizer is not None:
        template = LavinTemplate(LengthTokenizer(options.tokenizer), IMAGE_SLOTS)
        rule = LengthRule(template, options.format, options.max_tokens)
    elif options.max_tokens is not None:
        raise DataError("--max-tokens needs lengths; name a SentencePiece model with --tokenizer")
    result = check(options.folder, rule)
    print(report(result))
    return 2 if result.faults else 0


def run_mini(options: argparse.Namespace) -> int:
    """`mini`: writes the generated data set."""
    generate(options.folder, options.problems, options.seed)
    print(f"wrote {options.problems} problems to {options.folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m data", description="Data sets in ScienceQA's layout.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    checking = commands.add_parser("check", help="report every fault of a data set at once")
    checking.set_defaults(run=run_check)
    checking.add_argument("folder", type=Path, help="the folder that holds problems.json")
    checking.add_argument(
        "--format", default="QCM-ALE", metavar="NAME", help=f"whose lengths to show: {', '.join(FORMATS)}"
    )
    checking.add_argument("--tokenizer", type=Path, metavar="FILE", help="SentencePiece model: show lengths")
    checking.add_argument("--max-tokens", type=int, metavar="N", help="report problems longer than this")

    mini = commands.add_parser("mini", help="write a data set of the mini world")
    mini.set_defaults(run=run_mini)
    mini.add_argument("folder", type=Path, help="the folder to write to")
    mini.add_argument("--problems", type=int, default=3000, metavar="N", help="how many (default 3000)")
    mini.add_argument("--seed", type=int, default=0, help="another seed, other problems (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
