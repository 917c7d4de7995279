"""What --plan says of a step: memory with and without checkpointing, whether it fits, how long it takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from data.source import SourceSettings
from finetune import step_plan as planning
from finetune.estimate import Epoch, epoch_of, products_per_second
from finetune.plan import plan
from finetune.recipe import read_stages
from finetune.step_plan import shape_of, step_plan
from models.errors import ModelError
from tests.finetune.conftest import ROOT

CPU = torch.device("cpu")


def recipe_of(name: str, *words: str):
    return next(iter(read_stages(ROOT / "recipes" / f"{name}.yaml", words).values()))


def planned(recipe, device=None):
    return step_plan(recipe, plan(recipe, "x"), device)


def test_checkpointing_takes_less_and_computes_more():
    kinds = {}
    for kind in ("none", "selective", "full"):
        kinds[kind] = planned(recipe_of("mini-world", "--optim.checkpointing", kind)).needs
    assert kinds["none"].activations > kinds["selective"].activations > kinds["full"].activations
    assert kinds["none"].flops < kinds["selective"].flops < kinds["full"].flops


def test_half_the_tokens_take_half_the_memory():
    whole, half = (
        planned(recipe_of("lavin-7b", "--optim.tokens_per_batch", str(count))).needs for count in (4096, 2048)
    )
    assert half.activations == pytest.approx(whole.activations / 2, rel=0.02)
    assert half.flops == pytest.approx(whole.flops / 2, rel=0.02)


def test_a_recipe_for_7b_keeps_what_docs_performance_says():
    """6 D + 2 F numbers of two bytes per token and block; what tower and adapters keep comes on top."""
    recipe = recipe_of("lavin-7b")
    found = planned(recipe)
    least = 2 * (6 * 4096 + 2 * 11008) * 31 * sum(found.shape.tokens)
    assert least < found.needs.activations < 1.35 * least


def test_it_says_whether_it_fits_and_what_would_help(monkeypatch):
    recipe = recipe_of("mini-world")
    monkeypatch.setattr(planning, "products_per_second", lambda *_: 1e12)
    monkeypatch.setattr(planning, "free_bytes", lambda _: 2**40)
    text = planned(recipe, CPU).table()
    assert "on cpu: fits in the 1024.0 GiB" in text and "make it fit" not in text
    monkeypatch.setattr(planning, "free_bytes", lambda _: 2**20)
    text = planned(recipe, CPU).table()
    assert "does not fit in the 0.0 GiB" in text
    assert "to make it fit: optim.checkpointing selective or full" in text


def test_without_the_device_nothing_is_said_of_it():
    text = planned(recipe_of("lavin-7b")).table()
    assert "peak: " in text and "on cuda" not in text and "an epoch" not in text


def test_the_epoch_is_counted_by_the_texts(world):
    recipe = recipe_of("mini-world", "--data.root", str(world.data), "--data.validation", "")
    found = epoch_of(recipe, slots=6)
    assert found is not None and (found.samples, found.pictures) == (4, 1)
    assert 4 * 10 < found.tokens < 4 * 200
    assert epoch_of(recipe_of("mini-world", "--data.root", "nowhere"), slots=6) is None


def test_the_shape_is_that_of_the_data():
    recipe = recipe_of("mini-world")
    shape = shape_of(recipe, 6, Epoch(samples=100, tokens=5000, pictures=50))
    assert set(shape.tokens) == {50} and len(shape.tokens) == 4096 // 50
    assert sum(size is not None for size in shape.pictures) == round(len(shape.tokens) / 2)
    assert sum(shape.tokens) <= recipe.optim.tokens_per_batch


def test_products_are_timed_on_the_device():
    assert 1e9 < products_per_second(CPU, torch.float32) < 1e14


def test_a_quantised_base_counts_what_is_unpacked():
    recipe = recipe_of("lavin-7b", "--variant", "lite")
    assert planned(recipe).unpacked == 2 * 4096 * 11008
    assert planned(recipe_of("lavin-7b")).unpacked == 0


def test_a_base_that_is_not_known_is_named():
    recipe = recipe_of("lavin-7b")
    with pytest.raises(ModelError, match="names no decoder"):
        planned(replace(recipe, base=replace(recipe.base, architecture="")))


def test_pictures_of_many_slots_leave_the_text_its_tokens():
    """Half of the samples with 2,880 slots, 320 tokens of text each: the mean is shorter than a picture."""
    recipe = recipe_of("llava-next-llama3-8b")
    shape = shape_of(recipe, 2880, Epoch(samples=1000, tokens=1_760_000, pictures=500))
    assert [size is not None for size in shape.pictures] == [True, True, False, False]
    assert set(shape.supervised) == {213}


def test_a_small_mixture_is_looked_at_from_end_to_end(tmp_path):
    """Sources lie one after the other: the first rows tell nothing of the last ones."""
    for name, text in (("short", "a" * 35), ("long", "b" * 3500)):
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": text}]
        rows = [{"id": f"{name}{index}", "conversations": turns} for index in range(50)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    recipe = recipe_of("llava-7b")
    mix = tuple(SourceSettings(path=tmp_path / f"{name}.json") for name in ("short", "long"))
    found = epoch_of(replace(recipe, data=replace(recipe.data, mix=mix)), slots=0)
    assert found is not None and found.samples == 100
    assert found.tokens == pytest.approx(50 * (20 + 3) + 50 * (2000 + 3), rel=0.01)
