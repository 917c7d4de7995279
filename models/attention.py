"""Who sees whom: causal attention inside every segment of a packed batch, and with a key-value cache.

Shapes: N packed tokens, S segments, T the longest segment, H query heads, J key-value heads,
E head width, L room in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional


class PackedAttention:
    """Causal attention inside each segment; tokens of different segments never meet.

    Segments of similar length are laid out as rows of one [S, T] group for a fused call. Filler stands
    behind a row's own tokens, where causality hides it, so no mask is needed and no filler reaches a
    result.
    """

    SPREAD = 1.25  # the longest segment of a group is at most this much longer than its shortest

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths = tuple(lengths)
        sizes = torch.tensor(lengths)
        starts = sizes.cumsum(0) - sizes
        order = sizes.argsort(stable=True)
        self.groups: list[Tensor] = []  # int[S, T]: which packed token stands there
        places = torch.empty(int(sizes.sum()), dtype=torch.long)
        offset = 0
        for group in _similar(sizes[order].tolist(), self.SPREAD):
            members = order[group]
            column = torch.arange(int(sizes[members].max()))
            rows = starts[members, None] + column
            real = column < sizes[members, None]
            places[rows[real]] = offset + real.flatten().nonzero()[:, 0]
            self.groups.append(rows.where(real, starts[members, None]).to(device))
            offset += rows.numel()
        self.places = places.to(device)  # int[N]: where a token stands in all groups, flattened

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `models.decoder.Attend`; the layer makes no difference here."""
        mixed = torch.cat([self._group(rows, q, k, v) for rows in self.groups])
        return mixed.index_select(0, self.places)

    def rows(self, x: Tensor) -> Tensor:
        """Packed float[N, J, E] -> float[S, J, T, E] in the order of the segments, zero filled."""
        longest = max(self.lengths)
        return torch.stack(
            [
                functional.pad(rearrange(part, "t j e -> j t e"), (0, 0, 0, longest - len(part)))
                for part in x.split(self.lengths)
            ]
        )

    @staticmethod
    def _group(rows: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kind = q.dtype
        if q.device.type == "cpu":  # the fused kernel's backward in bf16 is three times slower there
            q, k, v = q.float(), k.float(), v.float()
        s, t = rows.shape
        q, k, v = (
            rearrange(x.index_select(0, rows.flatten()), "(s t) h e -> s h t e", s=s, t=t) for x in (q, k, v)
        )
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        return rearrange(mixed, "s h t e -> (s t) h e").to(kind)


def _similar(ascending: list[int], spread: float) -> list[slice]:
    """Cuts ascending lengths into runs whose last is at most `spread` times their first."""
    cuts = [0]
    for index, length in enumerate(ascending):
        if length > spread * ascending[cuts[-1]]:
            cuts.append(index)
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(ascending)], strict=True)]


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
        self.lengths = torch.tensor(packed.lengths, device=packed.places.device)
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
