"""Small icons of animals, plants and landmarks, each drawn in a frame from -1 to 1.

Every icon differs from the others of its family in outline and in colour, so that it stays readable at
a few pixels. Knows nothing of families or of where an icon is put.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from data.mini.canvas import INK, WHITE, Colour, Pen

Icon = Callable[[Pen], None]

LEAF: Colour = (60, 170, 60)
WOOD: Colour = (124, 78, 42)
WATER: Colour = (70, 150, 230)


def grass(pen: Pen) -> None:
    """A tuft of green blades."""
    for place in (-0.7, -0.35, 0.0, 0.35, 0.7):
        tip = (1.5 * place, -0.9 + 0.5 * abs(place))
        pen.polygon([(0.6 * place - 0.2, 0.8), tip, (0.6 * place + 0.2, 0.8)], LEAF)
    pen.box(-1, 0.75, 1, 1, WOOD)


def algae(pen: Pen) -> None:
    """Wavy strands in blue water."""
    pen.box(-1, -1, 1, 1, (120, 190, 245))
    for place in (-0.6, 0.0, 0.6):
        strand = [(place + 0.16 * math.sin(9 * step / 8), 0.95 - 1.6 * step / 8) for step in range(9)]
        pen.line(strand, (16, 92, 74), 0.24)


def corn(pen: Pen) -> None:
    """A yellow cob between two green leaves."""
    pen.oval(-0.42, -1, 0.42, 0.8, (250, 208, 40))
    for row in range(5):
        for column in (-0.2, 0.2):
            pen.disc(column, -0.65 + 0.27 * row, 0.08, (200, 140, 10), outlined=False)
    pen.polygon([(0, 1), (-0.85, -0.25), (-0.25, 0.2)], LEAF)
    pen.polygon([(0, 1), (0.85, -0.25), (0.25, 0.2)], LEAF)


def fox(pen: Pen) -> None:
    """An orange face with pointed ears and a white snout."""
    coat: Colour = (238, 118, 28)
    pen.polygon(
        [(-0.95, -1), (-0.25, -0.5), (0.25, -0.5), (0.95, -1), (0.85, 0.05), (0, 1), (-0.85, 0.05)], coat
    )
    pen.polygon([(-0.8, 0.1), (-0.2, 0.25), (0, 0.95)], WHITE, outlined=False)
    pen.polygon([(0.8, 0.1), (0.2, 0.25), (0, 0.95)], WHITE, outlined=False)
    for side in (-0.38, 0.38):
        pen.disc(side, -0.1, 0.12, INK, outlined=False)
    pen.disc(0, 0.86, 0.16, INK, outlined=False)


def owl(pen: Pen) -> None:
    """A brown bird with two large round eyes."""
    coat: Colour = (134, 88, 50)
    pen.polygon([(-0.75, -1), (-0.2, -0.6), (-0.7, -0.3)], coat)
    pen.polygon([(0.75, -1), (0.2, -0.6), (0.7, -0.3)], coat)
    pen.oval(-0.8, -0.85, 0.8, 1, coat)
    pen.oval(-0.45, 0.1, 0.45, 0.95, (214, 178, 130), outlined=False)
    for side in (-0.36, 0.36):
        pen.disc(side, -0.3, 0.34, WHITE)
        pen.disc(side, -0.3, 0.15, INK, outlined=False)
    pen.polygon([(-0.14, -0.05), (0.14, -0.05), (0, 0.25)], (248, 180, 30))


def shark(pen: Pen) -> None:
    """A grey-blue fish with a tall fin and white teeth."""
    skin: Colour = (104, 124, 150)
    pen.polygon([(-0.15, -0.3), (0.15, -1), (0.45, -0.3)], skin)
    pen.polygon([(0.6, 0.05), (1.05, -0.65), (0.95, 0.1), (1.05, 0.7)], skin)
    pen.oval(-1.05, -0.45, 0.85, 0.55, skin)
    pen.polygon([(-0.1, 0.4), (0.25, 0.4), (0.3, 0.95)], skin)
    pen.polygon([(-0.95, 0.15), (-0.35, 0.2), (-0.6, 0.42)], WHITE)
    pen.disc(-0.6, -0.1, 0.12, INK, outlined=False)


def snake(pen: Pen) -> None:
    """A green snake in waves, with a red tongue."""
    body = [(1 - 2 * step / 24, 0.45 * math.sin(step * math.pi / 6)) for step in range(22)]
    pen.line(body, INK, 0.46)
    pen.line(body, (120, 200, 40), 0.34)
    pen.line([(-0.95, -0.6), (-1.2, -0.8)], (220, 30, 40), 0.1)
    pen.oval(-1.1, -0.75, -0.4, -0.15, (120, 200, 40))
    pen.disc(-0.8, -0.5, 0.11, INK, outlined=False)


def bird(pen: Pen) -> None:
    """A blue bird in flight with both wings up."""
    coat: Colour = (46, 104, 220)
    pen.polygon([(-0.1, 0.1), (-0.3, -1), (0.4, 0.1)], coat)
    pen.polygon([(0.55, 0.1), (1.1, -0.35), (1.1, 0.4)], coat)
    pen.oval(-0.7, -0.15, 0.75, 0.6, coat)
    pen.disc(-0.68, -0.05, 0.34, coat)
    pen.polygon([(-0.95, -0.15), (-1.35, 0.05), (-0.95, 0.15)], (250, 190, 30))
    pen.disc(-0.76, -0.1, 0.09, WHITE, outlined=False)


def squirrel(pen: Pen) -> None:
    """A sitting reddish squirrel with a big tail."""
    coat: Colour = (190, 84, 34)
    pen.oval(0.15, -0.95, 1.05, 0.55, coat)
    pen.oval(0.45, -0.6, 0.8, 0.1, (236, 150, 90), outlined=False)
    pen.oval(-0.55, -0.25, 0.5, 1, coat)
    pen.oval(-0.4, 0.1, 0.1, 0.85, (250, 226, 190), outlined=False)
    pen.polygon([(-0.6, -0.7), (-0.5, -1.1), (-0.25, -0.75)], coat)
    pen.disc(-0.5, -0.4, 0.42, coat)
    pen.disc(-0.62, -0.48, 0.1, INK, outlined=False)


def butterfly(pen: Pen) -> None:
    """Four violet wings around a thin body."""
    for side in (-1, 1):
        wing = pen.at(0, 0, 1, mirrored=pen.mirrored != (side < 0))
        wing.oval(0.02, -0.95, 1.05, 0.1, (186, 70, 214))
        wing.oval(0.02, 0.0, 0.8, 0.85, (232, 130, 236))
        wing.disc(0.58, -0.42, 0.2, (252, 232, 90), outlined=False)
        wing.line([(0, -0.6), (0.3, -1.1)])
    pen.oval(-0.14, -0.75, 0.14, 0.8, INK)


def lake(pen: Pen) -> None:
    """Blue water with waves."""
    pen.oval(-1.1, -0.75, 1.1, 0.75, WATER)
    for height in (-0.3, 0.0, 0.3):
        wave = [(-0.6 + 0.15 * step, height + 0.08 * (-1) ** step) for step in range(9)]
        pen.line(wave, WHITE, 0.09)


def forest(pen: Pen) -> None:
    """Three dark green firs."""
    for x, y in ((-0.62, 0.0), (0.62, 0.0), (0.0, 0.2)):
        pen.box(x - 0.1, y + 0.4, x + 0.1, y + 0.8, WOOD)
        pen.polygon([(x - 0.48, y + 0.5), (x, y - 1.1), (x + 0.48, y + 0.5)], (20, 112, 50))


def mountain(pen: Pen) -> None:
    """A grey peak with snow."""
    pen.polygon([(-0.2, 0.85), (0.55, -0.35), (1.15, 0.85)], (150, 140, 136))
    pen.polygon([(-1.15, 0.85), (-0.2, -1), (0.75, 0.85)], (128, 118, 114))
    pen.polygon([(-0.52, -0.38), (-0.2, -1), (0.12, -0.38), (-0.2, -0.15)], WHITE)


def castle(pen: Pen) -> None:
    """A reddish castle with battlements, two towers and a gate."""
    wall: Colour = (206, 90, 96)
    pen.box(-0.6, -0.1, 0.6, 0.85, wall)
    for x in (-0.8, 0.8):
        pen.box(x - 0.3, -0.55, x + 0.3, 0.85, wall)
        pen.polygon([(x - 0.4, -0.5), (x, -1.1), (x + 0.4, -0.5)], (130, 40, 110))
    for x in (-0.3, 0.0, 0.3):
        pen.box(x - 0.09, -0.3, x + 0.09, -0.1, wall)
    pen.box(-0.2, 0.3, 0.2, 0.85, INK)


ICONS: Mapping[str, Icon] = {
    icon.__name__: icon
    for icon in (
        grass, algae, corn, fox, owl, shark, snake, bird, squirrel, butterfly,
        lake, forest, mountain, castle,
    )
}  # fmt: skip
