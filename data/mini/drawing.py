"""Draws the facts of a family as a picture: large clear marks, slightly different every time.

Shifts, tints, line widths and the places of side issues vary; what states a fact never does. Beyond the
values of its family, a colour may be any of PAINTS, and a colour in place of a thing gives a plain thing
of that colour, so that facts can be shown in combinations that no question uses. Knows nothing of
questions, files or tensors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from PIL import Image

from data.mini.canvas import INK, PAINTS, WHITE, Canvas, Colour, Pen, Point, varied
from data.mini.families import COLOURS, Facts, Family
from data.mini.icons import ICONS, WOOD

Draw = Callable[[Pen, Facts, random.Random], None]

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def draw(family: Family, facts: Facts, rng: random.Random) -> Image.Image:
    """A picture of 144 x 144 pixels that shows every fact."""
    canvas = Canvas(rng, shift=2 if family.name in STILL else 4, paper=facts.get("paper"))
    DRAWINGS[family.name](canvas.pen, facts, rng)
    if "paper" in facts and family.name in SCENES:
        canvas.uncover_margin()
    return canvas.finished()


def _thermometer(pen: Pen, facts: Facts, rng: random.Random) -> None:
    liquid = varied(PAINTS[facts["liquid"]], rng)
    top, step = 14.0, 11.5  # of the mark of 80 degrees, and from one mark to the next
    level = top + step * (80 - int(facts["temperature"].removesuffix("°C"))) / 10
    half = rng.uniform(10, 12)
    pen.disc(56, 122, 18, liquid)
    pen.box(56 - half, 4, 56 + half, 116, WHITE)
    pen.box(56 - half, level, 56 + half, 116, liquid)
    pen.disc(56, 122, 16, liquid, outlined=False)
    for index in range(8):
        height = top + step * index
        pen.line([(56 + half, height), (82, height)], INK, 1.5)
        pen.text(100, height, str(80 - 10 * index), 14)
    pen.line([(50 - half, level), (56 + half, level)], INK, 3)


def _clock(pen: Pen, facts: Facts, rng: random.Random) -> None:
    def around(angle: float, radius: float) -> Point:
        return 72 + radius * math.sin(angle), 72 - radius * math.cos(angle)

    hour = int(facts["hour"].removesuffix(":00"))
    pen.disc(72, 72, 66, varied(PAINTS[facts["rim"]], rng))
    pen.disc(72, 72, rng.uniform(51, 54), WHITE)
    for number in range(1, 13):
        angle = number * math.pi / 6
        if number % 3 == 0:
            pen.text(*around(angle, 43), str(number), 15)
        else:
            pen.line([around(angle, 44), around(angle, 50)], INK, 2)
    angle = hour * math.pi / 6
    pen.line([around(0, 0), around(0, 34)], (150, 150, 156), 3)
    pen.line([around(angle, 0), around(angle, 27)], INK, rng.uniform(7, 9))
    pen.polygon([around(angle - 0.42, 24), around(angle, 37), around(angle + 0.42, 24)], INK)
    pen.disc(72, 72, 5.5, INK)


def _magnets(pen: Pen, facts: Facts, rng: random.Random) -> None:
    half_gap = 3 if facts["gap"] == "near" else 18
    pen.box(-10, 96, 154, 156, varied(PAINTS[facts["stand"]], rng))
    # The left magnet never turns: which of two varying magnets is like the other is hard to see at 72 px.
    turned = "NS" if facts["poles"] == "like" else "SN"
    top = rng.uniform(50, 54)
    for side, poles in ((-1, "NS"), (1, turned)):
        for place, pole in enumerate(poles):  # from the gap outwards
            near = 72 + side * (half_gap + 24 * place)
            paint = (224, 44, 48) if pole == "N" else (40, 84, 216)
            pen.box(min(near, near + 24 * side), top, max(near, near + 24 * side), top + 42, paint)
            pen.text(near + 12 * side, top + 21, pole, 22, WHITE)


def _particles(pen: Pen, facts: Facts, rng: random.Random) -> None:
    paint = varied(PAINTS[facts["tint"]], rng)
    pen.box(12, 12, 132, 132, WHITE)
    places: list[Point]
    if facts["spacing"] == "packed":
        places = [(24 + 19.2 * column, 122 - 19.2 * row) for row in range(5) for column in range(6)]
    elif facts["spacing"] == "loose":
        places = [
            (27 + 23 * column + (8 if row % 2 else 0), 121 - 23 * row)
            for row in range(3)
            for column in range(4 if row % 2 else 5)
        ]
        places = [(x + rng.uniform(-3, 3), y + rng.uniform(-4, 2)) for x, y in places]
    else:
        corners = [(32, 32), (112, 34), (34, 110), (110, 112), (72, 72)]
        places = [(x + rng.uniform(-9, 9), y + rng.uniform(-9, 9)) for x, y in corners]
    for x, y in places:
        pen.disc(x, y, 9, paint)


def _weather(pen: Pen, facts: Facts, rng: random.Random) -> None:
    skies: Mapping[str, Colour] = {
        "sunny": (120, 200, 255),
        "rainy": (120, 132, 150),
        "snowy": (176, 188, 206),
        "cloudy": (196, 222, 244),
    }
    sky = skies.get(facts["sky"]) or PAINTS[facts["sky"]]
    pen.box(-10, -10, 154, 154, varied(sky, rng), outlined=False)
    if facts["sky"] == "sunny":
        x = rng.uniform(54, 90)
        for turn in range(12):
            angle = turn * math.pi / 6
            tip = (x + 42 * math.cos(angle), 46 + 42 * math.sin(angle))
            pen.line([(x, 46), tip], (250, 180, 20), 4)
        pen.disc(x, 46, 27, (255, 220, 40))
    elif facts["sky"] == "cloudy":
        for place, height in ((38, 34), (104, 30), (72, 62)):
            _cloud(pen.at(place + rng.uniform(-4, 4), height, 30), WHITE)
    elif facts["sky"] in skies:
        _cloud(pen.at(72 + rng.uniform(-6, 6), 30, 52), (92, 98, 110) if facts["sky"] == "rainy" else WHITE)
        for column in range(6):
            for row in range(2):
                x, y = 20 + 21 * column + 8 * row, 62 + 20 * row + rng.uniform(-2, 2)
                if facts["sky"] == "rainy":
                    pen.line([(x, y), (x - 6, y + 15)], (20, 60, 210), 4.5)
                else:
                    pen.disc(x, y + 4, 5.5, WHITE)
    if facts["ground"] in GROUNDS:
        GROUNDS[facts["ground"]](pen, rng)
    else:
        pen.box(-10, 98, 154, 154, varied(PAINTS[facts["ground"]], rng))


def _cloud(pen: Pen, fill: Colour) -> None:
    puffs = (
        (-0.55, 0.05, 0.38),
        (0.55, 0.05, 0.38),
        (-0.1, -0.15, 0.5),
        (0.25, 0.1, 0.42),
        (-0.3, 0.15, 0.38),
    )
    for x, y, radius in puffs:
        pen.disc(x, y, radius, fill)
    for x, y, radius in puffs:
        pen.disc(x, y, radius * 0.93, fill, outlined=False)


def _beach(pen: Pen, rng: random.Random) -> None:
    pen.box(-10, 98, 154, 114, (30, 110, 200))
    pen.box(-10, 112, 154, 154, (244, 216, 140))
    x = rng.uniform(96, 112)
    pen.line([(x, 100), (x + 3, 134)], INK, 3)
    pen.polygon([(x - 24, 110), (x - 12, 95), (x, 91), (x + 12, 95), (x + 24, 110)], (236, 70, 70))
    pen.disc(rng.uniform(30, 50), 128, 8, WHITE)


def _meadow(pen: Pen, rng: random.Random) -> None:
    pen.box(-10, 98, 154, 154, (92, 190, 70))
    for column in range(5):
        x, y = 20 + 26 * column + rng.uniform(-4, 4), 118 + 8 * (column % 2)
        pen.line([(x, y), (x, y + 14)], (20, 100, 30), 3)
        pen.disc(x, y, 6.5, (250, 90, 160) if column % 2 else (255, 240, 60))


def _road(pen: Pen, rng: random.Random) -> None:
    pen.box(-10, 98, 154, 154, (84, 84, 90))
    start = rng.uniform(-8, 8)
    for column in range(4):
        x = start + 40 * column
        pen.box(x, 117, x + 24, 125, WHITE, outlined=False)


def _season(pen: Pen, facts: Facts, rng: random.Random) -> None:
    season = facts["season"]
    skies: Mapping[str, Colour] = {"winter": (206, 216, 232), "autumn": (236, 226, 206)}
    pen.box(-10, -10, 154, 154, varied(skies.get(season, (196, 228, 250)), rng), outlined=False)
    ground: Colour = {"winter": WHITE, "autumn": (186, 160, 90)}.get(season, (120, 196, 84))
    pen.box(-10, 118, 154, 154, ground)
    left = rng.random() < 0.5
    tree = pen.at(42 if left else 102, 66, 1)
    tree.polygon([(-9, 60), (-6, 0), (6, 0), (9, 60)], WOOD)
    crowns: Mapping[str, Colour] = {
        "spring": (250, 168, 200),
        "summer": (30, 140, 50),
        "autumn": (222, 112, 24),
    }
    if season != "winter":
        _crown(tree, crowns.get(season) or PAINTS[season], rng)
    else:
        for x, y in ((-34, -30), (-18, -52), (0, -58), (20, -50), (36, -28)):
            tree.line([(0, 20), (0.5 * x, 0.4 * y), (x, y)], WOOD, 5)
    if season == "autumn":
        for _ in range(7):
            tree.disc(rng.uniform(-36, 36), rng.uniform(56, 70), 4, (222, 112, 24))
    height = {"bird": 44, "squirrel": 104}.get(facts["animal"], 74) + rng.uniform(-3, 3)
    _thing(pen.at(112 if left else 32, height, 22, mirrored=not left), facts["animal"])


def _thing(frame: Pen, name: str) -> None:
    if name in ICONS:
        ICONS[name](frame)
    else:
        frame.disc(0, 0, 0.8, PAINTS[name])


def _crown(tree: Pen, fill: Colour, rng: random.Random) -> None:
    puffs = ((-20, -8, 20), (20, -8, 20), (-14, -32, 20), (14, -32, 20), (0, -16, 24))
    for x, y, radius in puffs:
        tree.disc(x, y, radius, fill)
    for x, y, radius in puffs:
        tree.disc(x, y, radius - 2, fill, outlined=False)
    if fill == (250, 168, 200):
        for x, y, _ in puffs:
            tree.disc(x + rng.uniform(-5, 5), y + rng.uniform(-5, 5), 5, WHITE)


def _food_chain(pen: Pen, facts: Facts, rng: random.Random) -> None:
    _thing(pen.at(32, 72 + rng.uniform(-5, 5), 24), facts["producer"])
    _thing(pen.at(108, 72 + rng.uniform(-5, 5), 27), facts["predator"])
    pen.line([(60, 72), (72, 72)], INK, 5)
    pen.polygon([(70, 64), (70, 80), (80, 72)], INK)


def _map(pen: Pen, facts: Facts, rng: random.Random) -> None:
    pen.box(5, 5, 139, 139, varied((240, 232, 202), rng))
    steps = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}
    steps |= {"northwest": (-1, -1), "southwest": (-1, 1), "southeast": (1, 1)}
    x, y = steps[facts["direction"]]
    along = rng.uniform(-5, 5)
    place = (72 + 43 * x + along * y, 74 + 43 * y + along * x)
    pen.line([(72, 74), place], (196, 150, 96), 6)
    for dx, dy in ((-9, 3), (9, 3), (0, -5)):
        house = pen.at(72 + dx, 74 + dy, 7)
        house.box(-0.9, -0.2, 0.9, 1, (250, 244, 236))
        house.polygon([(-1.2, -0.2), (0, -1.2), (1.2, -0.2)], (200, 60, 50))
    _thing(pen.at(*place, 20), facts["landmark"])
    rose = pen.at(118, 32, 11)
    rose.polygon([(-0.35, 0), (0, -1.2), (0.35, 0)], INK)
    rose.polygon([(-0.35, 0), (0, 1.2), (0.35, 0)], WHITE)
    rose.line([(-0.8, 0), (0.8, 0)], INK, 0.15)
    rose.text(0, -1.7, "N", 1.1)


def _bar_chart(pen: Pen, facts: Facts, rng: random.Random) -> None:
    count = NUMBERS[facts["bars"]]
    others = [name for name in COLOURS[:4] if name != facts["tallest"]]
    rng.shuffle(others)
    rest = [name for name in COLOURS[4:] if name != facts["tallest"]]
    names = [*others, *rng.sample(rest, len(rest))][: count - 1]
    bars = [(name, rng.uniform(24, 66)) for name in names]
    bars.append((facts["tallest"], rng.uniform(100, 108)))
    rng.shuffle(bars)
    pen.line([(12, 12), (12, 130), (138, 130)], INK, 3)
    width = 120 / count
    for index, (name, height) in enumerate(bars):
        left = 16 + width * index
        pen.box(left + 2, 129 - height, left + width - 2, 129, PAINTS[name])


def _flag(pen: Pen, facts: Facts, rng: random.Random) -> None:
    main = varied(PAINTS[facts["main"]], rng)
    other = rng.choice((WHITE, (226, 226, 230), (206, 206, 212)))
    left, top, width, height = 20, 16, 116, 80
    pen.line([(15, 8), (15, 140)], (120, 90, 60), 6)
    pen.box(left, top, left + width, top + height, main)
    if facts["pattern"] == "stripes":
        for band in (1, 3):
            pen.box(left, top + 16 * band, left + width, top + 16 * (band + 1), other)
    elif facts["pattern"] == "columns":
        for band in (1, 3):
            pen.box(left + 23.2 * band, top, left + 23.2 * (band + 1), top + height, other)
    elif facts["pattern"] == "cross":
        pen.box(left, top + 30, left + width, top + 50, other)
        pen.box(left + 48, top, left + 68, top + height, other)
        pen.box(left, top + 31.5, left + width, top + 48.5, other, outlined=False)
    else:
        for cell in range(1, 15, 2):
            x, y = left + 23.2 * (cell % 5), top + 26.7 * (cell // 5)
            pen.box(x, y, x + 23.2, y + 26.7, other)
    pen.line([(left, top), (left + width, top), (left + width, top + height), (left, top + height)])


def _shape(pen: Pen, facts: Facts, rng: random.Random) -> None:
    paint = varied(PAINTS[facts["paint"]], rng)
    size = rng.uniform(50, 56)
    kind = facts["kind"]
    if kind in ("circle", "ring"):
        pen.disc(72, 72, size, paint)
        if kind == "ring":
            pen.disc(72, 72, 0.5 * size, WHITE)
    elif kind == "square":
        pen.box(72 - size, 72 - size, 72 + size, 72 + size, paint)
    elif kind == "triangle":
        pen.polygon([(72, 76 - 1.2 * size), (72 + 1.1 * size, 124), (72 - 1.1 * size, 124)], paint)
    else:
        points = []
        for corner in range(10):
            radius = 1.15 * size if corner % 2 == 0 else 0.48 * size
            angle = corner * math.pi / 5
            points.append((72 + radius * math.sin(angle), 76 - radius * math.cos(angle)))
        pen.polygon(points, paint)


def _count(pen: Pen, facts: Facts, rng: random.Random) -> None:
    coat = varied(PAINTS[facts["coat"]], rng)
    radius = rng.uniform(15, 18)
    for column, row in DICE[NUMBERS[facts["number"]]]:
        x, y = 72 + 44 * column, 72 + 44 * row
        pen.disc(x, y, radius, coat)
        pen.disc(x - 0.35 * radius, y - 0.35 * radius, 0.2 * radius, WHITE, outlined=False)


CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
DICE: Mapping[int, tuple[tuple[int, int], ...]] = {
    1: ((0, 0),),
    2: (CORNERS[0], CORNERS[3]),
    3: (CORNERS[0], (0, 0), CORNERS[3]),
    4: CORNERS,
    5: (*CORNERS, (0, 0)),
    6: (*CORNERS, (-1, 0), (1, 0)),
}
SCENES = ("weather", "season")  # families that cover their paper
STILL = ("thermometer", "shape", "count")  # families in which a place or an outline is the fact
GROUNDS: Mapping[str, Callable[[Pen, random.Random], None]] = {
    "beach": _beach,
    "meadow": _meadow,
    "road": _road,
}
DRAWINGS: Mapping[str, Draw] = {
    "thermometer": _thermometer,
    "clock": _clock,
    "magnets": _magnets,
    "particles": _particles,
    "weather": _weather,
    "season": _season,
    "food_chain": _food_chain,
    "map": _map,
    "bar_chart": _bar_chart,
    "flag": _flag,
    "shape": _shape,
    "count": _count,
}
