"""A data set of eight problems in ScienceQA's layout, with three pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.scienceqa import Problem, load_problems
from mma import MMAConfig
from models.build import BaseSettings, build_base

# id: subject, grade, hint, picture, number of choices, answer
ROWS = {
    "1": ("natural science", 1, "Ice melts.", False, 2, 0),
    "2": ("natural science", 6, "", True, 3, 1),
    "3": ("natural science", 7, "Look <here> & there.", True, 4, 3),
    "4": ("social science", 12, "", False, 2, 1),
    "5": ("social science", 3, "", True, 5, 4),
    "6": ("natural science", 10, "", False, 2, 0),
    "7": ("social science", 2, "A map.", False, 3, 2),
    "8": ("natural science", 8, "", False, 4, 2),
}


def _row(pid: str) -> dict[str, object]:
    subject, grade, hint, picture, choices, answer = ROWS[pid]
    return {
        "question": f"What is in picture {pid}?",
        "choices": [f"thing {place}" for place in range(choices)],
        "answer": answer,
        "hint": hint,
        "image": "image.png" if picture else None,
        "task": "closed choice",
        "grade": f"grade{grade}",
        "subject": subject,
        "topic": None,
        "category": None,
        "skill": None,
        "lecture": "",
        "solution": "",
        "split": "test",
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the data set."""
    root = tmp_path / "scienceqa"
    root.mkdir()
    rows = {pid: _row(pid) for pid in ROWS}
    (root / "problems.json").write_text(json.dumps(rows))
    splits = {"test": list(ROWS), "half": list(ROWS)[:4], "none": []}
    (root / "pid_splits.json").write_text(json.dumps(splits))
    for pid, row in rows.items():
        if row["image"] is not None:
            path = root / "images" / "test" / pid / "image.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (500, 300), (int(pid) * 20, 100, 200)).save(path)
    return root


@pytest.fixture
def problems(root: Path) -> dict[str, Problem]:
    """Its problems by id."""
    return load_problems(root)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapter folders on the embedded base, neither of them trained."""
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build_base(BaseSettings()).model
        model.adapters.add_adapter("default", MMAConfig(r=4 * seed))
        with torch.no_grad():
            for parameter in model.adapters.trainable_parameters().values():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folders.append(tmp_path_factory.mktemp(f"adapter-{seed}"))
        model.adapters.save_pretrained(folders[-1], {"format": "QCM-A"})
    return folders
