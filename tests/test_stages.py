"""Methods, stages, mixtures and processes through the entry point, on the small world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import train
from finetune.recipe import read_stages
from finetune.task import split
from models.build import build_base, load
from tests.small import World
from training.errors import RunError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recipe(world: World) -> Path:
    """Captions first, then LoRA on conversations and words alone."""
    picture = world.picture("train")
    images = world.data / "images"
    name = str(picture.relative_to(images))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Lines of ice."}]
    rows = [{"id": str(i), "image": name, "conversations": turns} for i in range(4)]
    more = [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "Steam."}]
    talk = [{"id": "t", "image": name, "conversations": turns + more}, {"id": "w", "conversations": more}]
    (world.root / "captions.json").write_text(json.dumps(rows))
    (world.root / "talk.json").write_text(json.dumps(talk))
    (world.root / "alpaca.json").write_text(
        json.dumps([{"instruction": "Say ice.", "input": "", "output": "ice"}])
    )
    captions = {"path": str(world.root / "captions.json"), "images": str(images)}
    talking = [
        {"path": str(world.root / "talk.json"), "images": str(images)},
        {"path": str(world.root / "alpaca.json")},
    ]
    content = {
        "run": {"folder": str(world.root / "staged"), "device": "cpu"},
        "base": {
            "decoder": str(world.decoder),
            "tower": str(world.tower),
            "tower_features": "patches",
            "tower_layer": -1,
        },
        "adapter": {"projector": "mlp2x_gelu"},
        "data": {"max_tokens": 300},
        "optim": {"batch": 2, "tokens_per_batch": 600, "warmup_steps": 0, "threads": 1, "epochs": 1},
        "stages": [
            {"name": "pretrain", "method": "parts", "data": {"template": "plain", "mix": [captions]}},
            {
                "name": "tune",
                "method": "lora",
                "adapter": {"r": 2},
                "data": {"template": "vicuna_v1", "mix": talking},
                "optim": {"parts": {"projector": 0}},
            },
        ],
    }
    path = world.root / "stages.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def change(recipe: Path, **stage: object) -> None:
    """Puts settings into the second stage."""
    content = yaml.safe_load(recipe.read_text())
    content["stages"][1].update(stage)
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_stage_begins_with_the_adapter_of_the_one_before(world, recipe, capsys):
    assert train.main([str(recipe)]) == 0
    said = capsys.readouterr().out
    folder = world.root / "staged"
    first = load_file(folder / "pretrain/adapter/adapter_model.safetensors")
    beside = load_file(folder / "tune/adapter/mma_model.safetensors")
    assert first.keys() == beside.keys() == {f"projector.{i}.{x}" for i in (0, 2) for x in ("weight", "bias")}
    assert all(torch.equal(first[name], beside[name]) for name in first)  # its rate is 0
    assert "begun with 4 tensors" in said
    assert (folder / "stages.txt").read_text() == "pretrain\ntune\n"
    system = load(folder / "tune/adapter")
    assert system.model.adapters.identity["template"] == "vicuna_v1"
    assert system.image_slots == 4
    updates = [p for name, p in system.model.adapters.trainable_parameters().items() if "lora_B" in name]
    assert any(update.any() for update in updates)


def test_a_stopped_run_goes_on_where_it_was(world, recipe, capsys, monkeypatch):
    real, seen = train.fine_tune, []

    def only_the_first(stage, *rest):
        seen.append(stage.run.folder.name)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return real(stage, *rest)

    monkeypatch.setattr(train, "fine_tune", only_the_first)
    assert train.main([str(recipe)]) == 130
    monkeypatch.setattr(train, "fine_tune", real)
    moved = world.root / "moved"
    (world.root / "staged").rename(moved)
    assert train.main(["--resume", str(moved)]) == 0
    assert "stage pretrain is finished" in capsys.readouterr().out
    assert (moved / "tune/adapter").is_dir()
    assert not (world.root / "staged").exists()


@pytest.mark.parametrize(
    ("method", "adapter", "part"),
    [
        ("mma", {"r": 2}, "adapters"),
        ("bottleneck", {"r": 2}, "adapters"),
        ("lora", {"r": 2, "tuned": ["decoder.norm"]}, "decoder"),
        ("parts", {"tuned": ["decoder", "tower.last1"]}, "tower"),
    ],
)
def test_every_method_trains_and_comes_back(world, recipe, method, adapter, part):
    change(recipe, method=method, adapter=adapter, optim={"lr": 0.01})
    assert train.main([str(recipe)]) == 0
    system = load(world.root / "staged/tune/adapter")
    adapters = system.model.adapters
    parts = {system.model.part_of(name) for name in adapters.trainable_parameters()}
    assert {"projector", part} <= parts
    with adapters.disable_adapter():
        base = {name: p for name, p in system.model.decoder.named_parameters() if ".adapters." not in name}
        assert all(not p.requires_grad for p in base.values())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"method": "lorra"}, "stage tune: method is 'lorra'; choose mma, lora, bottleneck, parts"),
        ({"name": "pretrain"}, "a stage is named 'pretrain'; give each a name"),
        (
            {"adapter": {"projector": "linear"}},
            "stage tune: it begins with projector.2.weight [32, 32] of the stage before, but has no place",
        ),
        ({"data": {"template": "vicuna"}}, "data.template is 'vicuna': choose "),
        ({"data": {"mix": [{"path": "nowhere.json"}]}}, "nowhere.json"),
        ({"optim": {"parts": {"towre": 1}}}, "towre"),
        ({"adapter": {"projector": "mean-9"}}, "projector: 'mean-9' asks for 9 tokens"),
        ({"adapter": {"projector": "conv"}}, "projector: 'conv' is no kind of projector; choose class_token"),
        ({"base": {"pictures": "anyres"}, "adapter": {"projector": "resampler-4"}}, "choose linear or mlp2x"),
    ],
)
def test_a_wrong_stage_is_one_line(recipe, capsys, stage, message):
    change(recipe, **stage)
    assert train.main([str(recipe)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_several_pictures_and_videos_have_routes_of_their_own(world, recipe):
    picture = world.picture("train")
    video = world.root / "video"
    video.mkdir()
    for index in range(5):
        (video / f"{index}.png").write_bytes(picture.read_bytes())
    rows = [
        {"id": "two", "images": [picture.name, picture.name], "conversations": talk("<image> or <image>?")},
        {"id": "film", "video": "video", "conversations": talk("What moves?")},
        {"id": "words", "conversations": talk("Why?")},
        {"id": "one", "image": picture.name, "conversations": talk("<image>What?")},
    ]
    (world.root / picture.name).write_bytes(picture.read_bytes())
    (world.root / "all.json").write_text(json.dumps(rows))
    modalities = ["text", "image", "images", "video"]
    mix = [{"path": str(world.root / "all.json"), "frames": 3}]
    change(
        recipe,
        method="mma",
        adapter={"r": 2, "modalities": modalities},
        data={"template": "vicuna_v1", "mix": mix},
    )
    content = yaml.safe_load(recipe.read_text())
    content["stages"][1]["optim"] = {"batch": 4, "epochs": 2, "lr": 0.05}
    recipe.write_text(yaml.safe_dump(content))
    assert train.main([str(recipe)]) == 0
    adapters = load(world.root / "staged/tune/adapter").model.adapters
    assert all(list(weights) == modalities for weights in adapters.routes().values())
    before = load_file(world.root / "staged/tune/checkpoints/step-00000001/adapter_model.safetensors")
    after = adapters.trainable_parameters()["modality.weight"]
    assert (after - before["modality.weight"]).abs().amax(1).gt(0).all()  # every modality was trained


def talk(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "ice"}]


def test_a_start_must_have_its_place(world, recipe, capsys):
    """A single run begins with any folder whose tensors it can take, whatever the template."""
    assert train.main([str(recipe)]) == 0
    start = world.root / "staged/pretrain/adapter"
    content = yaml.safe_load(recipe.read_text())
    alone = {**content, **content["stages"][0]}
    for key in ("stages", "name"):
        del alone[key]
    path = world.root / "alone.yaml"
    path.write_text(yaml.safe_dump(alone))
    capsys.readouterr()
    more = ["--start", str(start), "--optim.lr", "1e-9"]
    assert train.main([str(path), *more, "--run.folder", str(world.root / "goes-on")]) == 0
    assert f"begun with 4 tensors of {start}" in capsys.readouterr().out
    begun, ended = (
        load_file(folder / "adapter_model.safetensors") for folder in (start, world.root / "goes-on/adapter")
    )
    assert all(torch.allclose(begun[name], ended[name], atol=1e-6) for name in begun)
    folder = world.root / "refused"
    assert train.main([str(path), *more, "--run.folder", str(folder), "--adapter.projector", "linear"]) == 2
    error = capsys.readouterr().err
    assert "has projector.0.bias [32], but here there is none" in error or "has projector.2" in error
    assert "give the new adapter the same projector and tuned parts" in error
    assert not folder.exists()


@pytest.mark.parametrize("pictures", ["anyres", "pad"])
@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_pictures_of_any_resolution_train(world, recipe, pictures, projector):
    content = yaml.safe_load(recipe.read_text())
    content["base"] |= {"pictures": pictures, "grids": "1x2,2x1,2x2"}
    content["adapter"]["projector"] = projector
    recipe.write_text(yaml.safe_dump(content))
    assert train.main([str(recipe)]) == 0
    system = load(world.root / "staged/tune/adapter")
    assert (system.image_slots is None) == (pictures == "anyres")
    assert ("newline.weight" in system.model.adapters.trainable_parameters()) == (pictures == "anyres")


@pytest.mark.parametrize("setting", ["--run.save_every=9", "--run.shard=true", "--run.split=true"])
def test_two_processes_train_the_same(world, recipe, setting):
    change(recipe, method="mma", adapter={"r": 2, "dropout": 0.1})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    folders = [world.root / "one", world.root / "two"]
    for how, folder in zip(([sys.executable], command), folders, strict=True):
        arguments = [*how, "train.py", str(recipe), "--run.folder", str(folder), setting]
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(folder / "tune/adapter/adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_what_cannot_be_split_is_refused(recipe, capsys):
    change(recipe, run={"shard": True, "split": True})
    assert train.main([str(recipe)]) == 2
    assert "run.shard and run.split are both set: turn off one of the two" in capsys.readouterr().err
    change(recipe, run={"split": True})
    lora = read_stages(recipe)["tune"]
    system = build_base(lora.base)
    with pytest.raises(RunError, match="tuned parts of the decoder need whole layers: take run.shard"):
        split(lora, system, torch.device("cpu"))
    change(recipe, run={"split": True}, method="parts", adapter={"tuned": ["decoder.norm"]})
    with pytest.raises(RunError, match="need whole layers"):
        split(read_stages(recipe)["tune"], system, torch.device("cpu"))
