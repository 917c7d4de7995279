"""Picture files as RGB pictures, and as tensors for `collate`.

Every way a file can be wrong is a `DataError` that names it. Preprocessing arrives as a function: this
file knows nothing of towers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.errors import DataError

if TYPE_CHECKING:  # importing torch takes seconds, which `python -m data check` need not wait
    from torch import Tensor

# Below Pillow's own limit (89 million), which only warns; 50 million pixels are 150 MB as RGB.
MAX_PIXELS = 50_000_000
# What Pillow's decoders are known to raise on broken content.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def open_picture(path: Path) -> Image.Image:
    """The picture of a file as RGB, over white where it is transparent; only the first of an animation."""
    try:
        with Image.open(path) as picture:
            # The header is read by now, the pixels are not.
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels")
            if picture.mode == "F":
                raise DataError(f"{path} has 32-bit float pixels of unknown range; save it with 8 bits")
            picture.load()
            return to_rgb(picture)
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


def picture_loader(
    preprocess: Callable[[Image.Image], Tensor], max_items: int = 0
) -> Callable[[Path], Tensor]:
    """What `collate` calls: path to float32[3, H, W]; the last `max_items` results are kept in memory."""

    def load(path: Path) -> Tensor:
        return preprocess(open_picture(path))

    return lru_cache(maxsize=max_items)(load) if max_items else load


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"{path} has {size}, the limit is {MAX_PIXELS:,} pixels; scale it down")
