"""Training one adapter while a bank holds others, and banks on other kinds of models."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data.packing import PackedBatch, collate
from mma import AdapterError, Adapters, MMAConfig, Site
from mma.bank import AdapterBank
from models.build import System, build_new
from models.multimodal import MultimodalLM
from tests.mma.banks import (
    ADAPTERS,
    ANSWERED_BY,
    LIKE,
    NAMES,
    SAMPLES,
    buffers_of,
    mixed,
    with_bank,
    write_adapters,
)
from tests.mma.conftest import picture
from tests.mma.test_adapters import config, logits, shake


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """A folder of every adapter; do not write there."""
    return write_adapters(tiny_base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def system(tiny_system, folders) -> System:
    """The tiny system with all 8 adapters in a bank with a slot to spare."""
    return with_bank(tiny_system(), folders)


def gradients(model: MultimodalLM, batch: PackedBatch) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(batch).backward()
    trained = model.adapters.trainable_parameters().items()
    return {key: torch.zeros_like(p) if p.grad is None else p.grad.clone() for key, p in trained}


@pytest.mark.parametrize("tower", ["token", "modality", "none"])
def test_one_adapter_is_trained_among_others(tiny_system, folders, tower):
    model = tiny_system(tower=tower).model
    adapters = model.adapters
    model.train()
    own = [one for one, name in zip(SAMPLES, ANSWERED_BY, strict=True) if name == "default"]
    want = gradients(model, collate(own, picture))
    bank = AdapterBank(adapters, 9, LIKE)
    for name in NAMES:
        bank.load(folders[name], name)
    resident = buffers_of(bank)
    parts = {key: p.clone() for key, p in bank._parts.named_parameters()}
    base = {key: p.clone() for key, p in adapters.base.items()}
    together = mixed(SAMPLES, ANSWERED_BY)
    got = gradients(model, together)
    for part in ("up", "router"):
        assert any(x.abs().max() > 1e-3 for key, x in got.items() if part in key)
    for key, gradient in got.items():
        torch.testing.assert_close(gradient, want[key], atol=1e-4, rtol=1e-4)
    torch.optim.AdamW(adapters.trainable_parameters().values(), lr=1e-2).step()
    assert all(p.grad is None for p in [*adapters.base.values(), *bank._parts.parameters()])
    assert all(torch.equal(p, base[key]) for key, p in adapters.base.items())
    assert all(torch.equal(p, parts[key]) for key, p in bank._parts.named_parameters())
    after = buffers_of(bank)
    assert all(torch.equal(after[key], resident[key]) for key in resident)
    model.eval()
    live = logits(model, together)
    bank.put("default")
    adapters.add_adapter("next", config())
    assert adapters.active == "next"
    assert (logits(model, together) - live).abs().max() < 1e-5


def test_a_step_without_a_sample_of_the_trained_adapter(system):
    names = [name if name != "default" else None for name in ANSWERED_BY]
    system.model.train()
    system.model.loss(mixed(SAMPLES, names)).backward()
    trained = system.model.adapters.trainable_parameters().values()
    assert all(p.grad is None or not p.grad.any() for p in trained)


def test_training_after_an_evaluation_in_inference_mode(system):
    together = mixed(SAMPLES, ANSWERED_BY)
    with torch.inference_mode():
        want = system.model(together).clone()
    assert torch.equal(logits(system.model, together), want)
    got = gradients(system.model, together)
    assert any(gradient.any() for gradient in got.values())
    shake(system.model.adapters, 3)
    assert not torch.equal(logits(system.model, together), want)


def test_a_base_in_bf16(tiny_base, folders):
    # Their digests name the base in fp32, so what they hold is put in by hand.
    system = build_new(replace(tiny_base, precision="bf16"), config())
    adapters = system.model.adapters
    adapters.delete_adapter("default")
    singly = {}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        adapters.add_adapter(name, settings)
        shake(adapters, seed)
        singly[name] = [logits(system.model, collate([one], picture)) for one in SAMPLES]
    bank = AdapterBank(adapters, 9, LIKE)
    for name in NAMES:
        bank.put(name)
        adapters.delete_adapter(name)
    assert all(t.dtype == torch.bfloat16 for t in buffers_of(bank).values())
    names = [NAMES[i % 8] for i in range(32)]
    together = logits(system.model, mixed(SAMPLES, names)).split(3)
    errors, sizes = [], []
    for i, (name, got) in enumerate(zip(names, together, strict=True)):
        errors.append((got - singly[name][i]).abs().mean())
        sizes.append((singly[name][i] - singly[NAMES[(i + 1) % 8]][i]).abs().mean())
    assert torch.stack(errors).mean() < 0.05 * torch.stack(sizes).mean()


def test_a_copied_model_has_a_bank_of_its_own(system):
    together = mixed(SAMPLES, ANSWERED_BY)
    want = logits(system.model, together)
    copy = deepcopy(system.model)
    copy.adapters.bank.remove("token")
    assert torch.equal(logits(system.model, together), want)
    with pytest.raises(AdapterError, match="none named 'token'"):
        logits(copy, together)


def test_a_norm_without_parameters():
    model = nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8)).to(torch.bfloat16)
    adapters = Adapters(model, [Site("0", 8, "decoder", "attn", 0, ("1",))], lambda _: {}, lambda: None)
    bank = AdapterBank(adapters, 2, MMAConfig())
    assert {tensor.dtype for tensor in buffers_of(bank).values()} == {torch.bfloat16}
