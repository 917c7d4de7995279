"""Drawings show every attribute, and nothing but the random generator varies them."""

from __future__ import annotations

import itertools
import random

import numpy
import pytest

from data.mini.canvas import SIZE
from data.mini.drawing import DRAWINGS, draw
from data.mini.families import BY_NAME, FAMILIES, PAPERS, Facts, Family
from data.mini.icons import ICONS
from data.mini.problems import draw_facts


def pixels(family: Family, facts: Facts, seed: int = 0) -> numpy.ndarray:
    return numpy.asarray(draw(family, facts, random.Random(seed))).astype(int)


def combinations(family: Family) -> list[dict[str, str]]:
    rows = itertools.product(*family.attributes.values())
    return [dict(zip(family.attributes, row, strict=True)) for row in rows]


def test_every_family_has_a_drawing() -> None:
    assert set(DRAWINGS) == set(BY_NAME)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_picture_is_rgb_of_the_stated_size(family: Family) -> None:
    picture = draw(family, combinations(family)[0], random.Random(1))
    assert (picture.mode, picture.size) == ("RGB", (SIZE, SIZE))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_same_generator_draws_the_same_picture(family: Family) -> None:
    facts = combinations(family)[-1]
    assert (pixels(family, facts, 5) == pixels(family, facts, 5)).all()
    assert (pixels(family, facts, 5) != pixels(family, facts, 6)).any()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_value_of_an_attribute_is_visible(family: Family) -> None:
    """With all else equal, another value changes many pixels by much, not a shade of a few."""
    for facts in combinations(family)[::7]:
        for name, values in family.attributes.items():
            for value in values:
                if value == facts[name]:
                    continue
                difference = abs(pixels(family, facts) - pixels(family, {**facts, name: value})).max(axis=2)
                changed = (difference > 60).sum()
                assert changed > 100, f"{family.name}: {name} {facts[name]} looks like {value} ({changed} px)"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_drawing_again_never_looks_like_another_colour(family: Family) -> None:
    """The tint of a repeated drawing moves by less than two values of a colour attribute differ."""
    colours = [name for name, values in family.attributes.items() if {"red", "blue"} <= set(values)]
    for name in colours:
        facts = {**combinations(family)[0], name: "red"}
        means = {seed: _reddest(pixels(family, facts, seed)) for seed in range(5)}
        assert all(red > 180 and other < 90 for red, other in means.values()), (
            f"{family.name}.{name}: {means}"
        )


def _reddest(picture: numpy.ndarray) -> tuple[int, int]:
    """The pixel whose red exceeds its other channels most: that red, and the larger of the others."""
    rest = picture[..., 1:].max(axis=2)
    place = numpy.unravel_index((picture[..., 0] - rest).argmax(), rest.shape)
    return int(picture[..., 0][place]), int(rest[place])


def test_an_icon_exists_for_every_animal_plant_and_landmark() -> None:
    wanted = {
        *BY_NAME["food_chain"].attributes["producer"],
        *BY_NAME["food_chain"].attributes["predator"],
        *BY_NAME["map"].attributes["landmark"],
        *BY_NAME["season"].attributes["animal"],
    }
    assert wanted == set(ICONS)


@pytest.mark.parametrize(
    ("name", "spare"),
    [
        ("thermometer", {"liquid": "pink"}),
        ("weather", {"sky": "olive"}),
        ("weather", {"ground": "turquoise"}),
        ("season", {"season": "grey"}),
        ("season", {"animal": "pink"}),
        ("food_chain", {"producer": "pink"}),
        ("food_chain", {"predator": "olive"}),
        ("map", {"landmark": "turquoise"}),
        ("map", {"direction": "southwest"}),
        ("bar_chart", {"tallest": "purple", "bars": "five"}),
    ],
)
def test_a_value_beyond_the_family_is_drawn_too(name: str, spare: dict[str, str]) -> None:
    facts = combinations(BY_NAME[name])[0]
    assert (abs(pixels(BY_NAME[name], {**facts, **spare}) - pixels(BY_NAME[name], facts)) > 60).sum() > 100


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_paper_of_a_picture_can_be_seen(family: Family) -> None:
    rng = random.Random(3)
    facts = draw_facts(family, rng, "training")
    corners = {
        paper: draw(family, {**facts, "paper": paper}, random.Random(5)).getpixel((1, 72)) for paper in PAPERS
    }
    assert len(set(corners.values())) == len(PAPERS)
