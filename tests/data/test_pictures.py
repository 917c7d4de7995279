from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.pictures import open_picture, picture_loader


def save(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


def centre(path: Path) -> tuple[int, ...]:
    picture = open_picture(path)
    assert picture.mode == "RGB"
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(pixel, tuple)
    return tuple(int(value) for value in pixel)


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    assert centre(save(tmp_path / "a.png", Image.new("RGB", (4, 4), (1, 2, 3)))) == (1, 2, 3)


def test_transparency_is_white(tmp_path: Path) -> None:
    assert centre(save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (0, 0, 0, 0)))) == (255, 255, 255)
    assert centre(save(tmp_path / "b.png", Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)
    half = centre(save(tmp_path / "c.png", Image.new("RGBA", (4, 4), (255, 0, 0, 128))))
    assert half == (255, 127, 127)


def test_palettes_show_their_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert centre(save(tmp_path / "a.png", palette)) == (10, 20, 30)
    palette.save(tmp_path / "b.png", transparency=1)
    assert centre(tmp_path / "b.png") == (255, 255, 255)
    palette.save(tmp_path / "c.png", transparency=bytes([255, 0]))
    assert centre(tmp_path / "c.png") == (255, 255, 255)


def test_16_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8080, dtype=np.uint16))
    assert centre(save(tmp_path / "a.png", grey)) == (128, 128, 128)
    assert centre(save(tmp_path / "a.tif", grey)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    centre(save(tmp_path / "a.tif", Image.new(mode, (4, 4))))


def test_floats_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.new("F", (4, 4)))
    with pytest.raises(DataError, match=r"a.tif has 32-bit float pixels of unknown range"):
        open_picture(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no picture .*none.png"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be decoded"):
        open_picture(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a.png is not a picture in a known format"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "bmp"])
def test_a_truncated_picture_is_named(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{ending}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"a.{ending} (cannot be decoded|is not a picture)"):
        open_picture(path)


@pytest.mark.parametrize("side", [8_000, 10_000, 40_000])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT")
    with pytest.raises(DataError, match=r"bomb.png has .* pixels, the limit is 50,000,000 pixels"):
        open_picture(path)


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None]


def test_the_loader_preprocesses(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (5, 4), (1, 2, 3)))
    prepared = picture_loader(to_tensor)(path)
    assert prepared.size == (5, 4)
    assert prepared.views.shape == (1, 3, 4, 5)
    assert prepared.views[0, :, 0, 0].tolist() == [1, 2, 3]
