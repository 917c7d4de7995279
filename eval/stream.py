"""Answers on disk as they come, so that an evaluation that was killed goes on where it was.

    FOLDER/part-0-of-1.jsonl     a head line (what is asked, of whom), then one line per answer

Every process writes a part of its own. A line that a kill cut short is dropped. Knows nothing of models.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.errors import EvalError
from eval.results import Prediction

FORMAT = "mma-answers-1"


@dataclass(frozen=True)
class Line:
    """One answer: whose, to which question, and what had to be done to ask it."""

    column: str
    id: str
    prediction: Prediction
    cut: bool = False  # its prompt was shortened
    unreadable: bool = False  # a picture could not be decoded, and a grey one was shown


class Part:
    """The file of one process, open for more answers.

    Args:
        head: What is asked; an evaluation only goes on where it is the same.

    Raises EvalError when the folder holds answers to something else, or cannot be written.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], shard: tuple[int, int] = (0, 1)) -> None:
        self.head = json.loads(json.dumps({"format": FORMAT, **head}))
        self.path = folder / f"part-{shard[0]}-of-{shard[1]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            self._lock()
            begun = _whole_lines(self.path)
            self.done = {(line.column, line.id) for line in read(folder, self.head)}
            if not begun:
                self._write(self.head)
        except BaseException:
            self.close()
            raise

    def add(self, line: Line) -> None:
        """Writes an answer; it survives a kill from then on."""
        made = asdict(line.prediction)
        told = {key: value for key, value in made.items() if value is not None and key != "gold"}
        flags = {name: True for name in ("cut", "unreadable") if getattr(line, name)}
        self._write({"column": line.column, "id": line.id, **told, **flags})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _lock(self) -> None:
        """Nothing is read or cut off before it is certain that nobody writes there."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvalError(
                f"{self.path}: another process is writing answers there; wait for it, or name another --out"
            ) from None

    def _write(self, content: Mapping[str, Any]) -> None:
        # What a model writes need not be valid text; half of a pair becomes a question mark.
        left = (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _unwritable(self.path, error) from None


def read(folder: Path, head: Mapping[str, Any] | None = None) -> list[Line]:
    """All answers of a folder, of whichever process; with a head, only those to the same questions."""
    lines: list[Line] = []
    for path in sorted(folder.glob("part-*.jsonl")):
        rows = _rows(path)
        if rows and head is not None and rows[0] != head:
            raise EvalError(
                f"{folder}: holds answers that were asked for with other settings "
                f"({_difference(rows[0], head)}); remove it, or name another --out"
            )
        lines += [_line(path, row) for row in rows[1:]]
    return lines


def head_of(folder: Path) -> dict[str, Any]:
    """What the answers of a folder were asked."""
    for path in sorted(folder.glob("part-*.jsonl")):
        if rows := _rows(path):
            return rows[0]
    raise EvalError(f"{folder}: holds no answers; evaluate again")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a part."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = []
    for number, line in enumerate(text.split("\n")[:-1], 1):  # behind the last line break nothing is whole
        try:
            row = json.loads(line)
        except ValueError:
            raise EvalError(f"{path}: line {number} is damaged; remove the file to ask again") from None
        found.append(row)
    return found


def _line(path: Path, row: Mapping[str, Any]) -> Line:
    try:
        likelihoods = row.get("likelihoods")
        prediction = Prediction(
            option=row.get("option"),
            text=row.get("text"),
            likelihoods=None if likelihoods is None else tuple(likelihoods),
        )
        flags = bool(row.get("cut")), bool(row.get("unreadable"))
        return Line(str(row["column"]), str(row["id"]), prediction, *flags)
    except (KeyError, TypeError, AttributeError):
        raise EvalError(f"{path}: holds a line that is no answer; remove the file to ask again") from None


def _whole_lines(path: Path) -> bool:
    """Cuts off what a kill left of a last line; whether anything is left."""
    if not path.exists():
        return False
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return bool(whole)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first setting that is not the same."""
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            one, other = old.get(key), new.get(key)
            if isinstance(one, dict) and isinstance(other, dict):
                return _difference(one, other)
            return f"{key}: {_short(one)} there, {_short(other)} now"
    return "nothing"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def answers_in(folder: Path) -> int:
    """How many lines of answers the parts of a folder have."""
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in folder.glob("part-*.jsonl"))


def _unwritable(path: Path, error: OSError) -> EvalError:
    return EvalError(f"{path}: cannot be written: {error.strerror}; make room or name another --out")
