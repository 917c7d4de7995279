"""What differs between two adapter folders."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mma import LoraConfig, MMAConfig
from mma.cli.difference import Difference, compare, text
from mma.cli.stored import read_stored
from tests.mma.cli.saved import PROVENANCE, save
from tests.small import edit_json, edit_tensors

CONFIG = MMAConfig(r=4, temperature=1.0, projector_hidden=8)
UP = "decoder.blocks.0.attn_norm.up"


@pytest.fixture
def a(tiny_base, tmp_path) -> Path:
    save(tmp_path / "a", tiny_base, CONFIG)
    return tmp_path / "a"


@pytest.fixture
def b(tiny_base, tmp_path) -> Path:
    save(tmp_path / "b", tiny_base, CONFIG)
    return tmp_path / "b"


def differ(a: Path, b: Path) -> Difference:
    return compare(read_stored(a), read_stored(b))


def screen(a: Path, b: Path) -> str:
    return text(differ(a, b), str(a), str(b))


def tensors_of(path: Path) -> Path:
    return path / "adapter_model.safetensors"


def config_of(path: Path) -> Path:
    return path / "adapter_config.json"


def test_the_same_twice_is_identical(a, b):
    assert differ(a, b).identical
    count = len(load_file(tensors_of(a)))
    assert screen(a, b) == f"A  {a}\nB  {b}\n\nidentical: settings, provenance and all {count} tensors"


def test_settings_base_and_provenance_are_named(tiny_base, a, tmp_path):
    provenance = {
        **PROVENANCE,
        "step": 8,
        "recipe": {**PROVENANCE["recipe"], "optim": {"lr": 0.02}},
        "more": True,
    }
    save(
        tmp_path / "b",
        replace(tiny_base, precision="bf16"),
        replace(CONFIG, dropout=0.2),
        provenance=provenance,
    )
    found = differ(a, tmp_path / "b")
    assert not found.identical
    assert found.settings == {"dropout": (0.1, 0.2)}
    assert found.base.keys() == {"base.precision", "base_digest", "tower_digest"}
    assert found.base["base.precision"] == ("fp32", "bf16")
    assert found.provenance == {
        "more": ("(not there)", True),
        "recipe.optim.lr": (0.01, 0.02),
        "step": (7, 8),
    }
    printed = screen(a, tmp_path / "b")
    assert "  dropout  0.1  0.2\n" in printed
    assert "  recipe.optim.lr  0.01         0.02\n" in printed
    assert max(map(len, printed.splitlines()[2:])) <= 80


@pytest.mark.parametrize("change", [{"step": True}, {"step": 7.0, "seed": 3}, {"step": "7"}])
def test_values_of_another_type_differ_but_for_numbers(a, b, change):
    edit_json(config_of(b), lambda d: d["provenance"].update(change))
    assert differ(a, b).identical == ("seed" in change)


def test_numbers_of_the_tensors_by_hand(a, b):
    def change(tensors):
        tensors[UP][0, 0, 0] += 0.5
        tensors["modality.weight"].neg_()

    edit_tensors(tensors_of(b), change)
    found = differ(a, b)
    one = load_file(tensors_of(a))
    norm = float(load_file(tensors_of(b))[UP].double().norm())
    norm = max(norm, float(one[UP].double().norm()))
    assert list(found.groups) == ["down", "up", "router", "projector", "modality"]
    assert found.groups["up"].tensors - found.groups["up"].equal == 1
    assert found.groups["up"].largest == pytest.approx(0.5, abs=1e-6)
    assert found.groups["up"].relative == pytest.approx(0.5 / norm, rel=1e-5)
    assert found.groups["modality"].relative == pytest.approx(2.0)
    assert found.groups["down"] == replace(found.groups["down"], largest=0.0, relative=0.0)
    assert found.equal == found.shared - 2
    flat = [
        torch.cat([x.double().flatten() for x in load_file(tensors_of(path)).values()]) for path in (a, b)
    ]
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(*flat, dim=0)), abs=1e-9)
    assert f"{found.cosine:.6f}" in screen(a, b)


def test_lost_new_and_misshapen_tensors_are_named(a, b):
    def change(tensors):
        del tensors[UP]
        tensors["new.weight"] = torch.ones(2)
        tensors["modality.weight"] = torch.ones(3, 3)
        tensors["projector.up.bias"] = tensors["projector.up.bias"].half()

    edit_tensors(tensors_of(b), change)
    found = differ(a, b)
    assert (found.only_a, found.only_b) == ((UP,), ("new.weight",))
    assert found.other_shape == {"modality.weight": ((2, 32), (3, 3))}
    assert found.other_type == {"projector.up.bias": ("float32", "float16")}
    printed = screen(a, b)
    for line in (
        f"1 only in A: {UP}",
        "1 only in B: new.weight",
        "1 of another shape: modality.weight is (2, 32) in A and (3, 3) in B",
        "1 of another type: float32 and float16",
    ):
        assert line in printed


def test_the_same_numbers_in_another_type_are_not_identical(a, b):
    edit_tensors(
        tensors_of(b), lambda tensors: tensors.update({name: x.double() for name, x in tensors.items()})
    )
    found = differ(a, b)
    assert not found.identical
    assert found.equal == 0
    assert {group.largest for group in found.groups.values()} == {0.0}
    assert found.cosine == pytest.approx(1)


def test_routing_tables_of_unlike_numbers_of_routes(a, tiny_base, tmp_path):
    save(tmp_path / "c", tiny_base, replace(CONFIG, routes=3))
    assert differ(a, tmp_path / "c").routing == "of other sites, modalities or numbers of routes"


def test_only_the_routing_table_differs(a, b):
    edit_json(config_of(b), lambda d: d["routing_table"]["decoder.blocks.0.attn_norm"]["text"].reverse())
    row = read_stored(a).routing_table()["decoder.blocks.0.attn_norm"]["text"]
    assert differ(a, b).routing == pytest.approx(abs(row[0] - row[1]))
    assert "weights differ by up to" in screen(a, b)
    edit_json(config_of(b), lambda d: d["routing_table"].pop("decoder.blocks.0.attn_norm"))
    assert differ(a, b).routing == "of other sites, modalities or numbers of routes"
    edit_json(config_of(b), lambda d: d.pop("routing_table"))
    assert differ(a, b).routing == "stored in A only"
    assert differ(b, a).routing == "stored in B only"
    assert not differ(a, b).identical


def test_what_is_not_finite_or_zero_has_no_cosine(a, b):
    edit_tensors(tensors_of(b), lambda tensors: tensors["modality.weight"].fill_(float("nan")))
    found = differ(a, b)
    assert math.isnan(found.groups["modality"].largest)
    assert math.isnan(found.groups["modality"].relative)
    assert found.cosine is None
    assert "cosine similarity of all of them as one vector: none" in screen(a, b)
    edit_tensors(tensors_of(b), lambda tensors: [x.zero_() for x in tensors.values()])
    assert differ(a, b).cosine is None


def test_whole_numbers_are_compared_by_their_bytes(a, b):
    for path in (a, b):
        edit_tensors(tensors_of(path), lambda tensors: tensors.update(x=torch.arange(4)))
    assert differ(a, b).identical
    edit_tensors(tensors_of(b), lambda tensors: tensors.update(x=torch.arange(1, 5)))
    assert not differ(a, b).identical
    assert differ(a, b).groups["x"].equal == 0


def test_another_kind_shares_nothing_but_parts(a, tiny_base, tmp_path):
    save(tmp_path / "lora", tiny_base, LoraConfig(r=4, projector_hidden=8))
    found = differ(a, tmp_path / "lora")
    assert found.settings["peft_type"] == ("MMA", "LORA")
    assert found.settings["temperature"] == (1.0, "(not there)")
    assert set(found.groups) == {"projector"}
    assert not found.base
    printed = screen(a, tmp_path / "lora")
    assert "only in A:" in printed
    assert max(map(len, printed.splitlines()[2:])) <= 80


def test_loras_and_what_peft_notes_of_them(tiny_base, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, tiny_base, LoraConfig(r=4, projector_hidden=8))
    notes = {"peft_version": "0.1", "inference_mode": False, "rank_pattern": {}, "megatron_core": None}
    edit_json(config_of(tmp_path / "b"), lambda d: (d.update(notes), d["target_modules"].reverse()))
    assert differ(tmp_path / "a", tmp_path / "b").identical
    edit_json(config_of(tmp_path / "b"), lambda d: d.update(use_dora=True, lora_alpha=4))
    assert differ(tmp_path / "a", tmp_path / "b").settings == {
        "alpha": (8.0, 4),
        "peft.use_dora": ("(not there)", True),
    }


def test_what_somebody_else_records_is_compared(a, b):
    edit_json(config_of(b), lambda d: d.update(format_version="1.9", somebody={"else": [1, 2]}))
    found = differ(a, b)
    assert found.settings["format_version"][1] == "1.9"
    assert found.base == {"somebody.else": ("(not there)", [1, 2])}


def test_odd_values_fit_the_screen(a, b):
    odd = {f"key {n}\x1b[2J" + "k" * 90: ["x" * 500, {"a": "\n"}] for n in range(30)}
    edit_json(config_of(b), lambda d: d.update(provenance=odd))
    edit_tensors(
        tensors_of(b),
        lambda tensors: tensors.update({f"\x1b[2J{'n' * 300}.{i}": torch.ones(1) for i in range(9)}),
    )
    printed = screen(a, b)
    assert max(map(len, printed.splitlines()[2:])) <= 80
    assert all(line.isprintable() for line in printed.splitlines())
    assert "  and " in printed
    assert len(printed.splitlines()) <= 60
