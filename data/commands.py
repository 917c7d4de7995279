"""The command line of the packages that have commands: what is wrong with one is said in a line.

Where argparse prints its usage and names nothing, this names the option that was probably meant.
"""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; its subcommands are parsers of this class too."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As in argparse, but what is unknown is an error at once: the commands know their options."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            name = unknown[0].partition("=")[0]
            near = get_close_matches(name, self._option_string_actions, n=1)
            hint = f", did you mean {near[0]}" if near else ""
            self.error(f"unknown argument {name!r}{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Prints the message and where help is, and exits with 2."""
        print_error(f"{message}; {self.prog} --help lists what there is")
        raise SystemExit(2)


def print_error(error: object) -> None:
    """A wrong input on stderr, in one line whatever a library put into its text."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
