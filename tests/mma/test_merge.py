"""Merging is exact, and leaves no trace: whatever the adapter, the modality and the base."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from data.packing import collate
from mma import AdapterError, Adapters, BottleneckConfig, LoraConfig, MMAConfig, Site
from mma.merge import Difference
from mma.sites import Wrapped
from models.generate import Sampling, generate
from tests.mma.conftest import picture, sample
from tests.mma.oracles import BASES, close, logits, make_system, shake, summed

SAMPLES = {"text": sample("read", 6, 0), "image": sample("seen", 9, 2)}
BATCHES = {name: collate([one], picture) for name, one in SAMPLES.items()}
BOTH = collate([*SAMPLES.values(), sample("more", 11, 2)], picture)
WITHOUT_TOKENS = {"tower": "modality"}  # the rule that can be merged


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """A system on each kind of base, without an adapter."""
    return {name: make_system(tmp_path_factory.mktemp("base"), name) for name in BASES}


@contextmanager
def emptied(system):
    """The system is without an adapter again after the block."""
    try:
        yield system
    finally:
        adapters = system.model.adapters
        adapters.unmerge_adapter()
        for name in adapters.names:
            adapters.delete_adapter(name)


@pytest.fixture
def system(systems):
    """The usual one."""
    with emptied(systems["grouped"]):
        yield systems["grouped"]


@contextmanager
def untouched(system):
    """Inside the block something is done to a system, and afterwards there is no trace of it."""
    model = system.model
    held = dict(model.named_parameters())
    bits = {name: p.detach().clone() for name, p in held.items()}
    modules = dict(model.named_modules())
    with model.adapters.disable_adapter():
        bare = logits(model, BOTH)
    yield
    after = dict(model.named_parameters())
    assert after.keys() == held.keys()
    assert all(after[name] is held[name] and torch.equal(after[name], bits[name]) for name in held)
    assert dict(model.named_modules()) == modules
    with model.adapters.disable_adapter():
        assert torch.equal(logits(model, BOTH), bare)


@st.composite
def configs(draw):
    """Settings of any kind of adapter that can be merged."""
    shared = {
        "dropout": 0.0,
        "layers": draw(st.sampled_from([(), (0,), (1,), (0, 1)])),
        "placement": draw(st.sampled_from(["attn", "mlp", "both"])),
        "modalities": draw(st.sampled_from([("text", "image"), ("image", "text"), ("a", "image", "text")])),
        "projector_hidden": 8,
    }
    groups = draw(st.sampled_from([1, 2, 4]))
    r = groups * draw(st.integers(1, 4))
    scale = draw(st.sampled_from([0.5, 1.0, 2.0]))
    kind = draw(st.sampled_from([MMAConfig, MMAConfig, MMAConfig, BottleneckConfig, LoraConfig]))
    if kind is LoraConfig:
        rest = {"alpha": draw(st.sampled_from([0.0, 4.0])), "rslora": draw(st.booleans())}
        return LoraConfig(**shared, r=r, bias=draw(st.booleans()), **rest)
    if kind is BottleneckConfig:
        return BottleneckConfig(**shared, r=r, scale=scale, activation="none")
    return MMAConfig(
        **shared,
        r=r,
        groups=groups,
        routes=draw(st.integers(1, 4)),
        temperature=draw(st.sampled_from([0.2, 1.0, 10.0])),
        scale=scale,
        tower=draw(st.sampled_from(["token", "modality", "none"])),
        tower_placement=draw(st.sampled_from(["attn", "mlp", "both"])),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs(), base=st.sampled_from(sorted(BASES)), seed=st.integers(0, 2**16))
def test_merged_equals_unmerged_and_leaves_no_trace(systems, config, base, seed):
    """Each modality alone, both at once in either order, in one pass and token by token from the cache."""
    with emptied(systems[base]) as system:
        model, adapters = system.model, system.model.adapters
        adapters.add_adapter("a", config)
        shake(adapters, seed)
        wanted = {name: logits(model, batch) for name, batch in [*BATCHES.items(), ("both", BOTH)]}
        answers = {name: generate(system, batch, Sampling(4)) for name, batch in BATCHES.items()}
        with adapters.disable_adapter():
            assert not close(logits(model, BOTH), wanted["both"], 0.01)
        with untouched(system):
            for name, batch in BATCHES.items():
                adapters.merge_adapter(name)  # a second time over the first: from the original bits
                assert close(logits(model, batch), wanted[name], 1e-5)
                assert generate(system, batch, Sampling(4)) == answers[name]
            for order in (["text", "image"], ["image", "text"], None):
                adapters.merge_adapter(order)
                assert close(logits(model, BOTH), wanted["both"], 1e-5)
            for name, batch in BATCHES.items():
                assert generate(system, batch, Sampling(4)) == answers[name]
            adapters.unmerge_adapter()
        assert torch.equal(logits(model, BOTH), wanted["both"])


@pytest.mark.parametrize("kind", [MMAConfig, BottleneckConfig, LoraConfig])
@pytest.mark.parametrize("modality", ["text", "image", None])
def test_a_merged_model_is_made_of_the_bases_own_modules(system, kind, modality):
    """So it runs at the base's own speed, other adapters held beside or not."""
    model, adapters = system.model, system.model.adapters
    modules = {path: type(module) for path, module in model.named_modules() if "adapters" not in path}
    settings = WITHOUT_TOKENS if kind is MMAConfig else {}
    for name, other in (("mma", MMAConfig()), ("lora", LoraConfig()), ("a", kind(**settings))):
        adapters.add_adapter(name, other)
        shake(adapters)
    wanted = logits(model, BOTH)
    report = adapters.merge_adapter(modality)
    assert report.sites == tuple(line.name for line in adapters.report() if line.channels)
    assert report.sites_left == {}
    assert (report.taken, report.left) == (("a",), ("mma", "lora"))
    differences = [m for m in model.modules() if isinstance(m, Difference)]
    if modality is None and kind is MMAConfig:
        assert len(differences) == 2 * 3  # q, k and v of two blocks
    else:
        assert {p: type(m) for p, m in model.named_modules() if "adapters" not in p} == modules
    if modality is None:
        assert close(logits(model, BOTH), wanted, 1e-5)
    adapters.unmerge_adapter()
    assert torch.equal(logits(model, BOTH), wanted)
    assert sum(isinstance(m, Wrapped) for m in model.modules()) == len(adapters.places)


