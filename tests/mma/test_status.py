"""What is told of the adapters of a model is what there is, in every state it can be in."""

from __future__ import annotations

import pytest

from mma import LoraConfig, MMAConfig
from mma.bank import AdapterBank
from models.build import build_base

SMALL = MMAConfig(tower="modality", projector_hidden=8)


@pytest.fixture
def model(tiny_base):
    """A model that holds two adapters, of which `b` is active."""
    model = build_base(tiny_base).model
    model.adapters.add_adapter("a", LoraConfig(r=2, targets=("q_proj",), modalities=("text",)))
    model.adapters.add_adapter("b", SMALL)
    return model


def states(model):
    return {one.name: one.state for one in model.adapters.get_model_status().adapters}


def test_a_bare_model(tiny_base):
    model = build_base(tiny_base).model
    status = model.adapters.get_model_status()
    assert (status.enabled, status.adapters, status.available_adapters) == (False, (), ())
    assert status.total_params == sum(p.numel() for p in model.parameters())
    assert (status.trainable_params, status.num_adapter_layers, status.bank_slots) == (0, 0, 0)
    assert "0 trained, on cpu" in str(status)


def test_what_is_held_and_what_it_costs(model):
    status = model.adapters.get_model_status()
    assert status.base_model_type == "MultimodalLM"
    assert status.total_params == sum(p.numel() for p in model.parameters())
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ("b",), ("a", "b"))
    assert (status.merged_adapters, status.merged_modalities, status.devices) == ((), (), ("cpu",))
    assert status.num_adapter_layers == 2 + 2 + 4  # q of two blocks, their norms, the tower's
    a, b = status.adapters
    assert (a.kind, a.r, a.sites, a.state) == ("LORA", 2, 2, "held")
    assert a.parameters == 2 * 2 * (32 + 32)
    assert (b.kind, b.r, b.sites, b.state) == ("MMA", 8, 6, "active")
    assert b.parameters == status.trainable_params
    assert b.bytes == 4 * b.parameters
    model.adapters.parts["b"].half()
    assert model.adapters.get_model_status().adapters[1].bytes < b.bytes


def test_the_lines_of_a_report(model):
    lines = {line.name: line for line in model.adapters.report()}
    norm = lines["decoder.blocks.1.attn_norm"]
    # A, a; two routes of B in two groups, b; R, c
    assert (norm.channels, norm.parameters) == (32, 8 * 32 + 8 + 2 * 32 * 4 + 2 * 32 + 2 * 32 + 2)
    assert lines["modality"].channels is None
    assert lines["modality"].parameters == 2 * 32
    assert lines.keys() > {"projector", "modality", "tower.visual.transformer.resblocks.0.ln_1"}
    assert sum(line.parameters for line in lines.values()) == sum(
        p.numel() for p in model.adapters.trainable_parameters().values()
    )


def test_every_state_has_its_word(model):
    adapters = model.adapters
    assert states(model) == {"a": "held", "b": "active"}
    with adapters.disable_adapter():
        assert states(model) == {"a": "held", "b": "held"}
        assert not adapters.get_model_status().enabled
    adapters.set_adapter("a")
    assert states(model) == {"a": "active", "b": "held"}
    adapters.delete_adapter("a")
    assert states(model) == {"b": "held"}


def test_a_merged_model_has_the_parameters_it_had(model):
    """Merged tensors stand in for the base's, so they are not counted beside them."""
    adapters = model.adapters
    before = adapters.get_model_status()
    for modality, told in (("image", ("image",)), (None, ("text", "image"))):
        adapters.merge_adapter(modality)
        status = adapters.get_model_status()
        assert (status.merged_adapters, status.merged_modalities) == (("b",), told)
        assert (status.total_params, status.trainable_params) == (
            before.total_params,
            before.trainable_params,
        )
        assert states(model) == {"a": "held", "b": "merged"}
        assert f"merged for {', '.join(told)}; the first is in the base's weights" in str(status)
        with adapters.disable_adapter():
            off = adapters.get_model_status()
            assert (off.enabled, off.merged_adapters) == (False, ())
    adapters.unmerge_adapter()
    assert adapters.get_model_status() == before


def test_the_table_for_a_terminal(model):
    model.adapters.merge_adapter("text")
    told = str(model.adapters.get_model_status()).splitlines()
    total = sum(p.numel() for p in model.adapters.base.values()) + sum(
        p.numel() for name in "ab" for p in model.adapters.trainable_parameters(name).values()
    )
    assert told[0].startswith(f"MultimodalLM: {total:,} parameters, ")
    assert told[1].split() == ["adapter", "kind", "r", "sites", "parameters", "KB", "state"]
    assert told[2].split() == ["a", "LORA", "2", "2", "256", "1.0", "held"]
    assert told[3].split()[:4] == ["b", "MMA", "8", "6"]
    assert told[3].endswith("  merged")
    assert told[4:] == ["merged for text; the first is in the base's weights"]


def test_what_lies_in_a_bank_is_told_beside(model):
    bank = AdapterBank(model.adapters, 3)
    status = model.adapters.get_model_status()
    assert (status.bank_slots, status.bank_free) == (3, 3)
    bank.put("b")
    status = model.adapters.get_model_status()
    assert (status.bank_slots, status.bank_free) == (3, 2)
    assert [one.state for one in status.adapters] == ["held", "active", "in the bank"]
    assert (status.adapters[2].name, status.adapters[2].kind) == ("b", "MMA")
    assert "bank: 1 of 3 slots taken" in str(status)
    bank.close()
    assert model.adapters.get_model_status().bank_slots == 0
