"""Systems on tiny bases of several shapes, and what other libraries and a plain slow sum say they compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from data.packing import PackedBatch
from mma import Adapters
from mma import sites as mma_sites
from models.build import System, build_base
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.export import write_hf
from tests.conftest import TOKENIZER, randomise, write_base

SHAPE = DecoderConfig(32, 2, 4, 2, 48, vocab_size=1700)
BASES: dict[str, DecoderConfig] = {
    "grouped": SHAPE,
    "multi-head": replace(SHAPE, n_kv_heads=4),
    "biases": replace(SHAPE, attention_bias=True, mlp_bias=True),
    "attention biases": replace(SHAPE, attention_bias=True, n_kv_heads=1),
    "tied": replace(SHAPE, tied=True),
}


def make_system(folder: Path, base: str = "grouped", precision: str = "fp32") -> System:
    """A system without an adapter on a random base, which is written to the folder."""
    settings = replace(write_base(folder), precision=precision)
    decoder = Decoder(BASES[base])
    randomise(decoder, 3)
    shutil.rmtree(folder / "decoder")
    write_hf(decoder, folder / "decoder", torch.float32)
    shutil.copy(TOKENIZER, folder / "decoder" / "tokenizer.model")
    return build_base(settings)


def shake(adapters: Adapters, seed: int = 7) -> None:
    """Random values in every trained tensor of the active adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def logits(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Logits at the supervised positions."""
    with torch.no_grad():
        found: Tensor = model(batch)
    return found


def their_logits(theirs: nn.Module, batch: PackedBatch, embeddings: Tensor | None = None) -> Tensor:
    """The same by a `transformers` or `peft` model, from ids or from embeddings of the packed tokens."""
    found, start = [], 0
    for length in batch.lengths:
        rows = slice(start, start + length)
        given = {"input_ids": batch.ids[None, rows]}
        if embeddings is not None:
            given = {"inputs_embeds": embeddings[None, rows]}
        with torch.no_grad():
            found.append(theirs(**given).logits[0])
        start += length
    return torch.cat(found)[batch.sources]


def bare(system: System) -> nn.Module:
    """The decoder of a system as `transformers` loads it."""
    found: nn.Module = AutoModelForCausalLM.from_pretrained(system.settings.decoder).eval()
    return found


def settings_of(folder: Path, name: str = "adapter_config.json") -> dict[str, Any]:
    """What a JSON file of a folder says."""
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def close(a: Tensor, b: Tensor, within: float) -> bool:
    """Whether no value is further from its partner than that."""
    return bool((a - b).abs().max() < within)


class _Sum(nn.Module):
    """A site that adds what several adapters add, each with a weight: in words, not in matrices."""

    def __init__(self, wrapper: mma_sites.Wrapped, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.wrapper, self.weights = wrapper, weights

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wrapper.base(x)
        routes = self.wrapper._state.current
        added = [w * (self.wrapper.adapters[name](x, y, routes) - y) for name, w in self.weights.items()]
        return y + torch.stack(added).sum(0)


@contextmanager
def summed(adapters: Adapters, names: Sequence[str], weights: Sequence[float]) -> Iterator[None]:
    """Inside the block every site of these adapters adds their weighted sum."""
    for name in names:
        adapters.refresh_table(name)
    wrapped = dict(adapters.places.wrapped)
    for site, wrapper in wrapped.items():
        mma_sites.replace(adapters.model, site.path, _Sum(wrapper, dict(zip(names, weights, strict=True))))
    try:
        yield
    finally:
        for site, wrapper in wrapped.items():
            mma_sites.replace(adapters.model, site.path, wrapper)
