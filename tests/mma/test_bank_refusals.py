"""What a bank refuses, in one line, and that it is then as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mma import AdapterError, BottleneckConfig, LoraConfig
from mma.bank import AdapterBank
from models.build import System
from models.generate import Sampling, generate
from tests.mma.banks import (
    LIKE,
    NAMES,
    buffers_of,
    with_bank,
    write_adapters,
)
from tests.mma.test_adapters import config, logits


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """A folder of every adapter; do not write there."""
    return write_adapters(tiny_base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def system(tiny_system, folders) -> System:
    """The tiny system with all 8 adapters in a bank with a slot to spare."""
    return with_bank(tiny_system(), folders)


def test_a_name_must_be_resident(system, batch):
    with pytest.raises(AdapterError, match=r"none named 'x' in the bank; resident are \['token', 'vector'"):
        logits(system.model, replace(batch, adapters=("x", None)))
    with pytest.raises(AdapterError, match="1 adapters are named for 2 samples; name one for each"):
        logits(system.model, replace(batch, adapters=("token",)))
    with pytest.raises(AdapterError, match="none named 'x' in the bank"):
        system.model.adapters.bank.remove("x")


def test_naming_adapters_needs_a_bank(tiny_system, batch):
    system = tiny_system()
    named = replace(batch, adapters=("default", None))
    with pytest.raises(AdapterError, match="no bank is open on this model; open one first"):
        logits(system.model, named)
    with pytest.raises(AdapterError, match="no bank is open on this model"):
        generate(system, named, Sampling(max_new_tokens=1))


def test_an_answer_that_fails_gives_its_turn_back(system, batch):
    for ask in (logits, lambda model, batch: generate(system, batch, Sampling(max_new_tokens=1))):
        with pytest.raises(AdapterError, match="none named 'x'"):
            ask(system.model, replace(batch, adapters=("x", None)))
        system.model.adapters.add_adapter("other", config())
        system.model.adapters.delete_adapter("other")


def test_a_full_bank(system, folders):
    adapters = system.model.adapters
    bank = adapters.bank
    bank.load(folders["token"], "ninth")
    adapters.add_adapter("tenth", config())
    for ask in (lambda: bank.load(folders["token"], "eleventh"), lambda: bank.put("tenth")):
        with pytest.raises(AdapterError, match="all 9 slots of the bank are taken; remove an adapter first"):
            ask()
    with pytest.raises(AdapterError, match="already one named 'token' in the bank; choose another name"):
        bank.load(folders["token"], "token")
    bank.remove("blind")
    bank.put("tenth")
    assert bank.names == (*(name for name in NAMES if name != "blind"), "ninth", "tenth")


def test_a_folder_that_is_refused_leaves_the_bank_as_it_was(system, folders, tmp_path, batch):
    adapters, bank = system.model.adapters, system.model.adapters.bank
    before, want = buffers_of(bank), logits(system.model, batch)
    adapters.add_adapter("wider", config(r=16))
    adapters.save_pretrained(tmp_path / "wider")
    adapters.delete_adapter("wider")
    adapters.set_adapter("default")
    for path, reason in ((tmp_path / "wider", "r 16, the bank's slots are made for 8"), (tmp_path, "has no")):
        with pytest.raises(AdapterError, match=reason):
            bank.load(path, "new")
        assert bank.names == NAMES
        assert adapters.names == ("default",) and adapters.active == "default"
        after = buffers_of(bank)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert torch.equal(logits(system.model, batch), want)
        assert all(p.requires_grad for p in adapters.trainable_parameters().values())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (config(r=16), "'new' has r 16, the bank's slots are made for 8; open the bank like the largest"),
        (config(routes=3), "'new' has routes 3, the bank's slots are made for 2"),
        (config(placement="mlp"), "'new' sits at decoder.blocks.0.mlp_norm, where the bank has no slots"),
        (config(tower_placement="mlp"), r"sits at tower.visual.transformer.resblocks.0.ln_2, where the bank"),
        (config(modalities=("image", "text")), "'new' knows other modalities than the bank"),
        (config(tower="legacy_no_residual"), "'new' is of a kind that a bank does not hold; load it instead"),
        (BottleneckConfig(), "'new' is of a kind that a bank does not hold"),
        (LoraConfig(), "'new' is of a kind that a bank does not hold"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_system, settings, reason):
    adapters = tiny_system().model.adapters
    bank = AdapterBank(adapters, 2)
    adapters.add_adapter("new", settings)
    with pytest.raises(AdapterError, match=reason):
        bank.put("new")
    assert bank.names == ()


def test_an_active_adapter_that_counts_modalities_otherwise_is_not_named(tiny_system, batch):
    model = tiny_system().model
    AdapterBank(model.adapters, 2)
    model.adapters.add_adapter("other", config(modalities=("image", "text")))
    with pytest.raises(AdapterError, match="'other' knows other modalities than the bank; open the bank"):
        logits(model, replace(batch, adapters=("other", None)))


def test_values_that_are_not_finite_are_refused(system):
    adapters, bank = system.model.adapters, system.model.adapters.bank
    with torch.no_grad():
        adapters.trainable_parameters()["modality.weight"][0, 3] = float("nan")
    with pytest.raises(AdapterError, match=r"modality.weight of 'default' is not finite, its training has"):
        bank.put("default")
    assert bank.names == NAMES


def test_an_adapter_whose_route_weights_overflow_is_refused(system):
    adapters, bank = system.model.adapters, system.model.adapters.bank
    before = buffers_of(bank)
    with torch.no_grad():
        adapters.trainable_parameters()["decoder.blocks.0.attn_norm.up_bias"].fill_(3e38)
    with pytest.raises(AdapterError, match="the routing table at decoder.* of 'default' is not finite"):
        bank.put("default")
    assert bank.names == NAMES
    assert all(torch.equal(x, before[key]) for key, x in buffers_of(bank).items())


def test_opening_is_refused(tiny_system):
    adapters = tiny_system().model.adapters
    with pytest.raises(AdapterError, match="a bank of 0 slots holds nothing; give it at least 1"):
        AdapterBank(adapters, 0)
    for like in (config(tower="legacy_no_residual"), BottleneckConfig(), LoraConfig()):
        with pytest.raises(AdapterError, match="a bank holds mixture-of-modality adapters with a residual"):
            AdapterBank(adapters, 1, like)
    adapters.merge_adapter("text")
    with pytest.raises(AdapterError, match="an adapter is merged on this model already; close or unmerge"):
        AdapterBank(adapters, 1)
    adapters.unmerge_adapter()
    first = AdapterBank(adapters, 1)
    with pytest.raises(AdapterError, match="a bank is open on this model already; close or unmerge it"):
        AdapterBank(adapters, 1)
    assert adapters.bank is first
    with pytest.raises(AdapterError, match="a bank is open on this model, and merging would change its base"):
        adapters.merge_adapter("text")
    with adapters.disable_adapter(), pytest.raises(AdapterError, match="none is active"):
        AdapterBank(adapters, 1)


def test_opening_that_fails_leaves_nothing(tiny_system, monkeypatch):
    model = tiny_system(tower="none").model
    before = list(model.named_modules())
    made = []

    def fail_late(self, site):
        made.append(site)
        if len(made) == 4:
            raise MemoryError
        return make(self, site)

    make = AdapterBank._make_stack
    monkeypatch.setattr(AdapterBank, "_make_stack", fail_late)
    with pytest.raises(MemoryError):
        AdapterBank(model.adapters, 2, LIKE)
    assert list(model.named_modules()) == before
    assert model.adapters.bank is None
