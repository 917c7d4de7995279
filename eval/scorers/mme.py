"""MME: from a response to yes, no or other, and the figures of a subtask. Knows no files and no models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval.benchmark import SHORT

TASKS = {
    "Perception": (
        *("existence", "count", "position", "color", "posters"),
        *("celebrity", "scene", "landmark", "artwork", "OCR"),
    ),
    "Cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
"""The subtasks of both halves, in the official order."""

REQUEST = "Please answer yes or no."
QUESTIONS = 2  # about every picture: one to be answered with yes, one with no


def read(response: str) -> str:
    """The answer in the first four characters of a response that nothing was stripped from.

    Quirks: "yes" is looked for first, and inside of words, so "eyes" is a yes and "snow" and "none" are a
    no; four blanks before the answer hide it.
    """
    head = response.lower()[:4]
    if "yes" in head:
        return "yes"
    return "no" if "no" in head else "other"


def lmms(response: str) -> str:
    """The answer as lmms-eval reads it: without blanks around and periods, and y and n count as well."""
    text = response.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text, read(text))


Pair = tuple[str, str]
"""What was read, and the right answer."""


class Task(NamedTuple):
    """The figures of a subtask, as shares; precision and recall leave out what was read as other."""

    acc: float
    acc_plus: float
    precision: float
    recall: float
    other: int

    @property
    def score(self) -> float:
        """At most 200; added up as the official script does."""
        return self.acc * 100 + self.acc_plus * 100


def task(pictures: Sequence[Sequence[Pair]]) -> Task:
    """The figures of a subtask from its pictures, each with the pairs of its questions."""
    pairs = [pair for picture in pictures for pair in picture]
    hits = sum(answer == right == "yes" for answer, right in pairs)
    said = sum(answer == "yes" for answer, _ in pairs)
    due = sum(right == "yes" and answer != "other" for answer, right in pairs)
    other = sum(answer == "other" for answer, _ in pairs)
    acc, acc_plus = shares(Counter(outcome(picture) for picture in pictures))
    return Task(acc, acc_plus, hits / said if said else 0.0, hits / due if due else 0.0, other)


class Outcome(NamedTuple):
    """How many questions about one picture were answered right, of how many."""

    right: int
    asked: int


OUTCOMES = tuple(Outcome(right, asked) for asked in (1, QUESTIONS) for right in range(asked + 1))


def outcome(picture: Sequence[Pair]) -> Outcome:
    """How one picture came off."""
    return Outcome(sum(answer == right for answer, right in picture), len(picture))


def shares(outcomes: Mapping[Outcome, int]) -> tuple[float, float]:
    """The share of right answers, and of pictures with both right, from how many pictures came off how.

    Of nothing both are 0. A picture of which one question was asked counts in the first share only.
    """
    asked = sum(one.asked * count for one, count in outcomes.items())
    right = sum(one.right * count for one, count in outcomes.items())
    pictures = sum(count for one, count in outcomes.items() if one.asked == QUESTIONS)
    both = outcomes.get(Outcome(QUESTIONS, QUESTIONS), 0)
    return right / asked if asked else 0.0, both / pictures if pictures else 0.0


def bare(prompt: str) -> str:
    """A question without the request to answer in a certain way, be it MME's own or LLaVA's.

    Quirk: some questions have two blanks before the request. LLaVA's converter tries one, then two, to find
    the question of an answer again; without request and blanks both are the same here.
    """
    return prompt.replace(SHORT, "").replace(REQUEST, "").strip()
