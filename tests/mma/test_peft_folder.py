"""LoRA folders are PEFT's: what is exported or trained here computes the same there, and back again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig as TheirConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from data.packing import collate
from mma import AdapterError, BottleneckConfig, LoraConfig, MMAConfig
from models.build import load
from tests.mma.conftest import picture, sample
from tests.mma.oracles import BASES, bare, close, logits, make_system, settings_of, shake, their_logits

# PEFT says of a layer without a bias that LoRA's cannot be merged; transformers wants a new name of PEFT.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]
SEEN = collate([sample("seen", 9, 2), sample("too", 7, 2)], picture)
READ = collate([sample("read", 6, 0), sample("more", 11, 0)], picture)
BOTH = collate([sample("seen", 9, 2), sample("read", 6, 0)], picture)
OURS, OUR_TENSORS = "mma_config.json", "mma_model.safetensors"
THEIRS, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """A system on each kind of base, without an adapter."""
    return {name: make_system(tmp_path_factory.mktemp("base"), name) for name in BASES}


@pytest.fixture
def system(systems):
    """The usual one, without an adapter before and after."""
    yield systems["grouped"]
    _empty(systems["grouped"])


def _empty(system):
    adapters = system.model.adapters
    for name in adapters.names:
        adapters.delete_adapter(name)


def with_peft(system, folder):
    """The same with a folder that PEFT loads onto it."""
    return PeftModel.from_pretrained(bare(system), folder).eval()


def embedded(system, batch):
    """What enters the decoder, the pictures' embeddings among it."""
    with torch.no_grad():
        return system.model.embed(batch).x


# From here to PEFT


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize(
    "config",
    [
        MMAConfig(temperature=1.0, dropout=0.0),
        MMAConfig(temperature=0.3, placement="both", layers=(1,), r=6, groups=1, routes=3, scale=0.5),
        MMAConfig(placement="mlp", tower="none", modalities=("image", "text")),
        BottleneckConfig(r=3, placement="both", scale=2.0),
    ],
    ids=["attn", "both, one layer", "mlp", "bottleneck"],
)
def test_an_exported_adapter_computes_the_same_in_peft(systems, base, config, tmp_path):
    system = systems[base]
    adapters = system.model.adapters
    try:
        adapters.add_adapter("a", config)
        shake(adapters)
        for modality, batch in (("text", READ), ("image", SEEN)):
            wanted = logits(system.model, batch)
            adapters.export_peft_lora(tmp_path / modality, modality)
            assert settings_of(tmp_path / modality)["r"] == config.r
            assert torch.equal(logits(system.model, batch), wanted)
            theirs = with_peft(system, tmp_path / modality)
            given = None if modality == "text" else embedded(system, batch)
            assert close(their_logits(theirs, batch, given), wanted, 1e-4)
            with theirs.disable_adapter():
                assert not close(their_logits(theirs, batch, given), wanted, 0.01)
    finally:
        _empty(system)


def test_an_export_holds_the_decoders_part_and_says_how_to_use_it(system, tmp_path):
    adapters = system.model.adapters
    adapters.add_adapter("a", MMAConfig(temperature=1.0, layers=(1,)))
    shake(adapters)
    adapters.export_peft_lora(tmp_path / "image", "image")
    assert {p.name for p in (tmp_path / "image").iterdir()} == {THEIRS, TENSORS, OURS, "README.md"}
    settings = settings_of(tmp_path / "image")
    assert settings["target_modules"] == [f"model.layers.1.self_attn.{name}_proj" for name in "kqv"]
    assert settings["base_model_name_or_path"] == system.settings.decoder
    assert (settings["lora_alpha"], settings["lora_bias"]) == (8.0, True)
    card = (tmp_path / "image" / "README.md").read_text()
    for said in ("LoRA of rank 8 for `image`", "2 embeddings of the picture", "image prefix", "PeftModel"):
        assert said in card
    assert "with `text` is laid out" not in card
    recorded = settings_of(tmp_path / "image", OURS)
    assert recorded["provenance"] == {"exported_from": "MMA", "adapter": "a", "modalities": ["image"]}
    adapters.export_peft_lora(tmp_path / "image", "text")  # again, over an export
    assert settings_of(tmp_path / "image", OURS)["provenance"]["modalities"] == ["text"]


def test_an_export_is_a_lora_here_too(system, tmp_path):
    """It answers text as the adapter did, and remembers its base."""
    adapters = system.model.adapters
    adapters.add_adapter("a", MMAConfig(temperature=1.0, placement="both", layers=(0,)))
    shake(adapters)
    wanted = logits(system.model, READ)
    adapters.export_peft_lora(tmp_path / "text", "text")
    adapters.load_adapter(tmp_path / "text", "again")
    assert close(logits(system.model, READ), wanted, 1e-5)
    assert adapters.config.layers == (0,)
    assert adapters.config.modalities == ("text",)


