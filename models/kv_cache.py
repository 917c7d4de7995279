"""Keys and values that are kept while answers are written, and attention over them.

Shapes: N packed tokens, S segments, B rows (answers), T the longest segment, H query heads, J key-value
heads, E head width, L room in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.attention import PackedAttention


class KVCache:
    """Keys and values of every layer and row, for decoding one more token per row at a time."""

    def __init__(self, n_layers: int, rows: int, room: int) -> None:
        self.keys: list[Tensor | None] = [None] * n_layers  # float[B, J, L, E]
        self.values: list[Tensor | None] = [None] * n_layers
        self.rows, self.room = rows, room
        self.lengths: Tensor | None = None  # int[B]: how many tokens each row holds

    def prefill(self, packed: PackedAttention) -> _Prefill:
        """Attention over whole prompts, one segment per row, that also fills the cache."""
        if len(packed.lengths) != self.rows:
            raise ValueError(f"cache of {self.rows} rows got {len(packed.lengths)} segments")
        self.lengths = torch.tensor(packed.lengths, device=packed.device)
        return _Prefill(self, packed)

    def step(self) -> _Step:
        """Attention of one new token per row over everything before it."""
        if self.lengths is None:
            raise ValueError("the cache is empty: prefill it before the first step")
        if int(self.lengths.max()) >= self.room:
            raise ValueError(f"the cache has room for {self.room} tokens and is full")
        self.lengths = self.lengths + 1
        return _Step(self)

    def keep(self, rows: Tensor) -> None:
        """Drops every row but these (indices int[B'])."""
        self.keys = [None if x is None else x[rows] for x in self.keys]
        self.values = [None if x is None else x[rows] for x in self.values]
        self.lengths = None if self.lengths is None else self.lengths[rows]
        self.rows = len(rows)


class _Prefill:
    def __init__(self, cache: KVCache, packed: PackedAttention) -> None:
        self.cache, self.packed = cache, packed

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for store, new in ((self.cache.keys, k), (self.cache.values, v)):
            rows = self.packed.rows(new)
            room = rows.new_zeros(*rows.shape[:2], self.cache.room, rows.shape[3])
            room[:, :, : rows.shape[2]] = rows
            store[layer] = room
        return self.packed(layer, q, k, v)


class _Step:
    def __init__(self, cache: KVCache) -> None:
        assert cache.lengths is not None, "step() checks this"
        self.cache = cache
        self.row = torch.arange(cache.rows, device=cache.lengths.device)
        self.place = cache.lengths - 1  # int[B]: where the new token goes
        held = torch.arange(cache.room, device=cache.lengths.device)
        self.visible = (held < cache.lengths[:, None])[:, None, None]  # bool[B, 1, 1, L]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        assert keys is not None and values is not None, "prefill fills every layer"
        keys[self.row, :, self.place] = k
        values[self.row, :, self.place] = v
        mixed = functional.scaled_dot_product_attention(
            q[:, :, None],
            keys,
            values,
            attn_mask=self.visible,
            enable_gqa=q.shape[1] != keys.shape[1],
        )
        return mixed[:, :, 0]
