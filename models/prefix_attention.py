"""Several texts behind one prompt: the prompt is computed once, and no text sees another.

Shapes: N packed tokens, M tokens of the texts behind one prompt, T those of the prompt and its texts, H query
heads, J key-value heads, G queries per key, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from models.attention import PackedAttention


@dataclass(frozen=True)
class _Segment:
    start: int
    texts: int  # where they begin
    end: int
    visible: Tensor  # bool[M, T]


class PrefixAttention:
    """Causal attention inside prompts and texts; a token of a text also sees its prompt, and no other text.

    A segment is a prompt and its texts, one behind the other. A text may be empty.
    """

    def __init__(
        self, prompts: Sequence[int], texts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> None:
        self._segments: list[_Segment] = []
        positions, of_prompts, start = [], [], 0
        for prompt, lengths in zip(prompts, texts, strict=True):
            visible = torch.cat([torch.ones(sum(lengths), prompt, dtype=torch.bool), _own(lengths)], dim=1)
            self._segments.append(
                _Segment(start, start + prompt, start + prompt + sum(lengths), visible.to(device))
            )
            positions.append(torch.arange(1, prompt + 1))
            positions += [torch.arange(prompt + 1, prompt + length + 1) for length in lengths]
            of_prompts.append(torch.arange(start, start + prompt))
            start += prompt + sum(lengths)
        self.positions = torch.cat(positions).to(device)  # int64[N]: each text goes on where its prompt ends
        self._of_prompts = torch.cat(of_prompts).to(device)
        self._prompts = PackedAttention(prompts, device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `models.decoder.Attend`; the layer makes no difference here."""
        inside = (x.index_select(0, self._of_prompts) for x in (q, k, v))
        mixed = torch.empty_like(q).index_copy(0, self._of_prompts, self._prompts(layer, *inside))
        for own in self._segments:
            if own.texts < own.end:
                whole = slice(own.start, own.end)
                texts = slice(own.texts, own.end)
                mixed[texts] = _behind(q[texts], k[whole], v[whole], own.visible)
        return mixed


def _own(lengths: Sequence[int]) -> Tensor:
    """bool[M, M]: which tokens of the texts a token of one of them sees."""
    return torch.block_diag(*(torch.ones(length, length).tril() for length in lengths)).bool()


def _behind(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention of float[M, H, E] over keys and values float[T, J, E]."""
    heads = k.shape[1]
    shared = q.shape[1] // heads
    # The queries that share a key stand one behind the other: no key is repeated for them.
    mixed = functional.scaled_dot_product_attention(
        rearrange(q, "m (j g) e -> 1 j (g m) e", j=heads),
        rearrange(k, "t j e -> 1 j t e"),
        rearrange(v, "t j e -> 1 j t e"),
        attn_mask=visible if shared == 1 else visible.repeat(shared, 1),
    )
    return rearrange(mixed, "1 j (g m) e -> m (j g) e", g=shared)
