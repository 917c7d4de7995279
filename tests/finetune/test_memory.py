"""What is counted without memory is what exists with it: the same step on the CPU, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.memory import META, Shape, _Living, needs, traced
from finetune.recipe import DataSettings, LoraRecipe, MMARecipe
from mma import LoraConfig, MMAConfig
from models.build import build_new, outline
from tests.models.test_multimodal import batch_of, sample
from training.settings import OptimSettings, RunSettings

SAMPLES = [sample("a", 40, seen=True), sample("b", 25, seen=False), sample("c", 30, seen=True)]


def counted(model, batch) -> tuple[int, int]:
    """Bytes kept and bytes at most, of a step that is computed."""
    model.train()
    living = _Living()
    held = [*model.parameters(), *model.buffers(), *model.adapters.all_parameters()]
    for parameter in model.adapters.trainable_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
        held.append(parameter.grad)
    living.know(
        [*held, batch.ids, batch.positions, batch.sources, batch.targets, batch.slots, batch.pictures]
    )
    with living:
        loss = model.loss(batch)
        kept = living.now
        loss.backward()
    return kept, living.most


def shape_of(batch) -> Shape:
    sizes = iter(batch.sizes)
    pictures = tuple(next(sizes) if kind == "image" else None for kind in batch.modalities)
    return Shape(batch.lengths, (len(batch.targets), 0, 0), pictures)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "settings", [MMAConfig(projector_hidden=8), LoraConfig(r=4, projector_hidden=8)], ids=["mma", "lora"]
)
def test_what_is_kept_is_counted_to_the_byte(tiny_base, settings, kind):
    model = build_new(tiny_base, settings).model
    with META:
        described = outline(tiny_base)
        described.adapters.add_adapter("default", settings)
    model.checkpointing = described.checkpointing = kind
    batch = batch_of(*SAMPLES)
    kept, most = counted(model, batch)
    found = traced(described, shape_of(batch))
    assert found.activations == pytest.approx(kept, rel=0.02)
    # What is computed again lives a little longer without memory: a block's worth, much of a tiny model.
    bound = 0.25 if kind == "full" else 0.1
    assert found.activations + found.working == pytest.approx(most, rel=bound)


def recipe_of(base, settings, **optim) -> MMARecipe:
    kind, method = (MMARecipe, "mma") if isinstance(settings, MMAConfig) else (LoraRecipe, "lora")
    run, data = RunSettings(folder=Path("run")), DataSettings(root=Path("data"))
    return kind(base=base, run=run, data=data, optim=OptimSettings(**optim), adapter=settings, method=method)


@pytest.mark.parametrize("kind", ["none", "full"])
def test_two_short_decoders_tell_of_a_deep_one(tiny_base, kind, monkeypatch):
    named = replace(tiny_base, decoder="absent", architecture="tinyllama-1.1b", tokenizer="")
    recipe = recipe_of(named, MMAConfig(projector_hidden=8), checkpointing=kind)
    shape = Shape((30, 20), (10, 10), ((16, 16), None))
    short = needs(recipe, shape)
    monkeypatch.setattr("finetune.memory.SHORT", 100)
    whole = needs(recipe, shape)
    assert short.activations == pytest.approx(whole.activations, rel=1e-3)
    assert short.flops == whole.flops
    assert short.working == pytest.approx(whole.working, rel=0.05)


def test_the_products_are_four_for_each_frozen_parameter_and_token(tiny_base):
    """And two where no gradient is asked for: the first layers' inputs."""
    model = outline(tiny_base)
    with META:
        model.adapters.add_adapter("default", MMAConfig(projector_hidden=8, tower="none"))
    tokens = 64
    found = traced(model, Shape((tokens,), (1,), (None,)))
    frozen = sum(p.numel() for p in model.decoder.blocks[0].parameters() if p.ndim == 2 and p.shape[0] > 8)
    frozen *= len(model.decoder.blocks)
    assert 0.7 * 4 * frozen * tokens < found.flops < 1.3 * 4 * frozen * tokens


def test_attention_is_put_back(tiny_base):
    before = torch.nn.functional.scaled_dot_product_attention
    model = outline(tiny_base)
    with META:
        model.adapters.add_adapter("default", MMAConfig(projector_hidden=8))
    traced(model, Shape((5,), (1,), (None,)))
    assert torch.nn.functional.scaled_dot_product_attention is before
