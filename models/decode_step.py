"""One decoding step of all rows of a cache: kernel by kernel, or on CUDA as a graph that is launched at once.

Shapes: S rows of a step, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.kv_cache import KVCache
from models.multimodal import MultimodalLM, Routes, Stream

SPAN = 256  # a captured step looks at a multiple of so many tokens
REPEATS = 4  # a step is captured when its shape comes for this time: a short answer does not pay for it


@dataclass(frozen=True)
class _Captured:
    ids: Tensor  # int64[S]: what the graph reads
    routes: Routes
    logits: Tensor  # float32[S, V]: what it writes
    replay: Callable[[], None]


class DecodeStep:
    """Logits after one more token in the first rows of a cache."""

    def __init__(self, model: MultimodalLM, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.captures = can_capture(model.device)
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._pool = memory_pool() if self.captures else None  # graphs run one by one, so they share it

    def width(self, rows: int) -> int:
        """How many rows are computed where so many are asked for: few numbers, so that graphs come again."""
        return min(1 << (rows - 1).bit_length(), self.cache.rows) if self.captures else rows

    def __call__(self, ids: Tensor, routes: Routes, span: int) -> Tensor:
        """The next token of each row, int64[S], and the longest row with it -> logits float32[S, V]."""
        if not self.captures or routes.plan is not None:  # another batch of a bank has other slots
            return self._logits(ids, routes, span)
        span = min(-(-span // SPAN) * SPAN, self.cache.room)
        shape = (len(ids), span, self.cache.room)
        self._seen[shape] += 1
        if shape not in self._captured and (
            self._seen[shape] < REPEATS or not self._capture(shape, ids, routes, span)
        ):
            return self._logits(ids, routes, span)
        captured = self._captured[shape]
        captured.ids.copy_(ids)
        captured.routes.token_modality.copy_(routes.token_modality)
        captured.replay()
        return captured.logits

    def _logits(self, ids: Tensor, routes: Routes, span: int) -> Tensor:
        attend = self.cache.attention(len(ids), span)
        # The prompt's first token stands at position 1, so a row's n-th token stands at position n.
        token = Stream(self.model.decoder.embed(ids), attend.lengths, (1,) * len(ids), routes)
        return self.model.logits(self.model.through(token, attend))  # the prefill has refreshed the table

    def _capture(self, shape: tuple[int, ...], ids: Tensor, routes: Routes, span: int) -> bool:
        """Whether it could be captured: not where a kernel asks the host, as some of other libraries do."""
        # Graphs of another room are not replayed any more: rows are arranged for shorter prompts only.
        self._captured = {key: held for key, held in self._captured.items() if key[2] == self.cache.room}
        ids, routes = ids.clone(), Routes(routes.token_modality.clone())
        try:
            logits, replay = record(lambda: self._logits(ids, routes, span), self._pool)
        except RuntimeError:
            self.captures = False
            return False
        self._captured[shape] = _Captured(ids, routes, logits, replay)
        return True


def can_capture(device: torch.device) -> bool:
    """Whether there are graphs on this device."""
    return device.type == "cuda"


def memory_pool() -> Any:
    """Where graphs keep what they compute on the way."""
    return torch.cuda.graph_pool_handle()


def record(run: Callable[[], Tensor], pool: Any) -> tuple[Tensor, Callable[[], None]]:
    """A graph of what `run` launches, and where it writes; nothing is computed before it is replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        written = run()
    return written, graph.replay
