"""Every wrong input of `python -m mma` gives one line and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small import World, edit_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


WRONG: dict[str, tuple[list[str], str]] = {
    "command": (
        ["inspekt", "{adapter}"],
        "there is no command 'inspekt', did you mean inspect?; python -m mma --help",
    ),
    "no folder named": (
        ["inspect"],
        "the following arguments are required: DIR; python -m mma inspect --help",
    ),
    "option": (["inspect", "{adapter}", "--jsn"], "unknown argument '--jsn', did you mean --json?"),
    "missing folder": (
        ["inspect", "{root}/nothing"],
        "there is no folder '{root}/nothing', and it is no repository id",
    ),
    "missing repository": (
        ["inspect", "nobody/nothing"],
        "there is no folder nobody/nothing here, and the repository",
    ),
    "another folder": (["inspect", "{data}"], "{data} has no adapter_config.json; name an adapter folder"),
    "a file": (
        ["diff", "{recipe}", "{adapter}"],
        "{recipe} has no adapter_config.json; name an adapter folder",
    ),
    "base folder": (
        ["verify", "{adapter}", "--base", "{root}/nothing"],
        "there is no folder {root}/nothing; set --base to",
    ),
    "base of something else": (
        ["verify", "{adapter}", "--base", "{data}"],
        "{data} has neither params.json (Meta) nor config.json",
    ),
    "tower": (["verify", "{adapter}", "--tower", "{root}/nothing"], "{root}/nothing"),
    "tower weights": (["verify", "{adapter}", "--tower-weights", "{root}/nothing"], "{root}/nothing"),
    "tower_every": (["verify", "{adapter}", "--tower-every", "9"], "set --tower-every to 1 to 4"),
    "precision": (["verify", "{adapter}", "--precision", "fp8"], "precision is 'fp8'; choose fp32 or bf16"),
    "no number": (
        ["verify", "{adapter}", "--tower-every", "x"],
        "argument --tower-every: invalid int value: 'x'",
    ),
    "base of another adapter": (
        ["routes", "{adapter}", "--tower-every", "1"],
        "was trained with tower_every 2, not 1; set --tower-every to 2",
    ),
    "picture": (
        ["routes", "{adapter}", "--png", "{root}/nowhere/x.png"],
        "{root}/nowhere/x.png cannot be written",
    ),
    "no modality": (
        ["merge", "{adapter}", "--out", "{root}/out"],
        "name one modality with --modality: text, image",
    ),
    "modality": (
        ["export", "{adapter}", "--modality", "imag", "--out", "{root}/out"],
        "{adapter} has no modality 'imag', did you mean image?; it has text, image",
    ),
    "no out": (["merge", "{adapter}", "--modality", "text"], "the following arguments are required: --out"),
    "out is taken": (
        ["merge", "{adapter}", "--modality", "text", "--out", "{data}"],
        "{data} exists; choose another name, or remove it",
    ),
    "out cannot be": (
        ["export", "{adapter}", "--modality", "text", "--out", "{recipe}/out"],
        "{recipe}/out cannot be written, {recipe} is no folder that allows it",
    ),
    "no checkpoint": (["convert", "{root}/x.pth", "{root}/out"], "there is no file {root}/x.pth"),
    "no LaVIN": (
        ["convert", "{recipe}", "{root}/out"],
        "{recipe} cannot be read, it may be truncated or no LaVIN checkpoint",
    ),
    "name of a checkpoint": (["convert", "{adapter}", "{root}/out"], "{root}/out does not end in .pth"),
    "settings for a folder": (
        ["convert", "{adapter}", "{root}/x.pth", "--r", "4"],
        "settings and --base are for a checkpoint; a folder has its own",
    ),
    "not expressible": (["convert", "{adapter}", "{root}/x.pth"], "base.tower_every is 2, LaVIN has 4 only"),
    "rule": (
        ["convert", "{recipe}", "{root}/out", "--tower-rule", "x"],
        "argument --tower-rule: invalid choice: 'x'",
    ),
    "one adapter": (
        ["average", "{adapter}", "--out", "{root}/out"],
        "there are 1 adapters to average; name two or more",
    ),
    "weights": (
        ["average", "{adapter}", "{run}", "--out", "{root}/out", "--weights", "1,x"],
        "argument --weights: '1,x' is not numbers with commas between",
    ),
    "number of weights": (
        ["average", "{adapter}", "{run}", "--out", "{root}/out", "--weights", "1"],
        "there are 1 weights for 2 adapters; give one each",
    ),
    "sum of weights": (
        ["average", "{adapter}", "{run}", "--out", "{root}/out", "--weights", "1,1"],
        "the weights sum to 2, a mean's to 1; change them, or ask for a weighted sum",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_one_line(trained_world: World, refused: Callable[..., str], name: str) -> None:
    arguments, message = WRONG[name]
    places = {key: getattr(trained_world, key) for key in ("root", "adapter", "run", "data", "recipe")}
    before = trained_world.files()
    line = refused(*(argument.format(**places) for argument in arguments))
    assert message.format(**places) in line
    assert trained_world.files() == before


def test_a_checkpoint_that_says_otherwise(world, checkpoint, refused, tmp_path):
    line = refused("convert", checkpoint, tmp_path / "a", "--temperature", 5)
    assert f"{checkpoint} says itself that temperature is 1.0; leave --temperature out" in line


def test_a_checkpoint_of_another_base(world, checkpoint, refused, tmp_path):
    assert "converted" not in refused("convert", checkpoint, tmp_path / "a", "--base", ROOT / "assets/mini")
    assert not (tmp_path / "a").exists()


def test_a_folder_without_a_base(world, refused):
    edit_json(world.adapter / "adapter_config.json", lambda d: d.pop("base"))
    assert "does not say which base it was made for; name one with --base" in refused("verify", world.adapter)


def test_a_folder_that_cannot_be_written(world, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    line = refused("merge", world.adapter, "--modality", "text", "--out", tmp_path / "hf")
    assert f"{tmp_path}/hf cannot be written, {tmp_path} is no folder that allows it" in line
