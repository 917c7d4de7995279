"""ScienceQA in its official files: `problems.json`, `pid_splits.json`, `captions.json`, `images/`.

Reading is strict: a row that breaks the format is refused with its id. Builds no prompts (`prompts.py`)
and opens no pictures (`pictures.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Unlike the others these three say nothing about the answer, and reconstructions lack them.
NULLABLE_FIELDS = ("topic", "category", "skill")
TEXT_FIELDS = ("question", "hint", "task", "grade", "subject", "lecture", "solution", "split")
# What no score depends on; data published for scoring leave some of it out, or blank.
UNSCORED = {"question": "(left out)", **dict.fromkeys(("task", "lecture", "solution"), "")} | dict.fromkeys(
    NULLABLE_FIELDS
)
FIELDS = (*TEXT_FIELDS, *NULLABLE_FIELDS, "image", "choices", "answer")


@dataclass(frozen=True)
class Problem:
    """One question with the official fields, and its caption when `captions.json` has one."""

    pid: str
    question: str
    choices: tuple[str, ...]
    answer: int  # index into choices
    hint: str
    image: str | None  # file name in the problem's picture folder
    task: str
    grade: str
    subject: str
    topic: str | None
    category: str | None
    skill: str | None
    lecture: str
    solution: str
    split: str  # the split whose folder holds the picture
    caption: str | None = None

    def picture(self, root: Path) -> Path | None:
        """Where the picture of this problem lies below the data set's folder."""
        return None if self.image is None else root / "images" / self.split / self.pid / self.image


def row_faults(pid: str, row: object) -> list[str]:
    """Everything that breaks the format in one row of `problems.json`."""
    if not isinstance(row, dict):
        return [f"is {_kind(row)}, not an object"]
    # Id, split and image become a path, which must not lead out of the data set's folder.
    faults = [] if _is_plain_name(pid) else [f"has the id {pid!r}, which is not a plain file name"]
    faults += [f"has no field {name!r}" for name in FIELDS if name not in row]
    for name in TEXT_FIELDS:
        if name in row and not isinstance(row[name], str):
            faults.append(f"{name} is {_kind(row[name])}, not a text")
    for name in ("image", *NULLABLE_FIELDS):
        if name in row and not (row[name] is None or isinstance(row[name], str)):
            faults.append(f"{name} is {_kind(row[name])}, not a text or null")
    faults += [f"{name} holds half a character (\\ud800 to \\udfff)" for name in row if _is_half(row[name])]
    if isinstance(row.get("question"), str) and not row["question"].strip():
        faults.append("question is empty")
    for name in ("image", "split"):
        if isinstance(row.get(name), str) and not _is_plain_name(row[name]):
            faults.append(f"{name} {row[name]!r} is not a plain file name")
    if "choices" in row:
        faults.extend(_choice_faults(row))
    return faults


def load_rows(root: Path) -> dict[str, Any]:
    """The rows of `problems.json` by id, not yet checked."""
    return _read_object(root / "problems.json")


def load_splits(root: Path) -> dict[str, list[str]]:
    """Every split of `pid_splits.json` with its problem ids in order."""
    path = root / "pid_splits.json"
    splits = _read_object(path)
    for name, pids in splits.items():
        if not isinstance(pids, list) or not all(isinstance(pid, str) for pid in pids):
            raise DataError(f"{path}: split {name!r} is not a list of ids in quotes; correct the file")
    return splits


def load_captions(root: Path) -> dict[str, str]:
    """Captions by problem id; none when the data set has no `captions.json`."""
    path = root / "captions.json"
    if not path.exists():
        return {}
    captions = _read_object(path).get("captions")
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise DataError(f"{path}: 'captions' is not an object of id to text; correct or remove the file")
    return captions


def load_problems(root: Path, *, scoring: bool = False) -> dict[str, Problem]:
    """Every problem by id, in the order of `problems.json`; for scoring alone it may lack `UNSCORED`."""
    captions = load_captions(root)
    problems: dict[str, Problem] = {}
    for pid, given in load_rows(root).items():
        row = _completed(given) if scoring and isinstance(given, dict) else given
        faults = row_faults(pid, row)
        if faults:
            raise DataError(
                f"{root / 'problems.json'}: problem {pid} {faults[0]}; correct it "
                f"(python -m data check {root} lists every fault)"
            )
        problems[pid] = problem_of(pid, row, captions.get(pid))
    return problems


def _completed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what no score depends on."""
    return {**UNSCORED, **{name: value for name, value in row.items() if value or name not in UNSCORED}}


def problem_of(pid: str, row: Mapping[str, Any], caption: str | None) -> Problem:
    """The problem of a row without faults."""
    fields = {name: row[name] for name in FIELDS}
    fields["choices"] = tuple(fields["choices"])
    return Problem(pid=pid, caption=caption, **fields)


def load_split(root: Path, split: str, *, scoring: bool = False) -> list[Problem]:
    """The problems of one split, in the order of `pid_splits.json`; `scoring` as for all of them."""
    splits = load_splits(root)
    if split not in splits:
        raise DataError(f"{root / 'pid_splits.json'}: no split {split!r}; it has {', '.join(splits)}")
    problems = load_problems(root, scoring=scoring)
    missing = [pid for pid in splits[split] if pid not in problems]
    if missing:
        raise DataError(
            f"{root / 'pid_splits.json'}: {len(missing)} ids of split {split!r} are not in problems.json "
            f"({', '.join(missing[:5])}); take them out or add the problems"
        )
    return [problems[pid] for pid in splits[split]]


def digest(root: Path, split: str) -> str:
    """SHA-256 over the split's problems sorted by id: all their fields, and the sizes of their pictures."""
    state = hashlib.sha256()
    for problem in sorted(load_split(root, split), key=lambda problem: problem.pid):
        path = problem.picture(root)
        try:
            size = None if path is None else path.stat().st_size
        except OSError as error:
            raise DataError(f"problem {problem.pid}: no picture {path}; put it there") from error
        state.update(json.dumps([asdict(problem), size], sort_keys=True).encode())
    return state.hexdigest()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; name the folder that holds problems.json") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON in UTF-8 ({error}); fetch or write it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {_kind(content)}, not an object; fetch or write it again")
    return content


def _choice_faults(row: Mapping[str, Any]) -> list[str]:
    choices = row["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return ["choices is not a list of texts"]
    if not 2 <= len(choices) <= len(LETTERS):
        return [f"has {len(choices)} choices; 2 to {len(LETTERS)} are possible"]
    answer = row.get("answer")
    if "answer" in row and (not isinstance(answer, int) or isinstance(answer, bool)):
        return [f"answer is {_kind(answer)}, not an index"]
    if isinstance(answer, int) and not 0 <= answer < len(choices):
        return [f"answer {answer} is out of range for {len(choices)} choices (0 to {len(choices) - 1})"]
    return []


def _is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder: no separator, no way up."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _is_half(value: object) -> bool:
    """Whether a text, or one in a list, holds a surrogate without its other half: no text in UTF-8."""
    if isinstance(value, list):
        return any(_is_half(item) for item in value)
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    words = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return words.get(type(value), f"the number {value}")
