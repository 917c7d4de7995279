"""Answers by beam search with a key-value cache: the best of several answers that are written side by side.

The same answers as `transformers` gives with `num_beams` and `early_stopping=False`. A prompt's answer does
not depend on the prompts beside it.

Shapes: P prompts, K beams, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.attention import PackedAttention
from models.build import System
from models.decode_step import DecodeStep
from models.errors import ModelError
from models.generate import PromptBatch, Queue, Sampling, first_stop
from models.kv_cache import KVCache
from models.multimodal import Routes, inference

Answer = tuple[float, tuple[int, ...]]  # the log-likelihood of an answer, and its tokens
NOTHING: Answer = (-math.inf, ())  # what a beam holds that has nothing to go on with
Candidate = tuple[float, int, int]  # the log-likelihood of an answer with one more token, its beam, the token


def beam_search(
    system: System, batch: PromptBatch, beams: int, sampling: Sampling, length_penalty: float = 1.0
) -> list[str]:
    """The likeliest answers to a batch of prompts that so many beams find, in the order of the prompts.

    An answer's log-likelihood is divided by its number of tokens to the power of `length_penalty`: more than
    0 favours long answers. One beam gives the greedy answers.
    """
    queue = Queue(batch.lengths, lambda _: batch)
    answers = dict(search_all(system, queue, beams, sampling, tokens=0, length_penalty=length_penalty))
    return [answers[index] for index in range(len(batch.lengths))]


def search_all(
    system: System, queue: Queue, beams: int, sampling: Sampling, tokens: int, length_penalty: float = 1.0
) -> Iterator[tuple[int, str]]:
    """Answers in the order in which they end: (prompt, text), with room for so many tokens at a time.

    The longest prompts come first. 0 tokens: room for all of them at once.
    """
    if beams < 1:
        raise ModelError(f"beam search: beams is {beams}; it must be at least 1")
    if sampling.temperature:
        raise ModelError(
            f"beam search: temperature is {sampling.temperature}, but beams are not sampled; set it to 0"
        )
    waiting = sorted(range(len(queue.lengths)), key=lambda index: -queue.lengths[index])
    with system.model.adapters.turns.answering() as step:
        while waiting:
            room = queue.lengths[waiting[0]] + sampling.max_new_tokens
            count = max(1, tokens // (room * beams)) if tokens else len(waiting)
            group, waiting = sorted(waiting[:count]), waiting[count:]
            searching: _Searching | None = None
            while searching is None or searching.prompts:
                with step(), inference(system.model):
                    if searching is None:
                        batch = queue.batch(group)
                        searching = _Searching(system, batch, beams, sampling, length_penalty)
                    over = searching.step()
                yield from ((group[prompt.index], prompt.text()) for prompt in over)


class _Prompt:
    """The answers to one prompt: K that are being written, the likeliest first, and the best K that ended."""

    def __init__(self, system: System, sampling: Sampling, index: int, beams: int, penalty: float) -> None:
        self.index, self.beams, self.penalty = index, beams, penalty
        self.sampling, self.tokenizer = sampling, system.tokenizer
        self.stop_ids = sampling.stop_ids or (system.tokenizer.eos_id,)
        # All beams hold the same prompt at first, so one alone may go on.
        self.running: list[Answer] = [(0.0, ()), *[NOTHING] * (beams - 1)]
        self.ended: list[Answer] = []
        self.finished = False

    def take(self, candidates: Sequence[Candidate]) -> list[int]:
        """Goes on with the best of these, the likeliest first; says which beam each beam now follows."""
        running: list[Answer] = []
        parents: list[int] = []
        for place, (score, beam, token) in enumerate(candidates):
            if score == -math.inf or len(running) == self.beams:
                break
            ids = (*self.running[beam][1], token)
            if not self._ends(ids):
                running.append((score, ids))
                parents.append(beam)
            elif place < self.beams:  # one that ends behind K better ones is forgotten
                self.ended.append((self._normed(score, ids), ids))
        self.ended = sorted(self.ended, key=lambda answer: -answer[0])[: self.beams]
        # The likeliest now is taken for the likeliest later too, though the penalty may prove it wrong.
        self.finished = not running or (
            len(self.ended) == self.beams and self._normed(*running[0]) <= self.ended[-1][0]
        )
        lacking = self.beams - len(running)
        self.running = running + [NOTHING] * lacking
        return parents + [0] * lacking

    def text(self) -> str:
        """The best answer that has ended, before its first stop string."""
        ids = self.ended[0][1]
        text = self.tokenizer.decode(ids[:-1] if ids[-1] in self.stop_ids else ids)
        return text[: first_stop(text, self.sampling.stop)]

    def _ends(self, ids: tuple[int, ...]) -> bool:
        if ids[-1] in self.stop_ids or len(ids) == self.sampling.max_new_tokens:
            return True
        stop = self.sampling.stop
        return bool(stop) and first_stop(self.tokenizer.decode(ids), stop) is not None

    def _normed(self, score: float, ids: tuple[int, ...]) -> float:
        return float(score / len(ids) ** self.penalty)


class _Searching:
    """Some prompts with K rows of a cache each; the rows of one that has finished are given up."""

    def __init__(
        self, system: System, batch: PromptBatch, beams: int, sampling: Sampling, penalty: float
    ) -> None:
        model = self.model = system.model
        count = len(batch.lengths)
        room = max(batch.lengths) + sampling.max_new_tokens
        self.beams, self.batch = beams, batch
        self.prompts = [_Prompt(system, sampling, index, beams, penalty) for index in range(count)]
        # Of so many of the best one more token, at least K do not end: every beam has as many ends.
        stops = len(sampling.stop_ids) or 1
        self.kept = (1 + stops) * beams
        self.cache = KVCache(model.decoder.config.n_layers, count * beams, room, model.device)
        self.compute = DecodeStep(model, self.cache)
        self.chosen: list[int] | None = None  # the last token of every row; None: nothing is computed yet
        self.routes: Routes | None = None  # of a step; None: prompts have finished

    def step(self) -> list[_Prompt]:
        """One more token in every row; the prompts that have finished with it."""
        logits = self._prefill() if self.chosen is None else self._decode(self.chosen)
        places, self.chosen, going = [], [], []
        for at, (prompt, candidates) in enumerate(zip(self.prompts, self._candidates(logits), strict=True)):
            parents = prompt.take(candidates)
            if not prompt.finished:
                going.append(prompt)
                places += [at * self.beams + parent for parent in parents]
                self.chosen += [ids[-1] if ids else 0 for _, ids in prompt.running]
        over = [prompt for prompt in self.prompts if prompt.finished]
        self.prompts, self.routes = going, None if over else self.routes
        self.cache.keep(torch.tensor(places, dtype=torch.long))
        return over

    def _prefill(self) -> Tensor:
        """Every prompt once, and its keys and values into all of its rows -> logits float32[P * K, V]."""
        model, count = self.model, len(self.prompts)
        prompt = model.embed(self.batch)
        ends = torch.tensor(prompt.lengths, device=model.device).cumsum(0) - 1
        attend = self.cache.prefill(PackedAttention(prompt.lengths, model.device), range(count))
        logits = model.logits(model.decode(prompt, attend, ends))
        self.cache.keep(torch.arange(count).repeat_interleave(self.beams))
        return logits.repeat_interleave(self.beams, dim=0)

    def _decode(self, chosen: Sequence[int]) -> Tensor:
        """Logits float32[P * K, V] behind the last token of every row."""
        named = self.batch.adapters
        span = self.cache.advance()
        width = len(chosen) if named else self.compute.width(len(chosen))
        spare = width - len(chosen)  # rows that are computed and not read
        ids = torch.tensor([*chosen, *[0] * spare], device=self.model.device)
        if self.routes is None:
            self.routes = self._routes_of(spare)
        return self.compute(ids, self.routes, span)[: len(chosen)]

    def _routes_of(self, spare: int) -> Routes:
        """Who answers the next token of each row; a spare one goes with the first."""
        owners = [prompt.index for prompt in self.prompts for _ in range(self.beams)]
        owners += owners[:1] * spare
        named = self.batch.adapters
        return self.model.routes(
            [self.batch.modalities[index] for index in owners],
            [1] * len(owners),
            None if named is None else [named[index] for index in owners],
        )

    def _candidates(self, logits: Tensor) -> Iterator[list[Candidate]]:
        """Of every prompt the likeliest answers with one more token, the best first."""
        scores = torch.tensor([[score for score, _ in prompt.running] for prompt in self.prompts])
        total = logits.log_softmax(-1) + scores.to(logits.device).view(-1, 1)
        vocabulary = total.shape[-1]
        total = total.view(len(self.prompts), -1)
        values, places = total.topk(min(self.kept, total.shape[-1]))
        for row, at in zip(values.tolist(), places.tolist(), strict=True):
            yield [(value, *divmod(place, vocabulary)) for value, place in zip(row, at, strict=True)]
