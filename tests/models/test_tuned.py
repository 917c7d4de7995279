"""Parts of a base of half precision tuned in full: they are kept in fp32 and compute with the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data.packing import collate
from mma import PartsConfig
from models.build import build_base
from models.generate import Sampling, generate
from tests.mma.conftest import picture, sample

WORDS = [
    ("decoder",),
    ("decoder.norm",),
    ("decoder.embed",),
    ("decoder.head",),
    ("decoder.blocks.0",),
    ("tower.last1",),
    ("decoder", "tower"),
]


@pytest.mark.parametrize("words", WORDS, ids="+".join)
def test_any_part_trains_and_answers_in_half_precision(tiny_base, words):
    model_of = {}
    for precision in ("fp32", "bf16"):
        system = build_base(replace(tiny_base, precision=precision))
        torch.manual_seed(0)
        system.model.adapters.add_adapter("tuned", PartsConfig(projector="linear", tuned=words))
        model_of[precision] = system
    batch = collate([sample("seen", 9, 2), sample("read", 6, 0)], picture)
    losses = {}
    for precision, system in model_of.items():
        losses[precision] = system.model.loss(batch)
        losses[precision].backward()
        trained = system.model.adapters.trainable_parameters()
        assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
    assert losses["bf16"].item() == pytest.approx(losses["fp32"].item(), rel=0.02)
    answers = generate(model_of["bf16"], batch, Sampling(max_new_tokens=3))
    assert len(answers) == 2
