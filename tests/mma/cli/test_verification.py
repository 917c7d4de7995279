"""Whether an adapter folder loads on a base, check by check, and what it costs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mma import AdapterConfig, AdapterError, Adapters, BottleneckConfig, LoraConfig, MMAConfig
from mma.bank import AdapterBank
from mma.cli.stored import read_stored
from mma.cli.verification import Check, checks, memory, text
from models.build import BaseSettings, build_base
from tests.mma.cli.saved import save
from tests.small import edit_json, edit_tensors

MIXTURE = MMAConfig(r=4, temperature=1.0, projector_hidden=8)
LORA = LoraConfig(r=4, projector_hidden=8)
SITE = "decoder.blocks.0.attn_norm"


def adapters_of(base: BaseSettings) -> Adapters:
    return build_base(base).model.adapters


def verify(path: Path, base: BaseSettings) -> tuple[list[Check], Adapters]:
    adapters = adapters_of(base)
    return checks(read_stored(path), adapters), adapters


def wrong(path: Path, base: BaseSettings) -> dict[str, str]:
    """What is wrong, by the name of the check."""
    return {check.name: check.told for check in verify(path, base)[0] if not check.good}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (MIXTURE, "settings decoder tower tokenizer slots pictures template tensors routing loading"),
        (replace(MIXTURE, tower="modality"), None),
        (BottleneckConfig(r=4, activation="relu", projector_hidden=8), None),
        (LORA, None),
    ],
)
def test_every_kind_passes_on_its_base(tiny_base, tmp_path, config: AdapterConfig, names: str | None):
    save(tmp_path / "a", tiny_base, config)
    found, adapters = verify(tmp_path / "a", tiny_base)
    assert all(check.good for check in found), found
    if names is not None:
        assert [check.name for check in found] == names.split()
    # It lies there as load_adapter would have left it.
    wanted = adapters_of(tiny_base)
    wanted.load_adapter(tmp_path / "a")
    for name, parameter in wanted.trainable_parameters().items():
        assert torch.equal(parameter, adapters.trainable_parameters()[name])
    printed = text(found, memory(adapters))
    assert f"all {len(found)} checks passed: it loads on this base" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_every_part_of_another_base_is_named_at_once(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE)
    other = replace(tiny_base, precision="bf16", tower_every=1)
    found = wrong(tmp_path / "a", other)
    assert list(found) == ["decoder", "tower", "slots"]
    assert "was made for another decoder" in found["decoder"]
    assert "was made for another tower" in found["tower"]
    assert "here it comes after every block; set --tower-every 2" in found["slots"]
    printed = text(verify(tmp_path / "a", other)[0], {})
    assert printed.endswith("3 of 8 checks failed: it does not load on this base")


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"unheard": 1}, "settings", "unknown setting 'unheard'"),
        (
            {"tokenizer_digest": "0" * 64},
            "tokenizer",
            "was made for another tokenizer (000000000000, here is",
        ),
        ({"preprocess": {"size": 7}}, "pictures", "was trained with preprocess {'size': 7}"),
        ({"template": "other"}, "template", "was trained with template other, here it is lavin"),
        ({"base_digest": None}, "decoder", "records no digest, so it is bound to no base and does not load"),
        ({"base": {"tower_every": "x"}}, "slots", "a class token after every 'x' blocks of the tower"),
    ],
)
def test_what_the_settings_have_wrong(tiny_base, tmp_path, change: dict[str, Any], name: str, message: str):
    save(tmp_path / "a", tiny_base, MIXTURE)
    edit_json(tmp_path / "a/adapter_config.json", lambda d: d.update(change))
    assert message in wrong(tmp_path / "a", tiny_base)[name]
    if name != "slots":  # that check is of the owner of the base
        with pytest.raises(AdapterError):
            adapters_of(tiny_base).load_adapter(tmp_path / "a")


def not_finite(tensors: dict[str, Tensor]) -> None:
    tensors["modality.weight"][0, 0] = float("nan")


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda tensors: tensors.pop(f"{SITE}.down.bias"), f"lacks 1 tensors: {SITE}.down.bias"),
    "extra": (lambda tensors: tensors.update(x=torch.ones(1)), "has 1 tensors too many: x"),
    "misshapen": (
        lambda tensors: tensors.update({"modality.weight": torch.ones(2, 3)}),
        "modality.weight in",
    ),
    "not finite": (not_finite, "is not finite, its training has failed; use an earlier checkpoint"),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_what_the_tensors_have_wrong(tiny_base, tmp_path, fault):
    save(tmp_path / "a", tiny_base, MIXTURE)
    change, message = TENSORS[fault]
    edit_tensors(tmp_path / "a/adapter_model.safetensors", change)
    found, adapters = verify(tmp_path / "a", tiny_base)
    faults = {check.name: check.told for check in found if not check.good}
    assert list(faults) == ["tensors"]
    assert message in faults["tensors"]
    assert adapters.names == ()


def test_a_table_that_is_not_the_tensors_own(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE)
    file = tmp_path / "a/adapter_config.json"

    def move(by: float) -> None:
        def change(d: dict[str, Any]) -> None:
            row = d["routing_table"][SITE]["text"]
            row[0], row[1] = row[0] + by, row[1] - by

        edit_json(file, change)

    move(0.5e-4)  # another machine's arithmetic
    assert wrong(tmp_path / "a", tiny_base) == {}
    move(1e-3)
    assert "the stored table is off by up to 0.00" in wrong(tmp_path / "a", tiny_base)["routing"]
    printed = text(verify(tmp_path / "a", tiny_base)[0], {})
    assert printed.endswith("1 of 9 checks failed: it loads, but routes otherwise than its folder says")
    adapters_of(tiny_base).load_adapter(tmp_path / "a")
    edit_json(file, lambda d: d["routing_table"].pop(SITE))
    told = wrong(tmp_path / "a", tiny_base)["routing"]
    assert told == "the stored table has 1 sites, on this base there are 2"
    edit_json(file, lambda d: d.pop("routing_table"))
    assert wrong(tmp_path / "a", tiny_base) == {}


def test_a_lora_of_layers_this_base_does_not_have(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, LORA)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            tensors[name.replace(".layers.0.", ".layers.9.")] = tensors.pop(name)

    edit_tensors(tmp_path / "a/adapter_model.safetensors", rename)
    assert "layers.9" in wrong(tmp_path / "a", tiny_base)["tensors"]


def test_the_memory_is_what_is_allocated(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, MIXTURE)
    _, adapters = verify(tmp_path / "a", tiny_base)
    base = {part: 0 for part in ("decoder", "tower")}
    for path, parameter in adapters.base.items():
        base[path.partition(".")[0]] += parameter.nbytes
    costs = memory(adapters)
    assert costs["decoder"] == f"{base['decoder'] / 1e3:,.1f} kB in float32"
    assert costs["tower"] == f"{base['tower'] / 1e3:,.1f} kB in float32"
    count = sum(p.numel() for p in adapters.trainable_parameters().values())
    assert costs["adapter"] == f"{4 * count / 1e3:,.1f} kB ({count:,} parameters in float32)"
    assert adapters.bank is None

    def held(slots: int) -> int:
        bank = AdapterBank(adapters, slots)
        stacks = [wrapper.stack for wrapper in adapters.places.wrapped.values() if wrapper.stack is not None]
        size = sum(tensor.nbytes for stack in stacks for tensor in stack.buffers())
        bank.close()
        return size

    parts = sum(p.nbytes for p in adapters.parts["default"].parameters())
    assert costs["bank"] == f"{(held(3) - held(2) + parts) / 1e3:,.1f} kB for each slot"

    before = {id(p) for p in adapters.model.parameters()}
    adapters.merge_adapter("text")
    added = [p for p in adapters.model.parameters() if id(p) not in before]
    size = sum(p.nbytes for p in added)
    assert costs["merged"].startswith(f"{size / 1e3:,.1f} kB more: copies of {len(added) // 2} linear layers")
    assert "4 sites stay unmerged (tower rule 'token' routes every picture token" in costs["merged"]


def test_what_has_no_bank_and_does_not_merge(tiny_base, tmp_path):
    save(tmp_path / "a", tiny_base, BottleneckConfig(r=4, activation="relu", projector_hidden=8))
    _, adapters = verify(tmp_path / "a", tiny_base)
    costs = memory(adapters)
    assert costs["bank"].startswith("none: a bank holds mixture-of-modality adapters")
    assert costs["merged"].startswith(
        "not possible; 6 sites stay unmerged (a bottleneck with activation 'relu'"
    )
