"""Which adapter of a bank answers each token of one forward (`mma/bank.py`).

Made once per batch from the names of its samples, and read by every site. Knows no adapter and no tensor
of one.

Shapes: N packed tokens (or rows of tokens: pictures, padded samples), U slots in use, V pairs of a slot and
a modality in use, n live tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BankPlan:
    """Slots in use and which token each one answers; `live` tokens are the active adapter's own."""

    slots: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]  # (position in slots, modality)
    slot_of: Tensor  # bool[N, U]: the one slot that answers a token; nothing set: the base, or live
    pair_of: Tensor  # bool[N, V]
    live: Tensor | None  # int64[n]: tokens answered by the active adapter; None: there are none

    @staticmethod
    def spread(of_token: Tensor, y: Tensor) -> Tensor:
        """`slot_of` or `pair_of` with the axes of float[N, ..., C]: bool[N, ..., U or V]."""
        axes = [len(of_token), *[1] * (y.ndim - 2), of_token.shape[1]]
        return of_token.reshape(axes).expand(*y.shape[:-1], -1)

    def select(self, tokens: Tensor) -> BankPlan:
        """The plan of some of the tokens (int64[N'])."""
        live = None
        if self.live is not None:
            is_live = torch.zeros(len(self.slot_of), dtype=torch.bool, device=tokens.device)
            is_live[self.live] = True
            live = is_live[tokens].nonzero()[:, 0]
        return BankPlan(self.slots, self.pairs, self.slot_of[tokens], self.pair_of[tokens], live)

    def behind(self, front: int) -> BankPlan:
        """The plan with so many live tokens put in front (the modality tokens)."""
        first = torch.arange(front, device=self.slot_of.device)
        live = first if self.live is None else torch.cat([first, self.live + front])
        pad = (0, 0, front, 0)
        slot_of = torch.nn.functional.pad(self.slot_of, pad)
        return BankPlan(self.slots, self.pairs, slot_of, torch.nn.functional.pad(self.pair_of, pad), live)


def plan(
    answering: Sequence[int | str | None],
    modalities: Sequence[int],
    lengths: Sequence[int],
    device: torch.device,
) -> BankPlan:
    """The plan of a packed batch, from one entry per segment.

    `answering` holds a slot, "live" for the active adapter, or None for the base.
    """
    slots = tuple(sorted({slot for slot in answering if isinstance(slot, int)}))
    place = {slot: index for index, slot in enumerate(slots)}
    wanted = [
        (place[slot], modality) if isinstance(slot, int) else None
        for slot, modality in zip(answering, modalities, strict=True)
    ]
    pairs = tuple(sorted({pair for pair in wanted if pair is not None}))
    slot_rows = torch.tensor([-1 if pair is None else pair[0] for pair in wanted])
    pair_rows = torch.tensor([-1 if pair is None else pairs.index(pair) for pair in wanted])
    live_rows = torch.tensor([slot == "live" for slot in answering], dtype=torch.bool)
    repeats = torch.tensor(lengths)
    per_token = [rows.repeat_interleave(repeats) for rows in (slot_rows, pair_rows, live_rows)]
    live = per_token[2].nonzero()[:, 0]
    return BankPlan(
        slots,
        pairs,
        slot_of=(per_token[0][:, None] == torch.arange(len(slots))).to(device),
        pair_of=(per_token[1][:, None] == torch.arange(len(pairs))).to(device),
        live=live.to(device) if len(live) else None,
    )