def test_what_cannot_be_merged_in_the_tower_goes_on_unmerged(system):
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("a", MMAConfig(tower="token", temperature=1.0))
    shake(adapters)
    adapters.add_adapter("b", MMAConfig(placement="both", tower_placement="both"))
    shake(adapters, 8)
    wanted = logits(model, BOTH)
    report = adapters.merge_adapter()
    tower = {f"tower.visual.transformer.resblocks.{i}.ln_{j}" for i in range(4) for j in (1, 2)}
    assert report.sites_left.keys() == tower
    assert all("routes every picture token by itself" in reason for reason in report.sites_left.values())
    assert {p for p, m in model.named_modules() if isinstance(m, Wrapped)} == tower
    assert close(logits(model, BOTH), wanted, 1e-5)
    assert str(report) == (
        "merged b for text at 4 sites, image as a difference\n"
        "left: a\n"
        "8 sites go on unmerged: tower rule 'token' routes every picture token by itself, so no fixed "
        "weights can be merged; leave the tower unmerged, or train with tower: modality"
    )


def test_several_adapters_are_summed(system):
    model, adapters = system.model, system.model.adapters
    names, weights = ("a", "b", "c"), (0.5, -1.0, 2.0)
    for seed, name in enumerate(names):
        adapters.add_adapter(
            name, MMAConfig(r=4 + 2 * seed, temperature=1.0, routes=1 + seed, **WITHOUT_TOKENS)
        )
        shake(adapters, seed)
    adapters.add_adapter("d", MMAConfig())
    adapters.set_adapter("a")  # whose projector is used
    with summed(adapters, names, weights):
        wanted = logits(model, BOTH)
    adapters.set_adapter("d")
    with untouched(system):
        report = adapters.merge_adapter(adapter_names=names, weights=weights)
        assert (report.taken, report.left) == (names, ("d",))
        assert close(logits(model, BOTH), wanted, 1e-5)
        for place, (name, batch) in enumerate(BATCHES.items()):
            adapters.merge_adapter(name, names, weights)
            assert close(logits(model, batch), wanted[3 * place :][:3], 1e-5)
        adapters.unmerge_adapter()
    assert adapters.active == "d"


