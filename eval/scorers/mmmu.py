"""MMMU: reading choices and open answers as its official code does, and the shares it reports.

Knows only answers and right answers; files and prompts are elsewhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval.scores import Score

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECTS = tuple(sorted(subject for subjects in DISCIPLINES.values() for subject in subjects))
"""All thirty, in the order in which the official code goes through them (that of the alphabet)."""

MULTIPLE_CHOICE = "multiple-choice"
SEED = 42  # what the official code seeds its random options with

Draw = Callable[[Sequence[str]], str]
"""What replaces a choice that cannot be read."""


def official_draw() -> Draw:
    """Random options as the official code draws them; ask in its order, subject by subject."""
    return random.Random(SEED).choice


def parse_choice(response: str, choices: Mapping[str, str]) -> str | None:
    """The letter that a response names, or None where the official code takes a random one.

    Args:
        choices: The option texts by letter.
    """
    for mark in ",.!?;:'":
        # Quirk: one pass in this order, so "B'." loses both marks and "B.'" only the last one.
        response = response.strip(mark)
    response = f" {response} "
    lowered = response.lower()
    # Quirk: each form is looked for only if the one before it found nothing, so one "(A)" hides every " B ".
    places = {letter: response.rfind(f"({letter})") for letter in choices}
    if max(places.values(), default=-1) < 0:
        places = {letter: response.rfind(f" {letter} ") for letter in choices}
    if max(places.values(), default=-1) < 0 and len(response.split()) > 5:
        places = {letter: lowered.rfind(text.lower()) for letter, text in choices.items()}
    last = max(places.values(), default=-1)
    return next((letter for letter, place in places.items() if place == last), None) if last >= 0 else None


Parsed = str | float


def parse_open(response: str) -> set[Parsed]:
    """All texts and numbers that an open answer may mean."""
    found: set[Parsed] = set()
    for tail in _tails(response):
        for form in (tail, *_numbers(tail)):
            found.update(normalised(form))
    return found


_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")


def _tails(response: str) -> list[str]:
    """What stands behind the words that announce an answer, from every line; else the whole response."""
    response = response.strip().strip(".").lower()
    # Quirk: the official code also splits at a period before a capital, of which none is left by now.
    lines = response.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        # An equation is looked for only in the last line.
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        tail = _shortest_tail(line, indicators)
        if tail and tail not in _TRIVIAL:
            found.append(tail)
    return found or [response]


def _shortest_tail(line: str, indicators: Iterable[str]) -> str:
    """The shortest text behind the last of an indicator; quirk: an empty one gives way to the next."""
    shortest = ""
    for indicator in indicators:
        if indicator in line:
            tail = line.rsplit(indicator, 1)[1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with commas between thousands
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    # Plain. Quirk: a comma or digit must not follow, so "12,500" also gives 500 and "$1,000.50" gives 0.5.
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def _numbers(text: str) -> list[str]:
    return [hit for pattern in _NUMBERS for hit in pattern.findall(text)]


def normalised(text: str) -> list[Parsed]:
    """A number rounded to two places, or the text in lower case."""
    text = text.strip()
    try:
        # Quirk: commas are dropped wherever they stand, so "1,2" is 12; "nan" and "inf" are numbers.
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    # A single character would occur in almost every text; it counts only at the end of a word.
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_correct(gold: str | Sequence[str], parsed: Iterable[Parsed]) -> bool:
    """Whether one of the parsed forms is a gold number, or holds a gold text."""
    wanted = [form for text in ([gold] if isinstance(gold, str) else gold) for form in normalised(text)]
    texts = [form for form in wanted if isinstance(form, str)]
    return any(
        any(text in form for text in texts) if isinstance(form, str) else form in wanted for form in parsed
    )


@dataclass(frozen=True)
class Response:
    """One answered question as the official output files hold it."""

    id: str
    subject: str
    gold: str | Sequence[str]
    choices: Mapping[str, str] | None  # None: an open question
    text: str
    parsed: bool = False  # whether the text of a choice is the letter that a parser has found


@dataclass(frozen=True)
class Judged:
    """What a response was read as, and whether that is right."""

    read: str | None  # the letter of a choice; the response itself of an open answer; None: no letter
    right: bool


def judge(response: Response, draw: Draw | None = None) -> Judged:
    """Read and compare one response; without `draw` a choice that cannot be read is wrong."""
    if response.choices is None:
        return Judged(response.text, open_correct(response.gold, parse_open(response.text)))
    if response.parsed:
        letter = response.text if response.text in response.choices else None
        return Judged(letter, letter is not None and letter in _wanted(response))
    letter = parse_choice(response.text, response.choices)
    if letter is None and draw is not None:
        letter = draw(list(response.choices))
    return Judged(letter, letter in _wanted(response))


def _wanted(response: Response) -> Sequence[str]:
    return [response.gold] if isinstance(response.gold, str) else response.gold


def report(judged: Sequence[tuple[str, bool]]) -> dict[str, Score]:
    """The official table from (subject, right) of every question: overall, disciplines, subjects."""
    scores = {"Overall": _share(judged, SUBJECTS)}
    for discipline, subjects in DISCIPLINES.items():
        scores[f"Overall-{discipline}"] = _share(judged, subjects)
        for subject in subjects:
            scores[subject] = _share(judged, (subject,))
    return {name: score for name, score in scores.items() if score.count or name == "Overall"}


def _share(judged: Sequence[tuple[str, bool]], subjects: Sequence[str]) -> Score:
    right = [is_right for subject, is_right in judged if subject in subjects]
    return Score.of(sum(right), len(right))