def test_where_all_modalities_are_alike_none_is_named(system, tmp_path):
    adapters = system.model.adapters
    adapters.add_adapter("a", BottleneckConfig())
    adapters.export_peft_lora(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert "for `text` or `image`" in card
    adapters.add_adapter("b", MMAConfig())
    for modality, match in ((None, "name the one modality; choose text or image"), ("x", "no modality 'x'")):
        with pytest.raises(AdapterError, match=match):
            adapters.export_peft_lora(tmp_path / "b", modality)
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_exported(system, tmp_path):
    adapters = system.model.adapters
    with pytest.raises(AdapterError, match="none is active"):
        adapters.export_peft_lora(tmp_path / "a", "text")
    adapters.add_adapter("relu", BottleneckConfig(activation="relu"))
    with pytest.raises(AdapterError, match="activation 'relu' is not linear"):
        adapters.export_peft_lora(tmp_path / "a", "text")
    adapters.add_adapter("a", MMAConfig())
    adapters.save_pretrained(tmp_path / "kept")
    kept = (tmp_path / "kept" / TENSORS).read_bytes()
    with pytest.raises(AdapterError, match="kept holds a trained adapter, which an export would replace"):
        adapters.export_peft_lora(tmp_path / "kept", "text")
    assert (tmp_path / "kept" / TENSORS).read_bytes() == kept
    adapters.merge_adapter("text")
    with pytest.raises(AdapterError, match=r"cannot export while it is merged; call unmerge_adapter\(\)"):
        adapters.export_peft_lora(tmp_path / "a", "text")
    adapters.unmerge_adapter()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


# Trained here


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(),
        LoraConfig(r=4, alpha=5.0, rslora=True, bias=True, placement="attn", projector_hidden=8),
        LoraConfig(r=2, targets=("q_proj", "down_proj"), layers=(1,), bias=True),
        LoraConfig(r=2, placement="mlp", modalities=("text",)),
    ],
    ids=["default", "rslora", "targets", "text alone"],
)
def test_what_is_trained_here_computes_the_same_in_peft(system, config, tmp_path):
    model, adapters = system.model, system.model.adapters
    adapters.add_adapter("a", config)
    before = {name: p.detach().clone() for name, p in adapters.trainable_parameters().items()}
    seeing = "image" in config.modalities
    batch = BOTH if seeing else READ
    _train(lambda: model.loss(batch), adapters.trainable_parameters().values())
    moved = [name for name, p in adapters.trainable_parameters().items() if not torch.equal(p, before[name])]
    assert moved == list(before)  # the projector's too
    wanted = logits(model, batch)
    adapters.save_pretrained(tmp_path / "a", {"seed": 1})
    assert (tmp_path / "a" / OUR_TENSORS).is_file() == seeing
    assert all(".lora_" in name for name in load_file(tmp_path / "a" / TENSORS))
    theirs = with_peft(system, tmp_path / "a")
    assert close(their_logits(theirs, batch, embedded(system, batch)), wanted, 1e-4)
    assert theirs.peft_config["default"].use_rslora == config.rslora
    adapters.load_adapter(tmp_path / "a", "again")
    assert adapters.config == replace(config, alpha=config.alpha)
    assert torch.equal(logits(model, batch), wanted)
    whole = load(tmp_path / "a")
    assert torch.equal(logits(whole.model, batch), wanted)


def _train(loss, parameters, steps=4):
    """A few real steps."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_a_trained_lora_is_not_overwritten_by_an_export(system, tmp_path):
    adapters = system.model.adapters
    adapters.add_adapter("a", LoraConfig())
    adapters.save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterError, match="holds a trained adapter"):
        adapters.export_peft_lora(tmp_path / "a")


# Trained with PEFT

THEIR_SETTINGS = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "all linear": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.1},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["o_proj", "gate_proj"]},
    "bias": {"r": 2, "lora_bias": True, "target_modules": ["k_proj", "up_proj", "down_proj"]},
    "one layer": {"r": 3, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "pattern": {"r": 3, "target_modules": r".*layers\.0\.mlp\..*_proj"},
    "left out": {"r": 3, "target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "gaussian": {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}


def trained_with_peft(system, folder, **settings):
    """The PEFT model of a LoRA that was trained a few steps on text with PEFT, and saved by it."""
    torch.manual_seed(3)
    model = get_peft_model(bare(system), TheirConfig(task_type="CAUSAL_LM", **settings))
    model.train()
    ids = READ.ids[None, : READ.lengths[0]]
    _train(lambda: model(input_ids=ids, labels=ids).loss, (p for p in model.parameters() if p.requires_grad))
    model.save_pretrained(folder)
    return model.eval()


# PEFT takes a LoRA's bias, when it saves one, for a piece of a matrix.
@pytest.mark.filterwarnings(r"ignore:.*lora_B\.bias.* A 1-D or zero-sized")
@pytest.mark.parametrize("settings", THEIR_SETTINGS.values(), ids=list(THEIR_SETTINGS))
@pytest.mark.parametrize("base", ["grouped", "biases"])
def test_what_is_trained_in_peft_computes_the_same_here(systems, base, settings, tmp_path):
    system = systems[base]
    theirs = trained_with_peft(system, tmp_path / "a", **settings)
    wanted = their_logits(theirs, READ)
    assert not close(their_logits(bare(system), READ), wanted, 0.01)
    try:
        adapters = system.model.adapters
        adapters.load_adapter(tmp_path / "a", "a")
        assert close(logits(system.model, READ), wanted, 1e-4)
        adapters.merge_adapter("text")
        assert close(logits(system.model, READ), wanted, 1e-4)
        adapters.unmerge_adapter()
        adapters.save_pretrained(tmp_path / "b")
        again = with_peft(system, tmp_path / "b")
        assert close(their_logits(again, READ), wanted, 1e-4)
    finally:
        _empty(system)


def test_a_folder_of_peft_can_be_trained_on_here(system, tmp_path):
    trained_with_peft(system, tmp_path / "a", r=4, target_modules=["q_proj"])
    adapters = system.model.adapters
    adapters.load_adapter(tmp_path / "a", "a")
    before = logits(system.model, READ)
    _train(lambda: system.model.loss(READ), adapters.trainable_parameters().values())
    assert system.model.loss(READ) < torch.nn.functional.cross_entropy(before, READ.targets, reduction="sum")