@pytest.mark.parametrize("kind", [BottleneckConfig, LoraConfig])
def test_adapters_of_other_kinds_are_summed(system, kind):
    model, adapters = system.model, system.model.adapters
    for seed, name in enumerate(("a", "b")):
        adapters.add_adapter(name, kind(r=2 + seed))
        shake(adapters, seed)
    adapters.set_adapter("a")
    with summed(adapters, ("a", "b"), (1.0, 0.25)):
        wanted = logits(model, BOTH)
    adapters.merge_adapter(adapter_names=["a", "b"], weights=[1.0, 0.25])
    assert close(logits(model, BOTH), wanted, 1e-5)


def test_one_adapter_can_be_merged_with_a_weight(system):
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("a", MMAConfig(**WITHOUT_TOKENS))
    shake(adapters)
    with summed(adapters, ("a",), (0.3,)):
        wanted = logits(model, BOTH)
    adapters.merge_adapter(adapter_names="a", weights=[0.3])
    assert close(logits(model, BOTH), wanted, 1e-5)


def test_an_adapter_that_is_not_active_is_merged_whole(system):
    """With its own projector and its own tower sites, and the active one is active again afterwards."""
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("a", MMAConfig(placement="attn"))
    shake(adapters)
    wanted = logits(model, BOTH)
    adapters.add_adapter("b", MMAConfig(placement="both", tower="modality"))
    shake(adapters, 8)
    other = logits(model, BOTH)
    adapters.merge_adapter(adapter_names=["a"])
    assert adapters.active == "a"
    assert close(logits(model, BOTH), wanted, 1e-5)
    with adapters.disable_adapter():
        assert adapters.active is None
    assert close(logits(model, BOTH), wanted, 1e-5)
    adapters.unmerge_adapter()
    assert adapters.active == "b"
    assert torch.equal(logits(model, BOTH), other)


@pytest.mark.parametrize("modality", ["text", None])
def test_in_16_bit_the_error_is_that_of_one_rounding(tmp_path, modality):
    system = make_system(tmp_path, precision="bf16")
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("a", MMAConfig(temperature=1.0, **WITHOUT_TOKENS))
    shake(adapters)
    batch = BATCHES["text"] if modality else BOTH
    unmerged = logits(model, batch)
    with untouched(system):
        adapters.merge_adapter(modality)
        merged = logits(model, batch)
        assert {p.dtype for p in model.decoder.parameters()} == {torch.bfloat16}
        adapters.unmerge_adapter()
    with adapters.disable_adapter():
        learned = (logits(model, batch) - unmerged).abs().max()
    assert (merged - unmerged).abs().max() < 0.05 * learned


def test_a_modality_that_is_not_merged_is_refused(system):
    adapters = system.model.adapters
    adapters.add_adapter("a", MMAConfig())
    adapters.merge_adapter("text")
    with pytest.raises(AdapterError, match="is merged for text, but a sample carries image; unmerge it, or"):
        logits(system.model, BOTH)
    with pytest.raises(AdapterError, match="is merged for text, but a sample carries image"):
        generate(system, BATCHES["image"], Sampling(1))
    with adapters.disable_adapter():
        logits(system.model, BOTH)


def test_a_difference_must_be_told_what_its_tokens_carry(system):
    adapters = system.model.adapters
    adapters.add_adapter("a", MMAConfig())
    shake(adapters)
    adapters.merge_adapter()
    with pytest.raises(RuntimeError, match="must be told what its tokens carry"):
        system.model.decoder.blocks[0].attn.q_proj(torch.zeros(1, 32))


def test_layers_that_are_shared_cannot_take_two_sites_in():
    """Nor can a layer be merged of which it is not known what it reads."""
    model = nn.ModuleDict({"a": nn.LayerNorm(4), "b": nn.LayerNorm(4), "linear": nn.Linear(4, 4)})
    for readers, message in (
        (("linear",), "linear reads two sites, so it cannot take in both"),
        ((), "alone read a"),
    ):
        found = [Site(path, 4, "decoder", "attn", 0, readers) for path in ("a", "b")]
        adapters = Adapters(model, found, lambda _: {}, lambda: None)
        adapters.add_adapter("x", BottleneckConfig())
        with pytest.raises(AdapterError, match=message):
            adapters.merge_adapter()
        assert isinstance(model["a"], Wrapped)
        adapters.delete_adapter("x")
