"""How a picture becomes views for the tower and slots in the sequence.

Most ways give one view of every picture. `anyres` (LLaVA-NeXT) cuts it into tiles on the grid that fits it
best, shows the whole as one more view, and lays the tiles' tokens out as one large grid without its padding,
with a learned newline behind every row. How many slots a picture takes follows from its size alone.

Shapes: V views of H x W pixels, K tokens of a view, D decoder width, M slots of all pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from models.errors import ModelError

MODES = ("own", "square", "pad", "squash", "anyres")


class Layout:
    """From pictures to views, and from the tokens of views to slots.

    Args:
        settings: Size, mean, deviation and interpolation of the tower.
        mode: own (the tower's own way), square (shortest side, then the centre, to the pixel as Hugging Face
            cuts it), pad (to a square with the mean colour), squash (to a square whatever the shape) or
            anyres.
        grids: For anyres: rows x columns of tiles to choose among, such as "1x2,2x1,2x2", or a range
            "(1x1),...,(6x6)". Of grids that fit alike the first is taken, so their order counts. (In pixels
            Hugging Face writes them height first, LLaVA's own files width first.)
        grid: Rows and columns of tokens of a view, as the tower gives them.

    Raises ModelError for an unknown mode, a wrong grid, or settings that cannot prepare a picture.
    """

    def __init__(self, settings: PreprocessCfg, mode: str, grids: str, grid: tuple[int, int]) -> None:
        if mode not in MODES:
            raise ModelError(f"pictures: {mode!r} is no way to show them; choose {', '.join(MODES)}")
        self.mode, self.grid = mode, grid
        size = settings.size if isinstance(settings.size, tuple | list) else (settings.size, settings.size)
        self.height, self.width = int(size[0]), int(size[1])
        self.newline = mode == "anyres"
        self.grids = parse_grids(grids) if self.newline else ()
        resize = settings.resize_mode if mode == "own" else "squash"
        try:
            # What is already a square of the right size is only normalised.
            self._transform = image_transform_v2(replace(settings, resize_mode=resize), is_train=False)
            self._transform(Image.new("RGB", (8, 8)))
            self._mean = tuple(int(255 * value) for value in settings.mean)
            self._resampling = Image.Resampling[settings.interpolation.upper()]
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ModelError(
                f"tower: preprocess_cfg cannot prepare a picture ({error}); correct it"
            ) from error

    def __call__(self, picture: Image.Image) -> Tensor:
        """The views of a picture, float32[V, 3, H, W]; the whole comes first."""
        if self.mode == "pad":
            picture = _padded(picture, self._mean)
        if self.mode == "square":
            picture = self._centre(picture)
        if not self.newline:
            view: Tensor = self._transform(picture)
            return view[None]
        tiles = [picture, *self._tiles(picture)]
        return torch.stack([self._transform(tile) for tile in tiles])

    def views(self, width: int, height: int) -> int:
        """How many views a picture of this size has."""
        return 1 + math.prod(self._best(width, height)) if self.newline else 1

    def fixed(self, tokens: int) -> int | None:
        """Slots of a picture where views have so many tokens; None where its size decides."""
        return None if self.newline else tokens

    def slots(self, width: int, height: int, tokens: int) -> int:
        """Slots of a picture of this size where views have so many tokens."""
        if not self.newline:
            return tokens
        rows, columns = self._unpadded(width, height)
        return tokens + len(rows) * (len(columns) + 1)

    def arrange(
        self, features: Tensor, sizes: Sequence[tuple[int, int]], newlines: Sequence[Tensor] | None
    ) -> Tensor:
        """Tokens of all views float[V, K, D] -> what stands in the slots of all pictures float[M, D]."""
        if not self.newline:
            return features.flatten(0, 1)
        assert newlines is not None, "a layout with newlines is given them"
        parts = features.split([self.views(*size) for size in sizes])
        return torch.cat([self._one(*given) for given in zip(parts, sizes, newlines, strict=True)])

    def _one(self, views: Tensor, size: tuple[int, int], newline: Tensor) -> Tensor:
        """The whole's tokens, then those of the tiles row by row, without their padding."""
        down, across = self._best(*size)
        rows, columns = self.grid
        tiles = rearrange(views[1:], "(a b) (r c) d -> (a r) (b c) d", a=down, b=across, r=rows, c=columns)
        high, wide = self._unpadded(*size)
        kept = tiles[high.start : high.stop, wide.start : wide.stop]
        ended = torch.cat([kept, newline.to(kept.dtype).expand(len(kept), 1, -1)], dim=1)
        return torch.cat([views[0], ended.flatten(0, 1)])

    def _best(self, width: int, height: int) -> tuple[int, int]:
        """The grid that keeps most of a picture's pixels, of equals the one with least room left over."""
        found, best = self.grids[0], (-1, 0)
        for down, across in self.grids:
            high, wide = down * self.height, across * self.width
            scale = min(wide / width, high / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            if (kept, kept - high * wide) > best:
                found, best = (down, across), (kept, kept - high * wide)
        return found

    def _centre(self, picture: Image.Image) -> Image.Image:
        """The middle of a picture that is resized to cover a view."""
        width, height = self.width, self.height
        if width * picture.height > height * picture.width:
            size = (width, int(width * picture.height / picture.width))
        else:
            size = (int(height * picture.width / picture.height), height)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        resized = picture.resize(size, self._resampling)
        return resized.crop((left, top, left + width, top + height))

    def _tiles(self, picture: Image.Image) -> list[Image.Image]:
        """A picture on black, cut into tiles row by row."""
        down, across = self._best(*picture.size)
        high, wide = down * self.height, across * self.width
        to_width, to_height = wide / picture.width, high / picture.height
        if to_width < to_height:
            size = (wide, min(math.ceil(picture.height * to_width), high))
        else:
            size = (min(math.ceil(picture.width * to_height), wide), high)
        canvas = Image.new("RGB", (wide, high))
        place = ((wide - size[0]) // 2, (high - size[1]) // 2)
        canvas.paste(picture.resize(size, self._resampling), place)
        return [
            canvas.crop((x, y, x + self.width, y + self.height))
            for y in range(0, high, self.height)
            for x in range(0, wide, self.width)
        ]

    def _unpadded(self, width: int, height: int) -> tuple[range, range]:
        """Rows and columns of the large grid of tokens that a picture covers (as in transformers)."""
        down, across = self._best(width, height)
        rows, columns = down * self.grid[0], across * self.grid[1]
        if width / height > columns / rows:
            covered = int(round(height * (columns / width), 7))
            spare = (rows - covered) // 2
            return range(spare, rows - spare), range(columns)
        covered = int(round(width * (rows / height), 7))
        spare = (columns - covered) // 2
        return range(rows), range(spare, columns - spare)


def parse_grids(text: str) -> tuple[tuple[int, int], ...]:
    """Rows and columns of every grid that a setting names."""
    words = [word.strip().strip("()") for word in text.split(",")]
    number = r"([1-9]\d?)x([1-9]\d?)"
    if len(words) == 3 and words[1] == "...":
        first, last = (re.fullmatch(number, word) for word in (words[0], words[2]))
        if first and last:
            rows, columns = (range(int(first[i]), int(last[i]) + 1) for i in (1, 2))
            if rows and columns:
                return tuple((down, across) for down in rows for across in columns)
    found = [re.fullmatch(number, word) for word in words]
    if not all(found):
        raise ModelError(
            f"pictures: grids are {text!r}; write rows x columns such as 1x2,2x1,2x2 or (1x1),...,(6x6)"
        )
    return tuple((int(each[1]), int(each[2])) for each in found if each)


def _padded(picture: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """A picture in the middle of a square of this colour."""
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square
