"""Pictures that cannot be decoded are found with a reason, and shown as grey where that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from data.pictures import picture_loader
from eval.errors import EvalError
from eval.unreadable import grey_instead, unreadable
from tests.eval.tiny import tiny_system


@dataclass
class Pictures:
    """A good picture, one that ends early, one that is text, and one that is not there."""

    good: Path
    cut: Path
    text: Path
    gone: Path


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """The four files in a folder."""
    good, cut, text = (tmp_path / name for name in ("good.png", "cut.png", "text.png"))
    Image.effect_noise((60, 40), 80).convert("RGB").save(good)
    cut.write_bytes(good.read_bytes()[:900])
    text.write_text("not a picture")
    return Pictures(good, cut, text, tmp_path / "gone.png")


def test_each_bad_picture_is_named_once_with_its_reason(pictures: Pictures) -> None:
    found = unreadable([pictures.text, pictures.good, pictures.cut, pictures.gone, pictures.cut])
    assert list(found) == [pictures.text, pictures.cut, pictures.gone]
    assert "not a picture in a known format" in found[pictures.text]
    assert "cannot be decoded" in found[pictures.cut]
    assert "there is no picture" in found[pictures.gone]


def test_a_bad_picture_is_grey_and_a_good_one_is_itself(pictures: Pictures) -> None:
    system = tiny_system()
    load = picture_loader(system.preprocess)
    shown = grey_instead(load, unreadable([pictures.good, pictures.cut]), system)
    assert torch.equal(shown(pictures.good).views, load(pictures.good).views)
    grey = shown(pictures.cut)
    assert grey.size == (16, 16)
    assert torch.equal(grey.views, system.preprocess(Image.new("RGB", (16, 16), (128, 128, 128))))


def test_without_bad_pictures_nothing_changes(pictures: Pictures) -> None:
    load = picture_loader(tiny_system().preprocess)
    assert grey_instead(load, {}, tiny_system()) is load


def test_where_slots_depend_on_the_size_it_is_an_error(pictures: Pictures) -> None:
    system: Any = SimpleNamespace(image_slots=None)
    with pytest.raises(EvalError, match="1 pictures cannot be decoded .*cut.png.*replace the files"):
        grey_instead(lambda path: None, [pictures.cut], system)  # type: ignore[arg-type,return-value]
