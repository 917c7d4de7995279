"""The samples that the training benchmarks train on: random tokens and pictures, lengths of ScienceQA."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lengths import SLOTS, Length, lengths
from data.packing import PackedBatch, collate, pack
from data.pictures import Prepared
from data.sample import Tokens


def samples(form: str, count: int, vocabulary: int, longest: int) -> list[Tokens]:
    """So many samples of a prompt format, always the same ones; answers are cut to the longest sample."""
    drawn = random.Random(0).sample(lengths(form), count)
    return [_sample(index, length, vocabulary, longest) for index, length in enumerate(drawn)]


def packed(tokens: Sequence[Tokens], budget: int, size: tuple[int, int]) -> list[PackedBatch]:
    """The batches of a step, as training packs them, with pictures of a size in pixels."""
    groups = pack([len(each) for each in tokens], budget)
    return [_batch([tokens[index] for index in group], size) for group in groups]


def bucketed(tokens: Sequence[Tokens], budget: int, size: tuple[int, int]) -> list[PackedBatch]:
    """The same samples in groups of like length, each padded to the longest of its group."""
    ordered = sorted(tokens, key=len, reverse=True)
    batches = []
    while ordered:
        count = max(1, budget // len(ordered[0]))
        batches.append(_batch([_padded(each, len(ordered[0])) for each in ordered[:count]], size))
        del ordered[:count]
    return batches


def _padded(sample: Tokens, length: int) -> Tokens:
    """A sample with tokens behind it that cost as much as any others and are read by nobody."""
    more = length - len(sample)
    return replace(sample, ids=sample.ids + (0,) * more, supervised=sample.supervised + (False,) * more)


def _batch(tokens: Sequence[Tokens], size: tuple[int, int]) -> PackedBatch:
    return collate(tokens, lambda path: Prepared(picture(path, size)[None], size))


def picture(path: Path, size: tuple[int, int]) -> Tensor:
    """The random picture of a path, float[3, H, W]."""
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(int(path.name)))


def _sample(index: int, length: Length, vocabulary: int, longest: int) -> Tokens:
    generator = torch.Generator().manual_seed(index)
    prompt = min(length.prompt, longest // 2)
    answer = min(length.answer, longest - prompt)
    return Tokens(
        sample_id=f"s{index}",
        ids=tuple(torch.randint(3, vocabulary, (prompt + answer,), generator=generator).tolist()),
        supervised=(False,) * prompt + (True,) * answer,
        slots=tuple(range(4, 4 + SLOTS)) if length.picture else (),
        modality="image" if length.picture else "text",
        images=(Path(str(index)),) if length.picture else (),
        slot_counts=(SLOTS,) if length.picture else (),
    )
