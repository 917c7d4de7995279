"""Small sets of the short-answer benchmarks in their official layouts, with pictures that Pillow draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from eval.benchmark import Question, find

SHORT = "Answer the question using a single word or phrase."


def picture(path: Path) -> None:
    """Draw a small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (90, 120, 30)).save(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON Lines file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def load(name: str, folder: Path, split: str | None = None) -> list[Question]:
    """The questions of a set as the runner gets them."""
    benchmark = find(name)
    return benchmark.load(folder, split or benchmark.splits[0], folder / "unpacked")


def edit(path: Path, old: str, new: str) -> None:
    """Break a file in one place."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
