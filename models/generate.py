"""Answers token by token with a key-value cache: batched, greedy or sampled, streamed.

Rows of the cache that have finished are given to prompts that wait, so nobody waits for the longest answer.
A row's answer depends on its own prompt and the seed alone, never on the rows beside it.

Shapes: B rows of the cache, S rows of one step, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor

from models.attention import PackedAttention
from models.build import System
from models.decode_step import DecodeStep
from models.errors import ModelError
from models.kv_cache import KVCache
from models.multimodal import Packed, Routes, inference

SHARE = 8  # a prefill waits until this part of the rows is free: many small ones hold up the others
GROWTH = 1.25  # the cache is arranged anew for so many times its rows


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


class PromptBatch(Packed, Protocol):
    """A packed batch of prompts, whose names seed the sampling."""

    sample_ids: tuple[str, ...]


@dataclass(frozen=True)
class Queue:
    """Prompts that wait for a row: the length of each, and how some of them (ascending) become a batch."""

    lengths: Sequence[int]
    batch: Callable[[Sequence[int]], PromptBatch]


def generate(system: System, batch: PromptBatch, sampling: Sampling) -> list[str]:
    """The answers to a batch of prompts, in their order."""
    answers = dict(answer_all(system, _all_of(batch), sampling, tokens=0))
    return [answers[index] for index in range(len(batch.lengths))]


def answer_all(system: System, queue: Queue, sampling: Sampling, tokens: int) -> Iterator[tuple[int, str]]:
    """Answers in the order in which they end: (prompt, text), with room for so many tokens at a time.

    The longest prompts come first. 0 tokens: room for all of them at once.
    """
    for row in _written(system, queue, sampling, tokens):
        if row.finished:
            yield row.index, row.text()


def stream(system: System, batch: PromptBatch, sampling: Sampling) -> Iterator[tuple[int, str]]:
    """Pieces of the answers as they come: (row, text). A row's pieces joined are its answer."""
    told = [0] * len(batch.lengths)
    for row in _written(system, _all_of(batch), sampling, tokens=0):
        text = row.text() if row.finished else _settled(row.text(), sampling.stop)
        if len(text) > told[row.index]:
            yield row.index, text[told[row.index] :]
            told[row.index] = len(text)


def _all_of(batch: PromptBatch) -> Queue:
    return Queue(batch.lengths, lambda _: batch)


def _written(system: System, queue: Queue, sampling: Sampling, tokens: int) -> Iterator[_Row]:
    """Every row whenever it has one more token, until it has finished."""
    model = system.model
    # Modes are set step by step: what the caller does between two pieces is none of this answer's business.
    with model.adapters.turns.answering() as step:
        decoding = _Decoding(system, queue, sampling, tokens)
        while not decoding.finished:
            with step(), inference(model):
                rows = decoding.admit() or decoding.step()
            yield from rows


class _Row:
    """One answer in the making."""

    def __init__(
        self, system: System, sampling: Sampling, batch: PromptBatch, segment: int, index: int
    ) -> None:
        self.index = index
        self.modality = batch.modalities[segment]
        self.adapter = None if batch.adapters is None else batch.adapters[segment]
        self.need = batch.lengths[segment] + sampling.max_new_tokens
        self.choose = Chooser(sampling, batch.sample_ids[segment])
        self.ids: list[int] = []
        self.finished = False
        self._taken = 0
        self._text: str | None = ""
        self._system, self._sampling = system, sampling

    def take(self, token: int) -> None:
        """Goes on with a token, which may be the last."""
        self._taken += 1
        self.finished = self._taken == self._sampling.max_new_tokens
        if token in (self._sampling.stop_ids or (self._system.tokenizer.eos_id,)):
            self.finished = True
        else:
            self.ids.append(token)
            self._text = None
        if self._sampling.stop and first_stop(self.text(), self._sampling.stop) is not None:
            self.finished = True

    def text(self) -> str:
        """What is written so far; of one that has finished, what stands before the first stop string."""
        if self._text is None:
            self._text = self._system.tokenizer.decode(self.ids)
        return self._text[: first_stop(self._text, self._sampling.stop)] if self.finished else self._text


