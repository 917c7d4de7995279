"""Keys and values that are kept while answers are written, and attention over them.

Shapes: N packed tokens, B rows (answers), S rows of one step, H query heads, J key-value heads, G queries per
key, E head width, L room of a row, T how much of it a step looks at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from models.attention import PackedAttention


class KVCache:
    """Keys and values of every layer and row, for decoding one more token per row at a time.

    One piece of memory per layer and kind, taken at the first prefill and kept. A free row between others is
    computed with and not looked at. `tokens` is the size of that memory, where other shapes are to fit too.
    """

    def __init__(
        self, n_layers: int, rows: int, room: int, device: torch.device | str = "cpu", tokens: int = 0
    ) -> None:
        self.keys: list[Tensor | None] = [None] * n_layers  # float[B, J, L, E]
        self.values: list[Tensor | None] = [None] * n_layers
        self.rows, self.room = rows, room
        self.tokens = max(tokens, rows * room)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # int64[B], where steps read them
        self.held = [0] * rows  # the same on the host; 0: the row is free

    @property
    def free(self) -> list[int]:
        """The rows that hold nothing."""
        return [row for row, held in enumerate(self.held) if not held]

    @property
    def used(self) -> int:
        """How many rows from the first to the last that is not free."""
        return max((row + 1 for row, held in enumerate(self.held) if held), default=0)

    def prefill(self, packed: PackedAttention, rows: Sequence[int]) -> _Prefill:
        """Attention over whole prompts that also fills these rows, one segment each."""
        if len(packed.lengths) != len(rows):
            raise ValueError(f"cache of {len(rows)} rows got {len(packed.lengths)} segments")
        for row, length in zip(rows, packed.lengths, strict=True):
            self.held[row] = length
        index = torch.tensor(rows)
        lengths = torch.tensor(packed.lengths)
        self.lengths[index.to(packed.device)] = lengths.to(packed.device)
        places = torch.cat([torch.arange(length) for length in packed.lengths])
        return _Prefill(self, packed, index.repeat_interleave(lengths), places)

    def advance(self) -> int:
        """Counts one more token in every row that is not free, and says how long the longest is then."""
        if not any(self.held):
            raise ValueError("the cache is empty: prefill it before the first step")
        if max(self.held) >= self.room:
            raise ValueError(f"the cache has room for {self.room} tokens and is full")
        self.held = [held + bool(held) for held in self.held]
        return max(self.held)

    def attention(self, rows: int, span: int) -> _Step:
        """Attention of one new token in each of the first rows over what the first places hold.

        `advance` comes first. It asks the device alone, so it can be captured.
        """
        return _Step(self, rows, span)

    def drop(self, rows: Sequence[int]) -> None:
        """Frees rows."""
        for row in rows:
            self.held[row] = 0

    def keep(self, rows: Tensor) -> None:
        """Frees every row but these (int64[B'] on the host), which become the first ones, in this order."""
        places = torch.arange(len(rows))
        moved = places != rows
        if moved.any():
            device, most = self.lengths.device, max(self.held)
            into, out_of = places[moved].to(device), rows[moved].to(device)
            for x in (*self.keys, *self.values):
                if x is not None:
                    x[into, :, :most] = x[out_of, :, :most]
            self.lengths[into] = self.lengths[out_of]
        held = [self.held[row] for row in rows.tolist()]
        self.held = held + [0] * (self.rows - len(held))

    def arrange(self, rows: int, room: int) -> None:
        """The same memory as other rows of another room; what is held stands in the first ones."""
        used, most = self.used, max(self.held)
        if rows * room > self.tokens or rows < used or room < most:
            raise ValueError(f"{rows} rows of {room} tokens do not fit the cache of {self.tokens}")
        for held in (self.keys, self.values):
            held[:] = [None if x is None else _rearranged(x, rows, room, used, most) for x in held]
        lengths = self.lengths.new_zeros(rows)
        lengths[:used] = self.lengths[:used]
        self.lengths, self.held = lengths, self.held[:used] + [0] * (rows - used)
        self.rows, self.room = rows, room

    def write(self, layer: int, k: Tensor, v: Tensor, row: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Puts float[N, J, E] into the rows and places of N tokens; the keys and values of the layer."""
        for held, new in ((self.keys, k), (self.values, v)):
            x = held[layer]
            if x is None:  # zeros: what is masked must be finite
                memory = new.new_zeros(self.tokens * new.shape[1] * new.shape[2])
                x = held[layer] = _shaped(memory, self.rows, new.shape[1], self.room, new.shape[2])
            x[row, :, place] = new
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None and values is not None, "written above"
        return keys, values


class _Prefill:
    def __init__(self, cache: KVCache, packed: PackedAttention, row: Tensor, place: Tensor) -> None:
        self.cache, self.packed = cache, packed
        self.row, self.place = row.to(packed.device), place.to(packed.device)  # int64[N]: where a token goes

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, k, v, self.row, self.place)
        return self.packed(layer, q, k, v)


class _Step:
    def __init__(self, cache: KVCache, rows: int, span: int) -> None:
        self.cache, self.span = cache, span
        # A free row counts on too, up to the end of its room.
        self.lengths = cache.lengths[:rows].add_(1).clamp_(max=cache.room)  # int64[S]
        self.row = torch.arange(rows, device=self.lengths.device)
        self.place = self.lengths - 1  # int64[S]: where the new token goes
        held = torch.arange(span, device=self.lengths.device)
        self.hidden = (held >= self.lengths[:, None])[:, None, None]  # bool[S, 1, 1, T]
        self.mask: Tensor | None = None  # float[S, 1, 1, T], what all layers add to their scores

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.write(layer, k, v, self.row, self.place)
        if self.mask is None:
            self.mask = torch.zeros_like(self.hidden, dtype=q.dtype).masked_fill_(self.hidden, -torch.inf)
        # The queries that share a key stand as a sequence: no key is repeated for them.
        mixed = functional.scaled_dot_product_attention(
            rearrange(q, "s (j g) e -> s j g e", j=k.shape[1]),
            keys[: len(q), :, : self.span],
            values[: len(q), :, : self.span],
            attn_mask=self.mask,
        )
        return rearrange(mixed, "s j g e -> s (j g) e")


def _shaped(memory: Tensor, rows: int, heads: int, room: int, width: int) -> Tensor:
    """The beginning of a piece of memory as float[B, J, L, E]."""
    strides = (heads * room * width, room * width, width, 1)
    return torch.as_strided(memory, (rows, heads, room, width), strides)


def _rearranged(x: Tensor, rows: int, room: int, used: int, most: int) -> Tensor:
    """The memory of float[B, J, L, E] as rows of another room, with what the first rows hold."""
    held = x[:used, :, :most].clone()
    other = _shaped(x, rows, x.shape[1], room, x.shape[3])
    other[:used, :, :most] = held
    return other
