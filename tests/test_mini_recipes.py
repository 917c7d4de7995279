"""The mini variant of every family of recipes runs a few steps on the embedded base, every stage of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from data.mini.generate import generate
from eval.settings import Settings
from eval.task import evaluate
from finetune.recipe import read_stages

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("mini-*.yaml"), key=lambda file: file.stem)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the recipes find what they name."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "assets").symlink_to(ROOT / "assets")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    generate(folder / "runs/mini-data", problems=180)
    return folder


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_it_runs_and_its_adapter_is_scored(place, file, monkeypatch):
    monkeypatch.chdir(place)
    stages = read_stages(file)
    few = [
        "--optim.max_steps",
        "2",
        "--optim.batch",
        "4",
        "--optim.threads",
        "1",
        "--optim.warmup_steps",
        "0",
    ]
    if any(recipe.optim.warmup_ratio is not None for recipe in stages.values()):
        few = few[:-2]
    assert train.main([f"recipes/{file.name}", *few, "--data.validation_limit", "4"]) == 0
    adapter = list(stages.values())[-1].run.folder / "adapter"
    scores = evaluate(Settings(Path("runs/mini-data"), (adapter,))).scores
    assert scores.categories["Avg"].count == 36


def test_every_family_has_one() -> None:
    """A family is what stands before the decoder in a recipe's name."""
    families = {file.stem for file in RECIPES}
    wanted = {"mini-world", "mini-llava", "mini-tinyllava", "mini-llava-next"}
    assert families == wanted
