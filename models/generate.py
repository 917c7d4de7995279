"""Answers token by token with a key-value cache: batched, greedy or sampled, streamed.

A row's answer depends on its own prompt and the seed alone, never on the rows beside it.

Shapes: B rows (prompts), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor

from models.attention import PackedAttention
from models.build import System
from models.errors import ModelError
from models.kv_cache import KVCache
from models.multimodal import MultimodalLM, Packed, Routes, Stream, inference


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen and when an answer ends.

    Args:
        max_new_tokens: The longest answer, in tokens.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
        top_p: Sample from the smallest set of tokens whose probability reaches this.
        stop: An answer ends before the first of these strings.
        stop_ids: An answer ends with any of these tokens; empty: with the tokenizer's end.
        seed: Start of each row's own random generator.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ModelError(f"generate: max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ModelError(f"generate: temperature is {self.temperature}; it must not be negative")
        if not 0 < self.top_p <= 1:
            raise ModelError(f"generate: top_p is {self.top_p}; it must be in (0, 1]")


@dataclass
class _Row:
    """One answer in the making."""

    index: int
    ids: list[int] = field(default_factory=list)
    text: str = ""  # what has been handed out


class PromptBatch(Packed, Protocol):
    """A packed batch of prompts, whose names seed the sampling."""

    sample_ids: tuple[str, ...]


def generate(system: System, batch: PromptBatch, sampling: Sampling) -> list[str]:
    """The answers to a batch of prompts, in their order."""
    answers = [""] * len(batch.lengths)
    for row, piece in stream(system, batch, sampling):
        answers[row] += piece
    return answers


def stream(system: System, batch: PromptBatch, sampling: Sampling) -> Iterator[tuple[int, str]]:
    """Pieces of the answers as they come: (row, text). A row's pieces joined are its answer."""
    ends = sampling.stop_ids or (system.tokenizer.eos_id,)
    for row, token, last in _tokens(system.model, batch, sampling):
        if token not in ends:
            row.ids.append(token)
        finished = last or token in ends
        text = system.tokenizer.decode(row.ids)
        if (cut := _first_stop(text, sampling.stop)) is not None:
            text, finished = text[:cut], True
        elif not finished:
            text = _settled(text, sampling.stop)
        if len(text) > len(row.text):
            yield row.index, text[len(row.text) :]
            row.text = text
        if finished:
            row.index = -1  # tells the decoding loop to drop the row


def _tokens(model: MultimodalLM, batch: PromptBatch, sampling: Sampling) -> Iterator[tuple[_Row, int, bool]]:
    """Every row's next token, step by step, and whether it is the last; a row marked -1 gets no more."""
    rows = [_Row(index) for index in range(len(batch.lengths))]
    choosers = [Chooser(sampling, name) for name in batch.sample_ids]
    # Modes are set step by step: what the caller does between two pieces is none of this answer's business.
    with model.adapters.turns.answering() as step:
        with step(), inference(model):
            prompt = model.embed(batch)
            packed = PackedAttention(prompt.lengths, model.device)
            room = max(prompt.lengths) + sampling.max_new_tokens
            cache = KVCache(model.decoder.config.n_layers, len(rows), room)
            hidden = model.decode(prompt, cache.prefill(packed))
            ends = torch.tensor(prompt.lengths, device=model.device).cumsum(0) - 1
            logits = model.logits(hidden[ends])
            routes = prompt.routes.select(ends)
        for count in range(1, sampling.max_new_tokens + 1):
            chosen = [choosers[row.index](line) for row, line in zip(rows, logits, strict=True)]
            for row, token in zip(rows, chosen, strict=True):
                yield row, token, count == sampling.max_new_tokens
            alive = [place for place, row in enumerate(rows) if row.index >= 0]
            if not alive or count == sampling.max_new_tokens:
                return
            if len(alive) < len(rows):
                keep = torch.tensor(alive, device=model.device)
                cache.keep(keep)
                routes = routes.select(keep)
                rows = [rows[place] for place in alive]
            with step(), inference(model):
                logits = _step(model, cache, [chosen[place] for place in alive], routes)


def _step(model: MultimodalLM, cache: KVCache, tokens: Sequence[int], routes: Routes) -> Tensor:
    """Logits float32[B, V] after one more token per row."""
    attend = cache.step()
    assert cache.lengths is not None, "step() checks this"
    ids = torch.tensor(tokens, device=model.device)
    # The prompt's first token stands at position 1, so a row's n-th token stands at position n.
    token = Stream(model.decoder.embed(ids), cache.lengths, (1,) * len(tokens), routes)
    return model.logits(model.decode(token, attend))


class Chooser:
    """Picks the next token of one row."""

    def __init__(self, sampling: Sampling, name: str) -> None:
        self.sampling = sampling
        self.random = torch.Generator().manual_seed(sampling.seed * 2**32 + crc32(name.encode()))

    def __call__(self, logits: Tensor) -> int:
        """Logits float[V] -> a token id."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probability = torch.softmax(logits.double().cpu() / self.sampling.temperature, dim=-1)
        ordered, ids = probability.sort(descending=True, stable=True)
        # Kept: every token before which less than top_p has been reached, so at least one.
        kept = ordered * (ordered.cumsum(0) - ordered < self.sampling.top_p)
        return int(ids[torch.multinomial(kept, 1, generator=self.random)])


def _first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins."""
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return min(places, default=None)


def _settled(text: str, stop: tuple[str, ...]) -> str:
    """The text less what may still turn into a stop string or into another character."""
    text = text.rstrip("�")
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]
