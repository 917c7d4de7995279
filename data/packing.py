"""Samples of any length in one flat batch without padding.

Axes: N tokens of S segments (one per sample), M image slots, P pictures, V views of them (a picture can be
shown as several), L supervised positions.
Knows nothing of text: it sees token ids, and opens pictures through the function it is given.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data.errors import DataError
from data.pictures import Prepared
from data.sample import Tokens

LoadPicture = Callable[[Path], Prepared]


@dataclass
class PackedBatch:
    """N tokens of S segments, M image slots, P pictures and L supervised positions."""

    ids: Tensor  # int64[N]
    positions: Tensor  # int64[N], from 1 in every segment: 0 is the modality token's
    lengths: tuple[int, ...]  # S
    modalities: tuple[str, ...]  # S
    slots: Tensor  # int64[M], flat positions filled with picture features, in order
    pictures: Tensor | None  # float32[V, 3, H, W], the views of all pictures; or features float[V, K, C]
    sizes: tuple[tuple[int, int], ...]  # P, width and height of each picture's file
    sources: Tensor  # int64[L], flat position that predicts
    targets: Tensor  # int64[L], id it must predict
    sample_ids: tuple[str, ...]  # S
    adapters: tuple[str | None, ...] | None = None  # S: who answers a segment; None: the active one all

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with its tensors on a device."""
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            slots=self.slots.to(device),
            pictures=None if self.pictures is None else self.pictures.to(device),
            sources=self.sources.to(device),
            targets=self.targets.to(device),
        )


def collate(tokens: Sequence[Tokens], load_picture: LoadPicture) -> PackedBatch:
    """One batch of the samples in their order."""
    if not tokens:
        raise ValueError("a batch needs at least one sample")
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    for sample in tokens:
        start = len(ids)
        ids.extend(sample.ids)
        positions.extend(range(1, len(sample) + 1))
        slots.extend(start + slot for slot in sample.slots)
        for index, is_target in enumerate(sample.supervised):
            if is_target:
                sources.append(start + index - 1)
                targets.append(sample.ids[index])
    prepared = _prepared(tokens, load_picture)
    return PackedBatch(
        ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        lengths=tuple(len(sample) for sample in tokens),
        modalities=tuple(sample.modality for sample in tokens),
        slots=torch.tensor(slots, dtype=torch.int64),
        pictures=torch.cat([picture.views for picture in prepared]) if prepared else None,
        sizes=tuple(picture.size for picture in prepared),
        sources=torch.tensor(sources, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        sample_ids=tuple(sample.sample_id for sample in tokens),
    )


def pack(lengths: Sequence[int], budget: int, ids: Sequence[str] | None = None) -> list[list[int]]:
    """Groups of indices of at most `budget` tokens each; `ids` are the names used in an error.

    Best fit, longest first: few groups, and the same ones for the same lengths. Indices ascend within
    a group, and groups follow their first index.
    """
    _refuse_longer(lengths, budget, ids)
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, group), ascending
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(room, (lengths[index], -1))
        if place < len(room):
            free, group = room.pop(place)
        else:
            free, group = budget, len(groups)
            groups.append([])
        groups[group].append(index)
        insort(room, (free - lengths[index], group))
    return sorted(sorted(group) for group in groups)


def _refuse_longer(lengths: Sequence[int], budget: int, ids: Sequence[str] | None) -> None:
    for index, length in enumerate(lengths):
        if length > budget:
            name = f"sample {ids[index]}" if ids is not None else f"the sample at index {index}"
            raise DataError(
                f"{name} has {length} tokens, more than the {budget} of one batch; "
                "raise the token budget or fit the samples to it"
            )


def _prepared(tokens: Sequence[Tokens], load_picture: LoadPicture) -> list[Prepared]:
    """Every picture of the samples, in order."""
    pictures: list[Prepared] = []
    for sample in tokens:
        for path in sample.images:
            picture = load_picture(path)
            shape, wanted = picture.views.shape[1:], (pictures or [picture])[0].views.shape[1:]
            if shape != wanted:
                raise DataError(
                    f"picture of sample {sample.sample_id} ({path}) is {tuple(shape)} after preprocessing, "
                    f"others are {tuple(wanted)}; preprocessing must give one size"
                )
            pictures.append(picture)
    return pictures
