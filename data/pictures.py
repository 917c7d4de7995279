"""Picture files as RGB pictures, and as tensors for `collate`.

Every way a file can be wrong is a `DataError` that names it. Preprocessing arrives as a function: this
file knows nothing of towers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.errors import DataError
from data.sample import SlotsOf

if TYPE_CHECKING:  # importing torch takes seconds, which `python -m data check` need not wait
    from torch import Tensor

# Below Pillow's own limit (89 million), which only warns; 50 million pixels are 150 MB as RGB.
MAX_PIXELS = 50_000_000
# What Pillow's decoders are known to raise on broken content.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Prepared:
    """A picture as the tower sees it, and the size of its file."""

    views: Tensor  # float32[V, 3, H, W]; or what a frozen tower made of them, float[V, K, C]
    size: tuple[int, int]  # width, height


def open_picture(path: Path) -> Image.Image:
    """The picture of a file as RGB, over white where it is transparent; only the first of an animation."""
    with named_errors(path), Image.open(path) as picture:
        # The header is read by now, the pixels are not.
        _allowed(path, picture.size)
        if picture.mode == "F":
            raise DataError(f"{path} has 32-bit float pixels of unknown range; save it with 8 bits")
        picture.load()
        return to_rgb(picture)


def _allowed(path: Path, size: tuple[int, int]) -> tuple[int, int]:
    """The size of a picture that is not too large to decode."""
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(path, f"{size[0]} x {size[1]} pixels")
    return size


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Every way a picture file can be wrong, in one line with its name."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "too many pixels") from error
    except FileNotFoundError as error:
        raise DataError(f"there is no picture {path}; put it there or correct the row") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture in a known format; replace the file") from error
    except DataError:
        raise
    except _DECODING_ERRORS as error:
        raise DataError(f"{path} cannot be decoded ({error}); the file is broken, fetch it again") from error


def check_pictures(paths: Iterable[Path]) -> None:
    """Decodes every picture once: better a minute at the start than an error after hours."""
    # Decoding leaves the interpreter lock, so threads use every core.
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda path: open_picture(path).close(), paths):
            pass


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency over white, 16-bit greys scaled to 8 bits."""
    if picture.mode.startswith("I"):
        # Pillow clips these when converting, which leaves a 16-bit picture almost white.
        levels = np.asarray(picture).astype(np.int64)
        if levels.max(initial=0) > 255:
            levels = levels // 257
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(background, layer).convert("RGB")
    return picture.convert("RGB")


def picture_loader(preprocess: Callable[[Image.Image], Tensor]) -> Callable[[Path], Prepared]:
    """From a path to the views that preprocessing gives; picklable where the preprocessing is."""
    return partial(_prepared, preprocess)


def _prepared(preprocess: Callable[[Image.Image], Tensor], path: Path) -> Prepared:
    picture = open_picture(path)
    return Prepared(preprocess(picture), picture.size)


def slot_counter(fixed: int | None, of_size: Callable[[int, int], int] | None = None) -> SlotsOf:
    """The slots of a picture: the same for all, or by the width and height that its header tells."""
    if fixed is not None:
        return lambda path: fixed
    assert of_size is not None, "where slots depend on the size, a function of it is given"
    counted = of_size

    @cache
    def count(path: Path) -> int:
        return counted(*picture_size(path))

    return count


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, from its header alone."""
    with named_errors(path), Image.open(path) as picture:
        return _allowed(path, picture.size)


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"{path} has {size}, the limit is {MAX_PIXELS:,} pixels; scale it down")
