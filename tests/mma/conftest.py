"""A small batch with and without a picture, and a model small enough to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens, modality_of
from mma.__main__ import main
from models.build import load
from tests.mma.lavin_files import published, write
from tests.small import World


def picture(path: Path) -> Prepared:
    """A picture made from its name."""
    generator = torch.Generator().manual_seed(sum(str(path).encode()))
    return Prepared(torch.randn(1, 3, 16, 16, generator=generator), (16, 16))


def sample(name: str, length: int, slots: int) -> Tokens:
    """Random ids of which the last three are supervised."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    ids = torch.randint(3, 1700, (length + slots,), generator=generator).tolist()
    places = tuple(range(1, 1 + slots))
    for place in places:
        ids[place] = 0
    supervised = tuple(index >= len(ids) - 3 for index in range(len(ids)))
    images = (Path(f"{name}.png"),) if slots else ()
    return Tokens(name, tuple(ids), supervised, places, modality_of(images), images, (slots,) * len(images))


@pytest.fixture
def batch() -> PackedBatch:
    """One sample with a picture, one without."""
    return collate([sample("seen", 9, 2), sample("read", 6, 0)], picture)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must refuse, and gives its only line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # a wrong command line, refused by argparse
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        # A slow machine may say what takes it so long.
        lines = [line for line in printed.err.splitlines() if not line.endswith(" ...")]
        assert (code, printed.out, len(lines)) == (2, "", 1), printed
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.fixture
def checkpoint(world: World) -> Path:
    """The world's adapter as LaVIN would have stored it."""
    tensors = load(world.adapter).model.adapters.trainable_parameters()
    return write(world.root / "checkpoint-19.pth", published(dict(tensors)), adapter_dim=4)
