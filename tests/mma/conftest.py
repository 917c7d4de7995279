"""A small batch with and without a picture, and a model small enough to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.packing import PackedBatch, collate
from data.sample import Tokens


def picture(path: Path) -> Tensor:
    """A picture made from its name."""
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(sum(str(path).encode())))


def sample(name: str, length: int, slots: int) -> Tokens:
    """Random ids of which the last three are supervised."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    ids = torch.randint(3, 1700, (length + slots,), generator=generator).tolist()
    places = tuple(range(1, 1 + slots))
    for place in places:
        ids[place] = 0
    supervised = tuple(index >= len(ids) - 3 for index in range(len(ids)))
    image = Path(f"{name}.png") if slots else None
    return Tokens(name, tuple(ids), supervised, places, "image" if slots else "text", image)


@pytest.fixture
def batch() -> PackedBatch:
    """One sample with a picture, one without."""
    return collate([sample("seen", 9, 2), sample("read", 6, 0)], picture)
