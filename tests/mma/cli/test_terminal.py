"""What a command line says: one-line errors, a note when it takes long, JSON."""

from __future__ import annotations

import json
import math
import time

import pytest

from mma.cli import terminal
from mma.cli.terminal import Parser, hint, note, print_error, print_json, print_text


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="try")
    command = made.add_subparsers(metavar="COMMAND").add_parser("look")
    command.add_argument("--json", action="store_true")
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["look", "--jsn=1"],
            "unknown argument '--jsn', did you mean --json?; try look --help lists what there is",
        ),
        (["look", "--zzz"], "unknown argument '--zzz'; try look --help lists what there is"),
        (["look", "x"], "unknown argument 'x'; try look --help lists what there is"),
    ],
)
def test_a_wrong_command_line_is_one_line(parser, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments)
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_error_is_one_line_whatever_is_in_it(capsys):
    print_error(ValueError("one\n  two"))
    assert capsys.readouterr().err == "error: one two\n"


def test_a_hint_is_given_when_something_is_near():
    assert hint("imag", {"image": 1, "text": 2}) == ", did you mean image?"
    assert hint("audio", {"image": 1, "text": 2}) == ""


def test_json_has_null_for_what_is_no_number(capsys):
    print_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (-math.inf, "x")}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": [None, "x"]}}


def test_text_has_80_columns_but_for_code_and_paths(capsys):
    code, path = f"    {'x ' * 60}".rstrip(), "/a-b" * 30
    print_text("word " * 30, f"{code}\n{path}")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [" ".join(["word"] * 16), " ".join(["word"] * 14), code, path]


def test_a_note_is_for_what_takes_long(monkeypatch, capsys):
    with note("at once"):
        pass
    monkeypatch.setattr(terminal, "PATIENCE", 0.01)
    with note("something long"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "something long ...\n"