class _Decoding:
    """The rows of one cache, who writes in each, and who waits for one."""

    def __init__(self, system: System, queue: Queue, sampling: Sampling, tokens: int) -> None:
        self.system, self.queue, self.sampling = system, queue, sampling
        self.waiting = deque(sorted(range(len(queue.lengths)), key=lambda index: -queue.lengths[index]))
        self.rows: list[_Row | None] = []
        model = system.model
        if self.waiting:
            room = self._need(self.waiting[0])
            most = room * len(self.waiting)
            self.tokens = max(room, min(tokens or most, most))
            rows = self.tokens // room
            self.cache = KVCache(model.decoder.config.n_layers, rows, room, model.device, self.tokens)
            self.rows = [None] * rows
            self.chosen = torch.zeros(rows, dtype=torch.long, device=model.device)  # the last token of a row
            self.logits = DecodeStep(model, self.cache)
        self.routes: Routes | None = None  # of a step; None: the rows have changed
        self.named = False  # whether the prompts name adapters of a bank

    @property
    def finished(self) -> bool:
        """Whether nobody writes or waits."""
        return not self.waiting and all(row is None or row.finished for row in self.rows)

    def admit(self) -> list[_Row]:
        """Prefills free rows, when there are enough of them; the rows that have their first token."""
        self._leave()
        writing = [row for row in self.rows if row is not None]
        free = len(self.rows) - len(writing)
        if not self.waiting or (writing and free < min(len(self.waiting), 1 + len(self.rows) // SHARE)):
            return []
        self._arrange(writing)
        free_rows = self.cache.free[: len(self.waiting)]
        group = sorted(self.waiting.popleft() for _ in free_rows)
        batch = self.queue.batch(group)
        for segment, (place, index) in enumerate(zip(free_rows, group, strict=True)):
            self.rows[place] = _Row(self.system, self.sampling, batch, segment, index)
        self.routes, self.named = None, batch.adapters is not None
        model = self.system.model
        prompt = model.embed(batch)
        ends = torch.tensor(prompt.lengths, device=model.device).cumsum(0) - 1
        attend = self.cache.prefill(PackedAttention(prompt.lengths, model.device), free_rows)
        into = torch.tensor(free_rows, device=model.device)
        return self._choose(free_rows, into, model.logits(model.decode(prompt, attend, ends)))

    def step(self) -> list[_Row]:
        """One more token in every row that has not finished."""
        self._leave()
        if not any(self.rows):
            return []
        # Moving rows costs a copy, and pays only where fewer are computed then.
        live = sum(row is not None for row in self.rows)
        if not self.waiting and self._width(live) < self._width(self.cache.used):
            self._close_up()
        span = self.cache.advance()
        width = self._width(self.cache.used)
        if self.routes is None or len(self.routes.token_modality) != width:
            self.routes = self._routes_of(width)
        logits = self.logits(self.chosen[:width], self.routes, span)
        return self._choose(range(width), slice(width), logits)

    def _width(self, rows: int) -> int:
        """How many rows a step computes where so many are asked for; one of a bank is never captured."""
        return rows if self.named else self.logits.width(rows)

    def _need(self, index: int) -> int:
        """The room that an answer may take."""
        return self.queue.lengths[index] + self.sampling.max_new_tokens

    def _leave(self) -> None:
        """Frees the rows that have finished."""
        over = [place for place, row in enumerate(self.rows) if row is not None and row.finished]
        self.cache.drop(over)
        for place in over:
            self.rows[place] = None

    def _close_up(self) -> None:
        """Puts the last rows into free ones before them, so that no step computes what nobody reads."""
        order = [place for place, row in enumerate(self.rows) if row is not None]
        if (count := len(order)) == self.cache.used:
            return
        late = iter(order[::-1])
        order = [place if self.rows[place] is not None else next(late) for place in range(count)]
        index = torch.tensor(order)
        self.cache.keep(index)
        self.chosen[:count] = self.chosen[index.to(self.chosen.device)]
        self.rows = [self.rows[place] for place in order] + [None] * (len(self.rows) - count)
        self.routes = None

    def _arrange(self, writing: Sequence[_Row]) -> None:
        """Makes more rows of the same memory once the longest prompts are answered."""
        room = max(self._need(self.waiting[0]), *(row.need for row in writing), 0)
        count = min(self.tokens // room, len(writing) + len(self.waiting))
        if count < GROWTH * len(self.rows):
            return
        self._close_up()
        self.cache.arrange(count, room)
        more = count - len(self.rows)
        self.rows += [None] * more
        self.chosen = torch.cat([self.chosen, self.chosen.new_zeros(more)])

    def _choose(self, places: Sequence[int], into: Tensor | slice, logits: Tensor) -> list[_Row]:
        """Gives the rows at these places their next tokens; here alone a step waits for the device."""
        rows = [self.rows[place] for place in places]
        if self.sampling.temperature == 0:
            chosen = logits.argmax(-1)
            self.chosen[into] = chosen
            tokens = chosen.tolist()
        else:
            lines = zip(rows, logits.cpu(), strict=True)
            tokens = [0 if row is None else row.choose(line) for row, line in lines]
            self.chosen[into] = torch.tensor(tokens, device=logits.device)
        pairs = [(row, token) for row, token in zip(rows, tokens, strict=True) if row is not None]
        for row, token in pairs:
            row.take(token)
        return [row for row, _ in pairs]

    def _routes_of(self, width: int) -> Routes:
        """Who answers the next token of each row; a free one goes with any of the others."""
        model = self.system.model
        some = next(row for row in self.rows if row is not None)
        rows = [row or some for row in self.rows[:width]]
        names = [row.adapter for row in rows] if self.named else None
        return model.routes([row.modality for row in rows], [1] * width, names)


class Chooser:
    """Samples the next tokens of one row."""

    def __init__(self, sampling: Sampling, name: str) -> None:
        self.sampling = sampling
        self.random = torch.Generator().manual_seed(sampling.seed * 2**32 + crc32(name.encode()))

    def __call__(self, logits: Tensor) -> int:
        """Logits float[V] -> a token id."""
        probability = torch.softmax(logits.double() / self.sampling.temperature, dim=-1)
        ordered, ids = probability.sort(descending=True, stable=True)
        # Kept: every token before which less than top_p has been reached, so at least one.
        kept = ordered * (ordered.cumsum(0) - ordered < self.sampling.top_p)
        return int(ids[torch.multinomial(kept, 1, generator=self.random)])


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins."""
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return min(places, default=None)


def _settled(text: str, stop: tuple[str, ...]) -> str:
    """The text less what may still turn into a stop string or into another character."""
    text = text.rstrip("�")
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]
