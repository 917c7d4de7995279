"""A small drawing surface in its own units, with the colours of the mini world.

Everything is drawn at twice the size and reduced once at the end, which smooths edges. Knows nothing of
families or facts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

SIZE = 144  # units of a drawing, and pixels of the finished picture
OVERSAMPLING = 2

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (38, 38, 46)
WHITE: Colour = (255, 255, 255)
PAINTS: Mapping[str, Colour] = {
    "red": (216, 40, 44),
    "blue": (36, 92, 214),
    "green": (36, 156, 66),
    "yellow": (248, 212, 36),
    "purple": (138, 54, 178),
    "orange": (244, 130, 24),
    "pink": (250, 150, 190),
    "brown": (124, 78, 42),
    "grey": (128, 128, 134),
    "turquoise": (64, 196, 196),
    "olive": (118, 122, 40),
}


@dataclass(frozen=True)
class Pen:
    """Draws in a frame: an origin and a unit, both in pixels of the oversized picture."""

    surface: ImageDraw.ImageDraw
    origin: Point
    unit: float
    stroke: int
    mirrored: bool = False

    def at(self, x: float, y: float, size: float, mirrored: bool = False) -> Pen:
        """A pen whose (0, 0) lies here and whose unit is `size`, for an icon from -1 to 1."""
        return replace(self, origin=self._pixel((x, y)), unit=self.unit * size, mirrored=mirrored)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, outlined: bool = True) -> None:
        """A filled rectangle."""
        self.surface.rectangle(self._corners(x0, y0, x1, y1), fill, *self._outline(outlined))

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, outlined: bool = True) -> None:
        """A filled ellipse."""
        self.surface.ellipse(self._corners(x0, y0, x1, y1), fill, *self._outline(outlined))

    def disc(self, x: float, y: float, radius: float, fill: Colour, outlined: bool = True) -> None:
        """A filled circle around (x, y)."""
        self.oval(x - radius, y - radius, x + radius, y + radius, fill, outlined)

    def polygon(self, points: Sequence[Point], fill: Colour, outlined: bool = True) -> None:
        """A filled polygon."""
        pixels = [self._pixel(point) for point in points]
        self.surface.polygon(pixels, fill)
        if outlined:
            self.surface.line([*pixels, pixels[0], pixels[1]], INK, self.stroke, joint="curve")

    def line(self, points: Sequence[Point], fill: Colour = INK, width: float = 0) -> None:
        """A line through the points; width in units, or the pen's own stroke."""
        pixels = max(1, round(width * self.unit)) if width else self.stroke
        self.surface.line([self._pixel(point) for point in points], fill, pixels, joint="curve")

    def text(self, x: float, y: float, text: str, size: float, fill: Colour = INK) -> None:
        """Text centred at (x, y)."""
        font = ImageFont.load_default(size * self.unit)
        self.surface.text(self._pixel((x, y)), text, fill, font, anchor="mm")

    def _pixel(self, point: Point) -> Point:
        x = -point[0] if self.mirrored else point[0]
        return self.origin[0] + x * self.unit, self.origin[1] + point[1] * self.unit

    def _corners(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (a, b), (c, d) = self._pixel((x0, y0)), self._pixel((x1, y1))
        return min(a, c), min(b, d), max(a, c), max(b, d)

    def _outline(self, outlined: bool) -> tuple[Colour | None, int]:
        return (INK, self.stroke) if outlined else (None, 0)


SHEETS: dict[str, Colour] = {
    "white": (250, 250, 250),
    "cream": (252, 246, 226),
    "sky": (226, 240, 252),
    "mint": (228, 248, 232),
}


class Canvas:
    """One picture in the making: a sheet of paper and a pen, both slightly different every time."""

    def __init__(self, rng: random.Random, shift: float = 4, paper: str | None = None) -> None:
        any_tint = (rng.randint(236, 255), rng.randint(236, 255), rng.randint(236, 255))
        tint = any_tint if paper is None else varied(SHEETS[paper], rng, amount=3)
        side = SIZE * OVERSAMPLING
        self._tint = tint
        self._image = Image.new("RGB", (side, side), tint)
        origin = (OVERSAMPLING * rng.uniform(-shift, shift), OVERSAMPLING * rng.uniform(-shift, shift))
        self.pen = Pen(ImageDraw.Draw(self._image), origin, OVERSAMPLING, stroke=rng.randint(2, 4))

    def uncover_margin(self) -> None:
        """Shows the paper again at the edge, where a scene has covered all of it."""
        edge, last = 6 * OVERSAMPLING, self._image.width - 1
        ImageDraw.Draw(self._image).rectangle((0, 0, last, last), outline=self._tint, width=edge)

    def finished(self) -> Image.Image:
        """The picture at its final size."""
        return self._image.reduce(OVERSAMPLING)


def varied(colour: Colour, rng: random.Random, amount: int = 8) -> Colour:
    """The colour a little lighter or darker, too little to become another one."""
    change = rng.randint(-amount, amount)
    red, green, blue = (min(255, max(0, part + change)) for part in colour)
    return red, green, blue
