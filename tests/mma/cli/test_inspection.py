"""An adapter folder at a glance: what is told, and what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mma import BottleneckConfig, LoraConfig, MMAConfig
from mma.cli.inspection import Inspection, inspect, text
from mma.cli.stored import read_stored
from tests.mma.cli.saved import save
from tests.small import edit_json, edit_tensors

MIXTURE = MMAConfig(r=4, temperature=1.0, projector_hidden=8)
KINDS = [
    MIXTURE,
    MMAConfig(r=4, layers=(1,), tower="legacy_no_residual", projector_hidden=8),
    BottleneckConfig(r=4, activation="relu", projector_hidden=8),
    LoraConfig(r=4, tower_placement="attn", projector_hidden=8),
]


def look(path) -> Inspection:
    return inspect(read_stored(path))


def words(path) -> str:
    """The screen in one line."""
    return " ".join(text(look(path)).split())


def config_of(path):
    return path / ("mma_config.json" if (path / "mma_config.json").is_file() else "adapter_config.json")


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("trained", [True, False])
def test_every_kind_is_told_in_one_screen(tiny_base, tmp_path, config, trained):
    adapters = save(tmp_path / "a", tiny_base, config, trained=trained).model.adapters
    told = look(tmp_path / "a")
    report = adapters.report()
    assert told.parameters == sum(line.parameters for line in report)
    assert told.parts == {line.name: line.parameters for line in report if line.channels is None}
    assert told.placed["decoder"].sites + told.placed["tower"].sites == len(report) - len(told.parts)
    same = told.settings.keys() - ({"alpha", "targets"} if isinstance(config, LoraConfig) else set())
    assert {key: told.settings[key] for key in same} == {key: config.to_dict()[key] for key in same}
    assert told.health.untrained is not trained
    assert told.health.not_finite == ()
    lines = text(told).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[1:])) <= 80


def test_what_it_says_of_a_mixture(tiny_base, tmp_path):
    system = save(tmp_path / "a", tiny_base, MIXTURE)
    screen = words(tmp_path / "a")
    for part in (
        "Mixture-of-modality adapter (MMA), format 1.2",
        "settings r 4, routes 2, groups 2, temperature 1, scale 1, dropout 0.1, modalities text and image",
        "decoder attn: 2 sites in blocks 0 to 1,",
        "tower attn, rule token: 4 sites in blocks 0 to 3,",
        "modality 2 tokens, 64 parameters",
        "projector class_token,",
        f"decoder {tiny_base.decoder} in fp32 (digest {system.digests['base_digest'][:12]})",
        f"tower {tiny_base.tower} by a class token every 2 blocks (digest",
        "pictures 16 pixels,",
        "template lavin",
        "data questions split train (digest 0123456789ab)",
        "licence CC BY-NC-SA 4.0",
        "step 7 of 12, seed 3",
        "accuracy 75.0 % (95 %: 60.0 to 85.0, 40 questions of val)",
        "loss 0.25",
        "Routing specialised:",
        "Health good: every number is finite, and every site adds something (6 of 6)",
    ):
        assert part in screen


def test_json_tells_the_same(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE)
    told = look(tmp_path / "a")
    assert told.needs["base_digest"] in json.dumps(told.needs)
    assert told.routing is not None
    assert told.routing.specialised
    assert told.dtypes == ("float32",)
    assert told.placed["tower"].layers == (0, 1, 2, 3)


@pytest.mark.parametrize("config", KINDS[:1] + KINDS[2:])
def test_an_untrained_adapter_changes_nothing(tiny_base, tmp_path, config):
    save(tmp_path / "a", tiny_base, config, trained=False)
    assert "UNTRAINED: every up-projection is zero, so the adapter changes nothing" in words(tmp_path / "a")


def test_an_untrained_one_without_residual_blanks_the_tower(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, KINDS[1], trained=False)
    assert "so the tower's attention gets nothing to see" in words(tmp_path / "a")


SITE = "decoder.blocks.0.attn_norm"


def empty_site(tensors):
    for name in ("up", "up_bias"):
        tensors[f"{SITE}.{name}"] = torch.zeros_like(tensors[f"{SITE}.{name}"])


def lose_site(tensors):
    for name in [name for name in tensors if name.startswith(f"{SITE}.")]:
        del tensors[name]


def put(value):
    def change(tensors):
        tensors["modality.weight"][1, 2] = value
        tensors["projector.up.bias"][0] = value

    return change


FAULTS = {
    "nan": (put(float("nan")), "NOT FINITE: modality.weight, projector.up.bias; its training has failed"),
    "infinite": (put(float("inf")), "NOT FINITE: modality.weight, projector.up.bias"),
    "empty": (empty_site, "1 of 6 sites add nothing: their up-projections are zero"),
    "lost": (lose_site, f"without tensors: {SITE}; the folder is not complete"),
    "whole numbers": (
        lambda tensors: tensors.update(x=torch.ones(2, dtype=torch.int8)),
        "of no floating type: x; it is not loaded",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_tensors_are_told(tiny_base, tmp_path, fault):
    save(tmp_path / "a", tiny_base, MIXTURE)
    change, message = FAULTS[fault]
    edit_tensors(tmp_path / "a/adapter_model.safetensors", change)
    assert message in words(tmp_path / "a")
    assert "good:" not in words(tmp_path / "a")


def test_nothing_of_an_adapter_in_it(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE)
    edit_tensors(
        tmp_path / "a/adapter_model.safetensors",
        lambda t: [t.pop(n) for n in list(t) if n != SITE + ".down.bias"],
    )
    told = look(tmp_path / "a")
    assert not told.health.untrained
    assert "no tensor is that of a site; the folder holds something else" in words(tmp_path / "a")


def test_a_lora_that_cannot_be_computed_here(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, KINDS[3])
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.update(use_dora=True))
    assert "made with use_dora, which this program cannot compute; PEFT can" in words(tmp_path / "a")


def test_the_routing_of_what_has_no_table(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE)
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.pop("routing_table"))
    assert "no table is stored; python -m mma routes DIR --base DIR evaluates it" in words(tmp_path / "a")
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.update(routing_table=[1]))
    assert "has no route weights by site and modality ([1]); fetch the folder again" in words(tmp_path / "a")
    save(tmp_path / "b", tiny_base, KINDS[3])
    assert "Routing none: a LoRA adapter has no router" in words(tmp_path / "b")


def test_a_router_that_has_not_specialised(tiny_base, tmp_path):
    cold = replace(MIXTURE, temperature=100.0)
    save(tmp_path / "a", tiny_base, cold, trained=False)
    assert "Routing NOT SPECIALISED: every modality gets nearly the same" in words(tmp_path / "a")


def test_a_folder_that_says_nothing(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE, provenance={})
    names = ("base", "base_digest", "tower_digest", "tokenizer_digest", "preprocess", "template")
    edit_json(tmp_path / "a/adapter_config.json", lambda d: [d.pop(name) for name in names])
    assert "Needs no digest is recorded: nothing tells whether a base is the right one" in words(
        tmp_path / "a"
    )
    assert "Comes from nothing is recorded" in words(tmp_path / "a")


ODD = [
    {"provenance": {"scores": {"accuracy": "high", "accuracy_interval": [1, "x"], "x": None}, "recipe": 3}},
    {
        "provenance": {
            "step": [1, 2],
            "seed": "s",
            "data_digest": 7,
            "format": {"a": 1},
            "recipe": {"data": [1]},
        }
    },
    {"provenance": {f"key {n}\n": "x" * 1000 for n in range(100)}},
    {"provenance": {"made": {"deep": [{"er": True}]}, "a" * 300: "\x1b[31m"}},
    {"base": {"decoder": ["x"], "tower_every": "four", "precision": {}}, "preprocess": {"size": None}},
    {"base_digest": 12, "preprocess": [1], "template": {"a": "\x1b[2J"}, "sites": [3, None]},
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("config", [MIXTURE, KINDS[3]])
def test_odd_descriptions_fit_the_screen(tiny_base, tmp_path, odd, config):
    save(tmp_path / "a", tiny_base, config)
    edit_json(config_of(tmp_path / "a"), lambda d: d.update(odd))
    screen = text(look(tmp_path / "a"))
    assert len(screen.splitlines()) <= 50
    assert max(map(len, screen.splitlines()[1:])) <= 80
    assert all(line.isprintable() for line in screen.splitlines())
