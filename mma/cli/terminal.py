"""What a command line says: errors in one line, a note when something takes long, tables as JSON.

Knows no command.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

PATIENCE = 2.0  # seconds
COLUMNS = 80


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; its subcommands are parsers of this class too."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As in argparse, but what is unknown is an error at once: the commands know their options."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {name!r}{hint(name, self._option_string_actions)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Prints the message and where help is, and exits with 2."""
        print_error(f"{message}; {self.prog} --help lists what there is")
        raise SystemExit(2)


def hint(name: str, known: Mapping[str, object]) -> str:
    """The known name that was probably meant, for the end of a message."""
    near = get_close_matches(name, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def print_error(error: object) -> None:
    """A wrong input on stderr, in one line whatever a library put into its text."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def print_text(*lines: object) -> None:
    """Lines on stdout, those of more than 80 columns in several; what is indented stays as it is."""
    for line in "\n".join(map(str, lines)).split("\n"):
        # Paths stay in one piece.
        folded = textwrap.fill(line, COLUMNS, break_long_words=False, break_on_hyphens=False)
        print(line if line.startswith(" ") else folded)


def print_json(content: Mapping[str, Any]) -> None:
    """A table on stdout; what JSON has no number for is null."""
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


@contextmanager
def note(what: str) -> Iterator[None]:
    """Says on stderr what is going on inside the block when it takes longer than two seconds."""
    timer = threading.Timer(PATIENCE, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
