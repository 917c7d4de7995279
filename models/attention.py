"""Who sees whom: causal attention inside every segment of a packed batch.

Shapes: N packed tokens, S segments, T the longest segment, H query heads, J key-value heads, E head width.
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
