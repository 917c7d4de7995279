"""Cached pictures: the bits of the uncached way, made once, made anew when broken, safe among processes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data import picture_cache
from data.errors import DataError
from data.picture_cache import cached_pictures, from_levels, in_levels
from data.pictures import Prepared, picture_loader
from models.build import BaseSettings, features_of, layout_of, spec_of
from models.tower import Tower
from models.views import MODES


class Counted:
    """A loader that tells how often it was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.asked, self.factor = 0, factor

    def __call__(self, path: Path) -> Prepared:
        self.asked += 1
        return picture_loader(self.preprocess)(path)

    def preprocess(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] * self.factor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return draw(tmp_path / "picture.png", seed=0)


def draw(path: Path, seed: int, size: tuple[int, int] = (30, 20)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def same(one: Prepared, other: Prepared) -> bool:
    return one.size == other.size and torch.equal(one.views, other.views)


@pytest.mark.parametrize("mode", MODES)
def test_the_views_of_a_tower_come_back_to_the_bit(path, tmp_path, mode):
    kind = "patches" if mode == "anyres" else "class"
    settings = BaseSettings(pictures=mode, tower_features=kind)
    spec = spec_of(settings)
    layout = layout_of(settings, spec, Tower(spec, features_of(settings)))
    load = cached_pictures(picture_loader(layout), tmp_path / "cache", mode)
    first, again = load(path), load(path)
    assert same(again, first) and again.size == (30, 20)
    assert torch.equal(again.views.view(torch.int32), first.views.view(torch.int32))
    assert again.views.dtype == torch.float32 and again.views.is_contiguous()
    (entry,) = files(tmp_path / "cache")
    assert entry.stat().st_size < 0.5 * first.views.nbytes, "eight bits per pixel, not 32"


def test_more_than_256_values_are_kept_whole():
    views = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert in_levels(views).keys() == {"views"}
    assert torch.equal(from_levels(in_levels(views)), views)
    few = views.clamp(-0.001, 0.001)[:, :, :12, :10]
    assert in_levels(few).keys() == {"levels", "values"}
    assert torch.equal(from_levels(in_levels(few)), few)


def test_a_picture_is_made_once_and_again_when_the_file_or_the_way_changes(path, tmp_path):
    load, folder = Counted(), tmp_path / "cache"
    cached = cached_pictures(load, folder, "one way")
    first = cached(path)
    assert same(cached(path), first) and load.asked == 1
    assert same(cached_pictures(load, folder, "one way")(path), first) and load.asked == 1, "the next run"
    double = Counted(2.0)
    assert torch.equal(cached_pictures(double, folder, "another")(path).views, 2 * first.views)
    draw(path, seed=1)
    os.utime(path, ns=(1, 1))
    assert not same(cached(path), first) and load.asked == 2
    assert len(files(folder)) == 3


@pytest.mark.parametrize("spoil", ["cut", "empty", "flip", "other"])
def test_a_broken_entry_is_made_anew(path, tmp_path, spoil):
    load = Counted()
    cached = cached_pictures(load, tmp_path / "cache", "way")
    first = cached(path)
    (entry,) = files(tmp_path / "cache")
    whole = entry.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    payload = {"cut": whole[: len(whole) // 2], "empty": b"", "flip": flipped}.get(spoil)
    if payload is None:  # whole, but of something else
        picture_cache.write_entry(entry, {"size": torch.tensor([1, 1])})
    else:
        entry.write_bytes(payload)
    assert same(cached(path), first) and load.asked == 2
    assert entry.read_bytes() == whole
    assert same(cached(path), first) and load.asked == 2


def test_many_at_once_leave_one_whole_entry(path, tmp_path):
    cached = cached_pictures(Counted(), tmp_path / "cache", "way")
    for _ in range(20):  # a lost race shows in few of them
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(cached, [path] * 16))
        assert all(same(each, found[0]) for each in found)
        (entry,) = files(tmp_path / "cache")
        entry.unlink()
    cached(path)
    assert len(files(tmp_path / "cache")) == 1


def test_a_missing_or_broken_picture_is_named_as_without(path, tmp_path):
    cached = cached_pictures(Counted(), tmp_path / "cache", "way")
    with pytest.raises(DataError, match=r"there is no picture .*none\.png; put it there"):
        cached(tmp_path / "none.png")
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"picture\.png is not a picture in a known format"):
        cached(path)
    cached(draw(path, seed=0))
    path.unlink()
    with pytest.raises(DataError, match=r"there is no picture .*picture\.png"):
        cached(path)


def test_a_folder_that_cannot_be_written_is_one_line(path, tmp_path):
    (tmp_path / "cache").write_text("a file")
    cached = cached_pictures(Counted(), tmp_path / "cache", "way")
    with pytest.raises(DataError, match=r"cache cannot be written \(Not a dir.*data\.picture_cache"):
        cached(path)


def test_a_full_disk_is_one_line_and_leaves_nothing(path, tmp_path, monkeypatch):
    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): make room"):
        cached_pictures(Counted(), tmp_path / "cache", "way")(path)
    assert files(tmp_path / "cache") == []
