"""A small world for the entry points: a random base, eight questions with three pictures, a recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

# split -> one entry per question: whether it has a picture
SPLITS = {"train": (True, False, False, False), "val": (True, False), "test": (True, False), "none": ()}


@dataclass(frozen=True)
class World:
    """Where everything lies, and how it is spoilt."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def decoder(self) -> Path:
        return self.root / "base/decoder"

    @property
    def tower(self) -> Path:
        return self.root / "base/tower"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def run(self) -> Path:
        """The run that made the adapter."""
        return self.root / "run"

    @property
    def adapter(self) -> Path:
        return self.run / "adapter"

    @property
    def state(self) -> Path:
        """The run's only state."""
        (folder,) = (self.run / "state").iterdir()
        return folder

    def picture(self, split: str) -> Path:
        """The only picture of a split."""
        (path,) = (self.data / "images" / split).rglob("*.png")
        return path

    def files(self) -> set[Path]:
        """Everything that is there, to see that nothing was left behind."""
        return set(self.root.rglob("*"))

    def copy(self, root: Path) -> World:
        """The same world elsewhere, its files naming each other there."""
        shutil.copytree(self.root, root)
        for name in ("recipe.yaml", "run/recipe.yaml", "run/adapter/adapter_config.json"):
            text = (root / name).read_text()
            (root / name).write_text(text.replace(str(self.root), str(root)))
        return World(root)


def make_world(root: Path) -> World:
    """The data set and the recipe; the base is written by the caller."""
    world = World(root)
    rows, splits = {}, {}
    for split, pictures in SPLITS.items():
        splits[split] = [str(len(rows) + index + 1) for index in range(len(pictures))]
        for pid, has_picture in zip(splits[split], pictures, strict=True):
            rows[pid] = row(pid, split, has_picture)
            if has_picture:
                draw(world.data / "images" / split / pid / "image.png", len(rows))
    (world.data / "problems.json").write_text(json.dumps(rows))
    (world.data / "pid_splits.json").write_text(json.dumps(splits))
    world.recipe.write_text(
        f"run: {{folder: {root}/run, device: cpu, save_every: 1, validate_every: 2}}\n"
        f"base: {{decoder: {root}/base/decoder, tower: {root}/base/tower, tower_every: 2}}\n"
        "adapter: {r: 4, projector_hidden: 8}\n"
        f"data: {{root: {root}/data, format: QCM-A, max_tokens: 200}}\n"
        "optim: {lr: 1.0e-2, max_steps: 4, warmup_steps: 1, batch: 2, tokens_per_batch: 400, threads: 1}\n"
    )
    return world


def row(pid: str, split: str, has_picture: bool) -> dict[str, Any]:
    """A question with all of ScienceQA's fields."""
    return {
        "question": f"Which is colder in {pid}?",
        "choices": ["ice", "steam"],
        "answer": 0,
        "hint": "",
        "image": "image.png" if has_picture else None,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": None,
        "category": None,
        "skill": None,
        "lecture": "",
        "solution": "",
        "split": split,
    }


def draw(path: Path, number: int) -> None:
    """A drawn picture, another one for every number."""
    path.parent.mkdir(parents=True)
    picture = Image.new("RGB", (40, 30), "white")
    pen = ImageDraw.Draw(picture)
    for index in range(4 + number):
        pen.line((index * 7 % 40, 0, 39, index * 11 % 30), fill=(index * 20, 90, number * 30))
    picture.save(path)


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut(path: Path) -> None:
    """Leaves the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
