"""LoRA folders that cannot be computed here, or were made for another base, are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig as TheirConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from mma import AdapterError, LoraConfig, MMAConfig
from mma.peft_folder import MOVES_BASE, PLAIN
from tests.mma.oracles import bare, make_system, settings_of, shake

# transformers wants a new name of PEFT
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
OURS, OUR_TENSORS = "mma_config.json", "mma_model.safetensors"
THEIRS, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A system that is kept without an adapter."""
    return make_system(tmp_path_factory.mktemp("base"))


@pytest.fixture
def system(base):
    """The same, without an adapter before and after."""
    yield base
    for name in base.model.adapters.names:
        base.model.adapters.delete_adapter(name)


def change(folder, name=THEIRS, **settings):
    """Writes other settings into a folder's file."""
    (folder / name).write_text(json.dumps({**settings_of(folder, name), **settings}))


FOREIGN = {
    "use_dora": True,
    "bias": "lora_only",
    "modules_to_save": ["lm_head"],
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "layer_replication": [[0, 2], [1, 2]],
    "trainable_token_indices": [3],
    "target_parameters": ["weight"],
    "fan_in_fan_out": True,
    "alora_invocation_tokens": [1, 2],
    "use_qalora": True,  # variants
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1.0},
    "use_something_new": True,
    "new_config": {"x": 1},
}


