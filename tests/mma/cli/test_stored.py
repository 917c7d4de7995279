"""Adapter folders read without their base, against what the base's owner knows of them."""

from __future__ import annotations

import peft
import pytest
import transformers

from mma import AdapterError, BottleneckConfig, LoraConfig, MMAConfig
from mma.cli.stored import read_stored
from tests.mma.cli.saved import PROVENANCE, save
from tests.small import edit_json, edit_tensors

KINDS = [
    MMAConfig(r=4, placement="both", tower="modality", projector_hidden=8),
    MMAConfig(r=4, layers=(1,), tower="none", projector_hidden=8),
    BottleneckConfig(r=4, placement="mlp", projector_hidden=8),
    LoraConfig(r=4, bias=True, tower_placement="attn", projector_hidden=8),
]


@pytest.mark.parametrize("config", KINDS)
def test_sites_and_parts_are_those_of_the_model(tiny_base, tmp_path, config):
    adapters = save(tmp_path / "a", tiny_base, config).model.adapters
    stored = read_stored(tmp_path / "a")
    wanted = {
        (adapters.exported_name(s.path), s.part, s.layer) for s, _ in adapters.places.modules_of("default")
    }
    if not isinstance(config, LoraConfig):  # only those have names that other software knows
        wanted = {(s.path, s.part, s.layer) for s, _ in adapters.places.modules_of("default")}
    assert {(site.path, site.part, site.layer) for site in stored.sites.values()} == wanted
    counts = dict.fromkeys(stored.sites, 0)
    for name, tensor in stored.tensors.items():
        counts[stored.owner_of(name)] = counts.get(stored.owner_of(name), 0) + tensor.numel()
    parts = set(counts) - set(stored.sites)
    assert parts == set(adapters.parts["default"].keys())
    assert sum(counts.values()) == sum(p.numel() for p in adapters.trainable_parameters().values())
    assert {key: stored.settings[key] for key in ("r", "placement")} == {
        "r": 4,
        "placement": config.placement,
    }
    assert stored.provenance == PROVENANCE
    assert stored.base["decoder"] == tiny_base.decoder


def test_tensors_are_grouped_by_what_they_are_for(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, KINDS[0])
    stored = read_stored(tmp_path / "a")
    site = "decoder.blocks.0.attn_norm"
    wanted = {
        f"{site}.down.bias": "down",
        f"{site}.up": "up",
        f"{site}.up_bias": "up",
        f"{site}.router.weight": "router",
        "tower.visual.transformer.resblocks.3.ln_1.route_logits": "router",
        "projector.up.weight": "projector",
        "modality.weight": "modality",
    }
    assert {name: stored.group_of(name) for name in wanted} == wanted
    assert {stored.group_of(name) for name in stored.tensors} == set(wanted.values())
    save(tmp_path / "b", tiny_base, KINDS[3])
    lora = read_stored(tmp_path / "b")
    assert {lora.group_of(name) for name in lora.tensors} == {"down", "up", "projector"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_folder_that_peft_wrote(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    model = transformers.LlamaForCausalLM(config)
    made = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=12, target_modules=["v_proj", "q_proj"])
    )
    made.save_pretrained(tmp_path)
    stored = read_stored(tmp_path)
    assert stored.description == {}
    assert sorted(site.path for site in stored.sites.values()) == [
        f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "v_proj")
    ]
    assert stored.settings == {
        "r": 4,
        "alpha": 12,
        "dropout": 0.0,
        "rslora": False,
        "bias": False,
        "targets": ["q_proj", "v_proj"],
    }


def test_the_routing_table_is_in_the_order_of_the_blocks(tiny_base, tmp_path):
    adapters = save(tmp_path / "a", tiny_base, KINDS[0]).model.adapters
    table = read_stored(tmp_path / "a").routing_table()
    assert table == adapters.routes()
    assert list(next(iter(table.values()))) == ["text", "image"]

    def to_block_10(d):
        d["routing_table"] = {
            name.replace("blocks.0", "blocks.10"): row for name, row in d["routing_table"].items()
        }

    def tensors_to_block_10(tensors):
        for name in [name for name in tensors if ".blocks.0." in name]:
            tensors[name.replace("blocks.0", "blocks.10")] = tensors.pop(name)

    edit_json(tmp_path / "a/adapter_config.json", to_block_10)
    edit_tensors(tmp_path / "a/adapter_model.safetensors", tensors_to_block_10)
    order = [name.split(".")[2] for name in read_stored(tmp_path / "a").routing_table()]
    assert order == ["1", "1", "10", "10"]


SITE = "decoder.blocks.0.attn_norm"


@pytest.mark.parametrize(
    "table",
    [
        3,
        {},
        [],
        {"elsewhere": {"text": [0.5, 0.5], "image": [0.5, 0.5]}},
        {SITE: {"text": [0.5, 0.5]}},
        {SITE: {"text": [0.5, 0.5], "image": [1.0]}},
        {SITE: {"text": [0.5, 0.5], "image": ["a", "b"]}},
        {SITE: {"text": [0.5, 0.5], "image": [10**400, 0]}},
        {SITE: {"text": [0.5, 0.5], "image": [float("nan"), 0]}},
        {SITE: 7},
    ],
)
def test_what_is_no_routing_table_is_refused(tiny_base, tmp_path, table):
    save(tmp_path / "a", tiny_base, KINDS[0])
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.update(routing_table=table))
    with pytest.raises(
        AdapterError, match="a has no route weights by site and modality .*; fetch the folder again"
    ):
        read_stored(tmp_path / "a").routing_table()


def test_older_folders_have_none(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, KINDS[0])
    edit_json(tmp_path / "a/adapter_config.json", lambda d: (d.pop("routing_table"), d.pop("layers")))
    assert read_stored(tmp_path / "a").routing_table() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(r="8"), "r is '8'; it must be a whole number .in .*adapter_config.json"),
        (lambda d: d.pop("r"), "the settings lack r .in .*adapter_config.json"),
        (lambda d: d.update(format_version="2.0"), "has format version 2.0, this program reads"),
    ],
)
def test_wrong_settings_are_refused(tiny_base, tmp_path, change, message):
    save(tmp_path / "a", tiny_base, KINDS[0])
    edit_json(tmp_path / "a/adapter_config.json", change)
    with pytest.raises(AdapterError, match=message):
        read_stored(tmp_path / "a")


def test_odd_descriptions_are_read(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, KINDS[0])
    odd = {"base": "a name", "provenance": [1], "somebody": {"else": 1}}
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.update(odd))
    stored = read_stored(tmp_path / "a")
    assert stored.base == {"decoder": "a name"}
    assert stored.provenance == {}
    assert stored.bytes_on_disk == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())


def test_lora_settings_of_the_wrong_type_are_refused(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, KINDS[3])
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.update(lora_alpha="x"))
    with pytest.raises(AdapterError, match="alpha is 'x'; it must be a number"):
        read_stored(tmp_path / "a")
