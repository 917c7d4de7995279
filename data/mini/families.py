"""The picture families of the mini world: what can be drawn, said and asked about each.

A family is a small table of attributes. One picture shows one value of every attribute, one sentence
states one value in words, and one question asks for one attribute, so the same question can be asked
about a drawing or about a sentence. Knows nothing of pixels (`drawing.py`), files or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Facts = Mapping[str, str]

# What a picture is drawn on: a fact that no question asks for, which multiplies the combinations.
PAPERS = ("white", "cream", "sky", "mint")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")


@dataclass(frozen=True)
class Ask:
    """One attribute that is asked for: the wordings, and the option text for every value."""

    attribute: str
    wordings: tuple[str, ...]
    answers: Mapping[str, str] = field(default_factory=dict)

    def answer(self, value: str) -> str:
        """The option text that is right when the attribute has this value."""
        return self.answers.get(value, value)


@dataclass(frozen=True)
class Family:
    """A kind of picture: its attributes with their values, sentences about them, and questions."""

    name: str
    subject: str
    topic: str
    noun: str
    attributes: Mapping[str, tuple[str, ...]]
    sentences: Mapping[str, tuple[str, ...]]
    asks: tuple[Ask, ...]
    lecture: str

    def combinations(self) -> int:
        """How many different pictures the attributes describe."""
        total = 1
        for values in self.attributes.values():
            total *= len(values)
        return total

    def reserved(self, facts: Facts) -> bool:
        """Whether this combination of facts belongs to the evaluation splits alone.

        About a fifth of all combinations, spread so that every single value also occurs in training:
        what is new in an evaluation question is the combination, never the value. The paper of a
        picture is one of its facts; facts in words have none.
        """
        values = [*self.attributes.items(), *([("paper", PAPERS)] if "paper" in facts else [])]
        code = sum((weight + 1) * known.index(facts[name]) for weight, (name, known) in enumerate(values))
        return code % 5 == 0


TEMPERATURES = tuple(f"{degrees}°C" for degrees in range(10, 90, 10))
HOURS = tuple(f"{hour}:00" for hour in range(1, 13))

FAMILIES: tuple[Family, ...] = (
    Family(
        name="thermometer",
        subject="natural science",
        topic="units-and-measurement",
        noun="a thermometer",
        attributes={"temperature": TEMPERATURES, "liquid": ("red", "blue")},
        sentences={
            "temperature": (
                "The thermometer shows {}.",
                "The temperature is {}.",
                "The liquid reaches {}.",
            ),
            "liquid": ("The liquid in the thermometer is {}.", "The thermometer is filled with {} liquid."),
        },
        asks=(
            Ask("temperature", ("What temperature does the thermometer show?", "How warm is it?")),
            Ask("liquid", ("What is the colour of the liquid in the thermometer?",)),
        ),
        lecture=(
            "A thermometer is a tool that measures temperature. The top of the liquid lines up with a number."
        ),
    ),
    Family(
        name="clock",
        subject="natural science",
        topic="units-and-measurement",
        noun="a clock",
        attributes={"hour": HOURS, "rim": COLOURS[:4]},
        sentences={
            "hour": ("The clock shows {}.", "The time on the clock is {}.", "It is {}."),
            "rim": ("The rim of the clock is {}.", "The clock has a {} rim."),
        },
        asks=(
            Ask("hour", ("What time does the clock show?", "What time is it?")),
            Ask("rim", ("What is the colour of the rim of the clock?",)),
        ),
        lecture="The short hand of a clock points to the hour. The long hand points to the minutes.",
    ),
    Family(
        name="magnets",
        subject="natural science",
        topic="physics",
        noun="two magnets",
        attributes={"poles": ("like", "unlike"), "gap": ("near", "far"), "stand": COLOURS[1:5]},
        sentences={
            "poles": ("The poles that face each other are {}.", "The magnets face each other with {} poles."),
            "gap": ("The magnets are {} apart.", "There is a {} gap between the magnets."),
            "stand": ("The magnets lie on a {} table.", "The table is {}."),
        },
        asks=(
            Ask(
                "poles",
                ("Will the magnets attract or repel each other?", "What will the magnets do?"),
                {"like": "repel", "unlike": "attract"},
            ),
            Ask(
                "gap",
                ("How strong is the force between the magnets?",),
                {"near": "strong", "far": "weak"},
            ),
            Ask("stand", ("What is the colour of the table?",)),
        ),
        lecture="Unlike poles attract. Like poles repel. The force is strong when the magnets are near.",
    ),
    Family(
        name="particles",
        subject="natural science",
        topic="chemistry",
        noun="particles",
        attributes={"spacing": ("packed", "loose", "scattered"), "tint": COLOURS[:4]},
        sentences={
            "spacing": ("The particles are {}.", "In the box the particles are {}."),
            "tint": ("The particles are drawn in {}.", "The colour of the particles is {}."),
        },
        asks=(
            Ask(
                "spacing",
                ("What is the state of matter?", "Which state of matter do the particles form?"),
                {"packed": "solid", "loose": "liquid", "scattered": "gas"},
            ),
            Ask("tint", ("What is the colour of the particles?",)),
        ),
        lecture="In a solid particles are packed. In a liquid they are loose. In a gas they are scattered.",
    ),
    Family(
        name="weather",
        subject="natural science",
        topic="earth-science",
        noun="the weather",
        attributes={
            "sky": ("sunny", "rainy", "snowy", "cloudy"),
            "ground": ("beach", "meadow", "road"),
        },
        sentences={
            "sky": ("The day is {}.", "The weather is {}.", "It is {} outside."),
            "ground": ("The place is a {}.", "There is a {} below the sky."),
        },
        asks=(
            Ask("sky", ("What is the weather like?", "Which word describes the weather?")),
            Ask(
                "sky",
                ("What is the best thing to bring along?",),
                {"sunny": "hat", "rainy": "umbrella", "snowy": "scarf", "cloudy": "jacket"},
            ),
            Ask("ground", ("What kind of place is it?",)),
        ),
        lecture=(
            "Weather is what the air is like. Bring an umbrella for rain, a hat for sun and a scarf for snow."
        ),
    ),
    Family(
        name="season",
        subject="natural science",
        topic="biology",
        noun="a tree",
        attributes={
            "season": ("spring", "summer", "autumn", "winter"),
            "animal": ("bird", "squirrel", "butterfly"),
        },
        sentences={
            "season": ("The tree looks as in {}.", "The season is {}.", "The tree shows that it is {}."),
            "animal": ("A {} is near the tree.", "The animal near the tree is a {}."),
        },
        asks=(
            Ask("season", ("Which season is it?", "In which season does the tree look like this?")),
            Ask(
                "season",
                ("Which season comes next?",),
                {"spring": "summer", "summer": "autumn", "autumn": "winter", "winter": "spring"},
            ),
            Ask("animal", ("Which animal is near the tree?",)),
        ),
        lecture=(
            "A tree has blossoms in spring, green leaves in summer, brown leaves in autumn "
            "and none in winter."
        ),
    ),
    Family(
        name="food_chain",
        subject="natural science",
        topic="biology",
        noun="a food chain",
        attributes={
            "producer": ("grass", "algae", "corn"),
            "predator": ("fox", "owl", "shark", "snake"),
        },
        sentences={
            "producer": ("The food chain starts with {}.", "The producer is {}."),
            "predator": ("The food chain ends with the {}.", "The top predator is the {}."),
        },
        asks=(
            Ask("producer", ("Which living thing is the producer in the food chain?",)),
            Ask("predator", ("Which living thing is the top predator in the food chain?",)),
        ),
        lecture=(
            "A food chain starts with a producer, which makes its own food, and ends with a top predator."
        ),
    ),
    Family(
        name="map",
        subject="social science",
        topic="geography",
        noun="a map",
        attributes={
            "direction": ("north", "south", "east", "west"),
            "landmark": ("lake", "forest", "mountain", "castle"),
        },
        sentences={
            "direction": ("It lies {} of the town.", "From the town you walk {} to get there."),
            "landmark": ("The map shows a {}.", "There is a {} on the map."),
        },
        asks=(
            Ask(
                "direction",
                ("In which direction do you walk from the town?", "Which direction is it from the town?"),
            ),
            Ask("landmark", ("What does the map show near the town?", "Which landmark is on the map?")),
        ),
        lecture="On a map with a compass rose, north is up, south is down, east is right and west is left.",
    ),
    Family(
        name="bar_chart",
        subject="social science",
        topic="economics",
        noun="a bar chart",
        attributes={"tallest": COLOURS[:4], "bars": ("three", "four", "five")},
        sentences={
            "tallest": ("The tallest bar is {}.", "The {} bar is the tallest."),
            "bars": ("The chart has {} bars.", "There are {} bars in the chart."),
        },
        asks=(
            Ask("tallest", ("Which bar is the tallest?", "Which colour sold the most?")),
            Ask("bars", ("How many bars does the chart have?",)),
        ),
        lecture="A bar chart compares amounts. The tallest bar stands for the largest amount.",
    ),
    Family(
        name="flag",
        subject="social science",
        topic="civics",
        noun="a flag",
        attributes={"pattern": ("stripes", "columns", "cross", "checks"), "main": COLOURS},
        sentences={
            "pattern": ("The flag has {}.", "The pattern of the flag is {}."),
            "main": ("The main colour of the flag is {}.", "Most of the flag is {}."),
        },
        asks=(
            Ask("pattern", ("Which pattern does the flag have?", "How is the flag divided?")),
            Ask("main", ("What is the main colour of the flag?",)),
        ),
        lecture="Every country has a flag. Flags differ in their pattern and in their main colour.",
    ),
    Family(
        name="shape",
        subject="language science",
        topic="vocabulary",
        noun="a shape",
        attributes={"kind": ("circle", "square", "triangle", "star", "ring"), "paint": COLOURS},
        sentences={
            "kind": ("The shape is a {}.", "The drawing shows a {}."),
            "paint": ("The shape is painted {}.", "The colour of the shape is {}."),
        },
        asks=(
            Ask("kind", ("Which word names the shape?", "What is the shape called?")),
            Ask("paint", ("Which word names the colour of the shape?",)),
        ),
        lecture="A noun such as circle names a thing. An adjective such as red describes it.",
    ),
    Family(
        name="count",
        subject="language science",
        topic="vocabulary",
        noun="some balls",
        attributes={"number": ("one", "two", "three", "four", "five", "six"), "coat": COLOURS[:4]},
        sentences={
            "number": ("There are {} balls.", "The number of balls is {}."),
            "coat": ("The balls are {}.", "All balls are {}."),
        },
        asks=(
            Ask("number", ("Which number word fits the balls?", "How many balls are there?")),
            Ask("coat", ("Which colour word fits the balls?",)),
        ),
        lecture="A number word tells how many things there are. A colour word tells how they look.",
    ),
)

BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}
