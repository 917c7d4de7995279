"""Runs with workers and caches: the same samples, losses and adapters as without, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import train
from data.packing import PackedBatch
from data.picture_workers import Pictures
from finetune import features
from finetune.recipe import Recipe, read_recipe
from finetune.samples import Data, open_sources, read_data
from mma import AdapterConfig, BottleneckConfig, LoraConfig, MMAConfig, PartsConfig
from models.build import System, build_new
from models.tower import Tower
from tests.small import World as Small
from training.errors import RunError
from training.parallel import World

STILL = {
    "mma": MMAConfig(tower="none", dropout=0.0, projector_hidden=8),
    "bottleneck": BottleneckConfig(r=4, dropout=0.0, tower_placement="none", projector="linear"),
    "lora": LoraConfig(r=4, dropout=0.0, projector="linear"),
    "parts": PartsConfig(projector="mlp2x_gelu"),
}
MOVING = {
    "mma": MMAConfig(),
    "bottleneck": BottleneckConfig(r=4),
    "parts": PartsConfig(tuned=("tower.last1",)),
}


@pytest.fixture
def made(trained_world: Small, tmp_path: Path) -> Callable[..., tuple[Pictures, System, Data]]:
    """(adapter, settings of data) -> the pictures of a recipe, its system and data."""

    def make(adapter: AdapterConfig, **settings: object) -> tuple[Pictures, System, Data]:
        recipe: Recipe = read_recipe(trained_world.recipe)
        recipe = replace(recipe, data=replace(recipe.data, **settings))  # type: ignore[arg-type]
        system = build_new(recipe.base, adapter)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in system.model.adapters.trainable_parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        data = read_data(recipe, open_sources(recipe), system, lambda line: None)
        return features.pictures_of(recipe, system, data, World()), system, data

    return make


def batch(pictures: Pictures, data: Data) -> PackedBatch:
    return pictures.batch([*data.validation, *data.held])


def loss_and_gradients(system: System, given: PackedBatch) -> tuple[float, dict[str, Tensor]]:
    trained = system.model.adapters.trainable_parameters()
    system.model.adapters.freeze()
    system.model.zero_grad()
    loss = system.model.train().loss(given)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


@pytest.mark.parametrize("kind", STILL)
def test_features_give_the_loss_and_gradients_of_views(made, tmp_path, kind, monkeypatch):
    plain, system, data = made(STILL[kind])
    views = batch(plain, data)
    assert views.pictures is not None and views.pictures.shape[1:] == (3, 16, 16)
    loss, gradients = loss_and_gradients(system, views)
    assert any(grad.abs().max() > 0 for name, grad in gradients.items() if name.startswith("projector"))
    for turn in ("written", "read"):
        cached, system, data = made(STILL[kind], feature_cache=tmp_path / "features")
        if turn == "read":
            monkeypatch.setattr(Tower, "forward", None)  # it is not run any more
            monkeypatch.setattr(features, "picture_loader", None)
        given = batch(cached, data)
        assert given.pictures is not None and given.pictures.shape[1:] == (2, 32)
        monkeypatch.setattr(Tower, "forward", None)
        assert given.sizes == views.sizes
        found, found_gradients = loss_and_gradients(system, given)
        monkeypatch.undo()
        assert found == pytest.approx(loss, rel=1e-5)
        assert found_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MOVING)
def test_a_trained_tower_has_no_constant_features(made, tmp_path, kind):
    with pytest.raises(RunError, match=r"feature_cache is set, but the recipe trains the tower \(.*tower"):
        made(MOVING[kind], feature_cache=tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_features_of_another_tower_or_layer_are_not_taken(made, trained_world, tmp_path):
    _, system, _ = made(STILL["lora"])
    known = features._about(system, features=True)
    assert features._about(system, features=True) == known
    changes = (
        {"tower_every": 1},
        {"precision": "bf16"},
        {"tower": "the same weights, another activation"},
    )
    others = [replace(system.settings, **change) for change in changes]
    told = {features._about(replace(system, settings=other), features=True) for other in others}
    system.model.adapters.identity = {**system.model.adapters.identity, "tower_digest": "another"}
    told.add(features._about(system, features=True))
    assert len(told | {known}) == 5
    views = {features._about(replace(system, settings=other)) for other in others}
    assert views == {features._about(system)}, "views do not depend on the tower's weights"


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["validation"]["loss"] if "validation" in line else line["loss"] for line in lines]


def test_runs_with_workers_and_caches_are_the_same_run(trained_world, tmp_path, capsys):
    runs = {
        "cache": ["--data.picture_cache", f"{tmp_path}/views"],
        "again": ["--data.picture_cache", f"{tmp_path}/views"],
        "workers": ["--data.workers", "1", "--data.picture_cache", f"{tmp_path}/views"],
    }
    wanted = (trained_world.adapter / "adapter_model.safetensors").read_bytes()
    for name, words in runs.items():
        folder = tmp_path / name
        assert train.main([str(trained_world.recipe), "--run.folder", str(folder), *words]) == 0
        assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == wanted, name
        assert losses(folder) == losses(trained_world.run)
    assert len(list((tmp_path / "views").rglob("*/*"))) == 2


def test_a_run_on_kept_features_has_the_losses_of_one_without(trained_world, tmp_path, capsys):
    words = [str(trained_world.recipe), "--adapter.tower", "none", "--run.folder"]
    kept = ["--data.feature_cache", f"{tmp_path}/features"]
    for name, more in (("plain", []), ("written", kept), ("read", kept)):
        assert train.main([*words, f"{tmp_path}/{name}", *more]) == 0
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert losses(tmp_path / "read") == losses(tmp_path / "written")
    capsys.readouterr()
    assert train.main([str(trained_world.recipe), "--run.folder", f"{tmp_path}/moving", *kept]) == 2
    error = capsys.readouterr().err
    assert "data.feature_cache is set, but the recipe trains the tower" in error and error.count("\n") == 1


def test_wrong_settings_are_one_line(trained_world):
    for words, line in (
        (["--data.workers", "-1"], r"data\.workers is -1: it must be at least 0"),
        (["--data.workers", "many"], r"data\.workers"),
    ):
        with pytest.raises(RunError, match=line):
            read_recipe(trained_world.recipe, words)


def test_workers_are_taken_where_there_are_pictures(made, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(features, "Pictures", lambda load, workers, kept: asked.append(workers))
    monkeypatch.setattr(features, "_cores", lambda: 16)
    made(STILL["lora"])
    made(STILL["lora"], workers=0)
    made(STILL["lora"], workers=3)
    monkeypatch.setattr(features, "_has_pictures", lambda data: False)
    made(STILL["lora"])
    assert asked == [4, 0, 3, 0]
