"""Reading official files strictly: whatever is wrong is one line with the file, the row and what to do.

Knows no benchmark. A `Row` is one object of JSON, or one line of a table, that knows where it stands.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import EvalError

MISSING = object()
AGAIN = "fetch the file again"
ANEW = "write the file anew"
"""What to do about a broken file: official data is published, a file of answers is the user's own."""


@dataclass(frozen=True)
class Row:
    """Named values, and where they stand; asking for what is not there raises EvalError."""

    where: str  # e.g. "questions.jsonl: line 3"
    values: Mapping[str, Any]
    remedy: str = AGAIN

    def text(self, name: str, default: str | None = None) -> str:
        """A text; an absent or null one is the default where there is one."""
        return str(self._of(name, str, "a text", default))

    def whole(self, name: str) -> int:
        """A whole number."""
        value = self._of(name, int, "a whole number", None)
        if isinstance(value, bool):
            raise EvalError(f"{self.where}: {name} is true or false, not a whole number; {self.remedy}")
        return int(value)

    def texts(self, name: str, default: list[str] | None = None) -> list[str]:
        """A list of texts."""
        value = self._of(name, list, "a list", default)
        if not all(isinstance(item, str) for item in value):
            raise EvalError(f"{self.where}: {name} is not a list of texts; {self.remedy}")
        return list(value)

    def rows(self, name: str) -> list[Row]:
        """A list of objects."""
        value = self._of(name, list, "a list", None)
        return [
            row_of(item, f"{self.where}, {name} {place + 1}", self.remedy) for place, item in enumerate(value)
        ]

    def id(self, name: str) -> str:
        """A text or whole number, as text."""
        value = self._of(name, (str, int), "an id", None)
        return str(value)

    def any(self, name: str) -> Any:
        """Whatever stands there, null included."""
        if name not in self.values:
            raise EvalError(f"{self.where}: has no {name!r}; {self.remedy}")
        return self.values[name]

    def _of(self, name: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        value = self.values.get(name, MISSING)
        if (value is MISSING or value is None) and default is not None:
            return default
        if value is MISSING:
            raise EvalError(f"{self.where}: has no {name!r}; {self.remedy}")
        if not isinstance(value, kind):
            raise EvalError(f"{self.where}: {name} is {shown(value)}, not {what}; {self.remedy}")
        return value


def row_of(value: object, where: str, remedy: str = AGAIN) -> Row:
    """A value that must be an object, as a row."""
    if not isinstance(value, dict):
        raise EvalError(f"{where}: is {shown(value)}, not an object; {remedy}")
    return Row(where, value, remedy)


def read_json(path: Path, remedy: str = AGAIN) -> Any:
    """The content of a JSON file."""
    return _parsed(read_text(path, remedy=remedy), str(path), remedy)


def read_object(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """The content of a JSON file that must hold an object."""
    return dict(row_of(read_json(path, remedy), str(path), remedy).values)


def read_rows(path: Path, remedy: str = AGAIN) -> list[Row]:
    """The objects of a JSON file that holds a list of them."""
    content = read_json(path, remedy)
    if not isinstance(content, list):
        raise EvalError(f"{path}: holds {shown(content)} where a list was expected; {remedy}")
    return [row_of(item, f"{path}: item {place + 1}", remedy) for place, item in enumerate(content)]


def read_lines(path: Path, remedy: str = AGAIN) -> list[Row]:
    """The objects of a JSON Lines file; empty lines are passed over."""
    found = []
    for number, line in enumerate(read_text(path, remedy=remedy).split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            found.append(row_of(_parsed(line, where, remedy), where, remedy))
    return found


def read_table(path: Path, delimiter: str) -> list[Row]:
    """The lines of a CSV or TSV file with a header, every value as text."""
    lines = read_cells(path, delimiter)
    if not lines:
        raise EvalError(f"{path}: is empty; fetch the file again")
    (_, head), *rest = lines
    found = []
    for where, cells in rest:
        if len(cells) != len(head):
            raise EvalError(f"{where}: {len(cells)} cells under {len(head)} names; fetch the file again")
        found.append(Row(where, dict(zip(head, cells, strict=True))))
    return found


def read_cells(path: Path, delimiter: str, remedy: str = AGAIN) -> list[tuple[str, list[str]]]:
    """The lines of a CSV or TSV file without a header: (where, cells)."""
    csv.field_size_limit(sys.maxsize)  # a picture may stand in a cell
    text = read_text(path, newline="", remedy=remedy)
    return list(_cells(path, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), remedy))


def _cells(path: Path, reader: Any, remedy: str) -> Iterator[tuple[str, list[str]]]:
    try:
        for cells in reader:
            yield f"{path}: line {reader.line_num}", cells
    except csv.Error as error:
        raise EvalError(f"{path}: line {reader.line_num}: {error}; {remedy}") from None


def read_text(path: Path, newline: str | None = None, remedy: str = AGAIN) -> str:
    """The text of a file in UTF-8."""
    try:
        with path.open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except FileNotFoundError:
        advice = "`python -m eval prepare` says where it is published"
        if remedy == ANEW:
            advice = "name a file of answers that there is"
        raise EvalError(f"{path}: no such file; {advice}") from None
    except UnicodeDecodeError:
        raise EvalError(f"{path}: is not text in UTF-8; {remedy}") from None
    except OSError as error:
        raise EvalError(f"{path}: cannot be read: {error.strerror}") from None


def _parsed(text: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise EvalError(f"{where}: broken JSON at {place}: {error.msg}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{where}: broken JSON: {error}; {remedy}") from None


def shown(value: object) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
