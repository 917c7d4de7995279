"""Eight adapters that differ in everything a bank allows, and a batch that asks for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from data.packing import PackedBatch, collate
from data.sample import Tokens
from mma.bank import AdapterBank
from models.build import BaseSettings, System, build_new
from models.multimodal import MultimodalLM
from tests.mma.conftest import picture, sample
from tests.mma.test_adapters import config, logits, shake

LIKE = config(routes=3, placement="both", tower_placement="both")
ADAPTERS = {
    "token": config(r=4),
    "vector": config(r=8, temperature=5.0, tower="modality"),
    "blind": config(r=2, scale=0.5, tower="none", placement="mlp"),
    "wide": config(r=8, routes=3, placement="both", tower_placement="both"),
    "plain": config(r=3, groups=1, tower="modality", tower_placement="mlp"),
    "upper": config(r=8, groups=4, layers=(1,), scale=-1.0),
    "sharp": config(r=4, temperature=0.2, routes=1, tower_placement="both"),
    "large": config(r=8, projector_hidden=12, tower="none", placement="both"),
}
NAMES = tuple(ADAPTERS)
SAMPLES = [sample(f"sample {i}", 4 + i % 7, 2 if i % 3 else 0) for i in range(32)]
# 8 adapters, the active one and the base, in no order, each with and without pictures.
ANSWERED_BY = tuple((*NAMES, "default", None)[(i * 7) % 10] for i in range(32))


def write_adapters(base: BaseSettings, root: Path) -> dict[str, Path]:
    """A folder of every adapter."""
    adapters = build_new(base, config()).model.adapters
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        adapters.add_adapter(name, settings)
        shake(adapters, seed)
        adapters.save_pretrained(root / name)
        adapters.delete_adapter(name)
    return {name: root / name for name in NAMES}


def with_bank(system: System, folders: dict[str, Path]) -> System:
    """The system with all 8 adapters in a bank with a slot to spare."""
    bank = AdapterBank(system.model.adapters, 9, LIKE)
    for name in NAMES:
        bank.load(folders[name], name)
    return system


def alone(model: MultimodalLM, folders: dict[str, Path], name: str | None, one: Tokens) -> Tensor:
    """Logits of one sample by one adapter, in a batch of its own on a model that has no bank."""
    return logits_by(model, folders, name, collate([one], picture))


def logits_by(model: MultimodalLM, folders: dict[str, Path], name: str | None, batch: PackedBatch) -> Tensor:
    """Logits of a batch by one adapter on a model that has no bank."""
    adapters = model.adapters
    assert adapters.bank is None, "this is what the bank is compared with"
    if name is None:
        with adapters.disable_adapter():
            return logits(model, batch)
    if name != "default":
        adapters.load_adapter(folders[name], name)
    try:
        return logits(model, batch)
    finally:
        if name != "default":
            adapters.delete_adapter(name)
            adapters.set_adapter("default")


def mixed(samples: Sequence[Tokens], names: Sequence[str | None]) -> PackedBatch:
    return replace(collate(samples, picture), adapters=tuple(names))


def buffers_of(bank: AdapterBank) -> dict[str, Tensor]:
    return {
        f"{site.path}.{name}": tensor.clone()
        for site, stack in bank._stacks.items()
        for name, tensor in stack.named_buffers()
    }