@pytest.fixture
def folder(system, tmp_path):
    """A plain LoRA that PEFT wrote."""
    model = get_peft_model(bare(system), TheirConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_every_setting_that_is_refused_is_tried():
    assert PLAIN.keys() <= FOREIGN.keys()


@pytest.mark.parametrize("key", sorted(FOREIGN))
def test_what_peft_can_and_we_cannot_is_refused_by_name(system, folder, key):
    adapters = system.model.adapters
    for value in PLAIN.get(key, (False, None, {})):
        change(folder, **{key: value})
        adapters.load_adapter(folder, "a")
        adapters.delete_adapter("a")
    change(folder, **{key: FOREIGN[key]})
    with pytest.raises(AdapterError, match=f"theirs was made with {key} .*, which cannot be computed here;"):
        adapters.load_adapter(folder, "a")
    assert adapters.names == ()


@pytest.mark.parametrize("start", [*MOVES_BASE, "pissa_niter_16", "PiSSA"])
def test_a_start_that_changed_the_base_is_refused(system, folder, start):
    change(folder, init_lora_weights=start)
    with pytest.raises(AdapterError, match=f"began as '{start}', which changes the base's weights too"):
        system.model.adapters.load_adapter(folder)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "made with use_dora True"),
        ({"bias": "all"}, "made with bias 'all'"),
        ({"modules_to_save": ["norm"]}, r"made with modules_to_save \['norm'\]"),
        ({"rank_pattern": {"q_proj": 2}}, "made with rank_pattern"),
        ({"trainable_token_indices": [5]}, "made with trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "began as 'pissa'"),
        (
            {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]},
            "has nothing for decoder.blocks.* train all the layers it targets in the same blocks",
        ),
    ],
)
def test_what_peft_itself_saved_so_is_refused(system, tmp_path, settings, match):
    whole = {"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    get_peft_model(bare(system), TheirConfig(**whole)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(AdapterError, match=match):
        system.model.adapters.load_adapter(tmp_path / "theirs")
    assert system.model.adapters.names == ()


def test_settings_that_make_no_sense_are_refused(system, folder):
    for settings, match in (
        ({"lora_alpha": 0}, "lora_alpha 0, so it adds nothing"),
        ({"lora_alpha": -1}, r"alpha is -1; it must not be negative.*\(in .*adapter_config.json\)"),
        ({"r": "four"}, r"r is 'four'; it must be a whole number \(in .*adapter_config.json\)"),
        ({"r": 5}, "but the settings ask for"),
        ({"lora_bias": True}, "lacks 4 tensors: .*lora_B.bias"),
    ):
        before = settings_of(folder)
        change(folder, **settings)
        with pytest.raises(AdapterError, match=match):
            system.model.adapters.load_adapter(folder)
        change(folder, **before)
    tensors = load_file(folder / TENSORS)
    for spoilt, match in (
        ({}, "holds no LoRA tensors; save or fetch it again"),
        ({**tensors, "base_model.model.x.lora_A.weight": torch.ones(1)}, "a tensor for .*x.lora_A.weight"),
        ({name.removeprefix("base_model."): x for name, x in tensors.items()}, "which is no linear layer"),
        (dict(list(tensors.items())[1:]), "lacks 1 tensors"),
    ):
        save_file(spoilt, folder / TENSORS)
        with pytest.raises(AdapterError, match=match):
            system.model.adapters.load_adapter(folder)


# Made here


@pytest.fixture
def ours(system, tmp_path):
    """A LoRA with a projector that was made here."""
    adapters = system.model.adapters
    adapters.add_adapter("a", LoraConfig(r=4, bias=True, targets=("q_proj",), projector_hidden=8))
    shake(adapters)
    adapters.save_pretrained(tmp_path / "ours")
    adapters.delete_adapter("a")
    return tmp_path / "ours"


def test_another_base_is_refused(ours, tmp_path):
    """A folder that PEFT wrote says nothing of its base; ours does, exported ones too."""
    (tmp_path / "other").mkdir()
    other = make_system(tmp_path / "other", "multi-head")
    with pytest.raises(
        AdapterError, match=r"ours was made for another decoder \(\w+, here is \w+\); load the"
    ):
        other.model.adapters.load_adapter(ours)
    assert other.model.adapters.names == ()


def test_an_export_remembers_its_base_too(system, tmp_path):
    adapters = system.model.adapters
    adapters.add_adapter("a", MMAConfig())
    adapters.export_peft_lora(tmp_path / "a", "text")
    for key, part in (
        ("base_digest", "decoder"),
        ("tower_digest", "tower"),
        ("tokenizer_digest", "tokenizer"),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / key)
        change(tmp_path / key, OURS, **{key: "0" * 64})
        with pytest.raises(AdapterError, match=f"was made for another {part}"):
            adapters.load_adapter(tmp_path / key, "b")
        (tmp_path / key / OURS).unlink()  # by PEFT's settings alone
        adapters.load_adapter(tmp_path / key, "b")
        adapters.delete_adapter("b")


@pytest.mark.parametrize(
    ("settings", "key", "there", "recorded"),
    [
        ({"lora_alpha": 3.0}, "lora_alpha", "3.0", "8"),
        ({"lora_dropout": 0.5}, "lora_dropout", "0.5", "0.0"),
        ({"use_rslora": True}, "use_rslora", "True", "False"),
        ({"lora_bias": False}, "lora_bias", "False", "True"),
        ({"r": 2}, "r", "2", "4"),
    ],
)
def test_both_files_must_say_the_same(system, ours, settings, key, there, recorded):
    change(ours, **settings)
    match = rf"{key} is {there}, but {recorded} in mma_config.json; delete that file to go by PEFT's \(in"
    with pytest.raises(AdapterError, match=match):
        system.model.adapters.load_adapter(ours)


def test_our_own_file_is_read_strictly(system, ours):
    good = {name: (ours / name).read_bytes() for name in (OURS, OUR_TENSORS)}
    for settings, match in (
        ({"format_version": "2.0"}, "mma_config.json has format version 2.0, this program reads"),
        ({"template": "other"}, "was trained with template other, here it is lavin"),
        ({"projector_hidden": 9}, "but the settings ask for"),
        ({"modalities": ["text"]}, "tensors too many: projector"),
        ({"placement": "x"}, "placement is 'x'; choose attn, mlp, both"),
    ):
        change(ours, OURS, **settings)
        with pytest.raises(AdapterError, match=match):
            system.model.adapters.load_adapter(ours)
        (ours / OURS).write_bytes(good[OURS])
    for content, match in ((b"{", "is not JSON"), (b"[]", "holds no table of settings")):
        (ours / OURS).write_bytes(content)
        with pytest.raises(AdapterError, match=f"mma_config.json {match}"):
            system.model.adapters.load_adapter(ours)
    (ours / OURS).write_bytes(good[OURS])
    (ours / OUR_TENSORS).write_bytes(good[OUR_TENSORS][:-9])
    with pytest.raises(AdapterError, match="mma_model.safetensors cannot be read, it may be truncated"):
        system.model.adapters.load_adapter(ours)
    (ours / OUR_TENSORS).unlink()
    with pytest.raises(AdapterError, match="lacks 4 tensors: projector"):
        system.model.adapters.load_adapter(ours)
    (ours / OUR_TENSORS).write_bytes(good[OUR_TENSORS])
    system.model.adapters.load_adapter(ours)


def test_what_peft_has_no_place_for_lies_beside(ours):
    assert not set(settings_of(ours)) & {"base_digest", "format_version", "projector_hidden", "provenance"}
    assert set(load_file(ours / OUR_TENSORS)) == {
        f"projector.{part}.{leaf}" for part in ("down", "up") for leaf in ("weight", "bias")
    }
