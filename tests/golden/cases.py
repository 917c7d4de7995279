"""The cases of the golden files: every `expected.json` below MMA_GOLDEN (default ../shared/golden)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(os.environ.get("MMA_GOLDEN", Path(__file__).parents[2] / "../shared/golden"))


@dataclass(frozen=True)
class Case:
    """One entry: files with inputs, and what the official code made of them."""

    name: str  # e.g. "pope/parsing"
    folder: Path
    files: tuple[str, ...]  # below the folder; one may hold a pattern
    official: Any

    def __str__(self) -> str:
        return self.name

    def paths(self) -> list[Path]:
        """Every file of the case."""
        return [path for name in self.files for path in sorted(self.folder.glob(name))]

    def lines(self, place: int = 0) -> list[dict[str, Any]]:
        """The objects of a JSON Lines file."""
        text = self.paths()[place].read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line.strip()]

    def json(self, place: int = 0) -> Any:
        """The content of a JSON file."""
        return json.loads(self.paths()[place].read_text(encoding="utf-8"))


def groups() -> list[str]:
    """The first parts of all names."""
    return sorted({case.name.split("/")[0] for case in _all()})


def lines_with(group: str, *columns: str) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a group that have these columns, with a name for each."""
    return [
        (f"{case}/{number}", line)
        for case in cases(group)
        for place, path in enumerate(case.paths())
        if path.suffix == ".jsonl"
        for number, line in enumerate(case.lines(place))
        if line.keys() >= set(columns)
    ]


def cases(group: str) -> list[Case]:
    """The cases whose names begin with a group, e.g. "pope"; none where the files are not there."""
    return [case for case in _all() if case.name.split("/")[0] == group]


def expectations() -> dict[Path, dict[str, Any]]:
    """The content of every `expected.json`."""
    paths = sorted(GOLDEN.rglob("expected.json"))
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _all() -> Iterator[Case]:
    for path, content in expectations().items():
        for name, entry in content.items():
            if isinstance(entry, dict) and {"files", "official_result"} <= entry.keys():
                yield Case(name, path.parent, tuple(entry["files"]), entry["official_result"])
