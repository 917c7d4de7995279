"""A tiny data set in ScienceQA's layout, and the tokenizer of the mini base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.scienceqa import Problem, load_problems
from models.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = Path(__file__).parents[2] / "assets/mini/decoder/tokenizer.model"
SPLIT_OF = {"1": "train", "2": "train", "3": "train", "4": "val", "5": "test", "6": "test"}

Edit = Callable[[str, Callable[[Any], None]], None]


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    return TOKENIZER


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(TOKENIZER)


@pytest.fixture
def row() -> dict[str, Any]:
    """A row without faults."""
    return {
        "question": "Which is colder?",
        "choices": ["ice", "steam"],
        "answer": 0,
        "hint": "",
        "image": None,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": None,
        "category": None,
        "skill": None,
        "lecture": "Heat flows.",
        "solution": "Ice is cold.",
        "split": "train",
    }


@pytest.fixture
def root(tmp_path: Path, row: dict[str, Any]) -> Path:
    """Six problems, of which 1, 4 and 5 have a picture."""
    folder = tmp_path / "set"
    rows = {}
    for pid, split in SPLIT_OF.items():
        has_picture = pid in "145"
        rows[pid] = {**row, "split": split, "image": "image.png" if has_picture else None}
        if has_picture:
            path = folder / "images" / split / pid / "image.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 6), (int(pid) * 40, 0, 0)).save(path)
    rows["2"]["choices"] = ["ice", "steam", "fire"]
    splits: dict[str, list[str]] = {"train": ["2", "1", "3"], "val": ["4"], "test": ["5", "6"]}
    splits["trainval"] = [*splits["train"], *splits["val"]]
    write(folder / "problems.json", rows)
    write(folder / "pid_splits.json", splits)
    write(folder / "captions.json", {"model": "none", "captions": {"1": "some ice", "4": "a", "5": "b"}})
    return folder


@pytest.fixture
def edit(root: Path) -> Edit:
    """Changes one of the JSON files in place."""

    def apply(name: str, change: Callable[[Any], None]) -> None:
        content = json.loads((root / name).read_text())
        change(content)
        write(root / name, content)

    return apply


@pytest.fixture
def problem(root: Path) -> Problem:
    return load_problems(root)["1"]


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
