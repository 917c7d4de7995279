"""ScienceQA: from the text of an answer to an option, and from options to the nine scores.

Knows nothing of models: predictions come as option indices, `None` where the answer was unparsable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from data.scienceqa import LETTERS, Problem
from eval.scores import Score, Scores

# The published evaluation code wants one more character after the letter (so "The answer is B" at the
# very end is missed there) and draws an option at random where it finds none. Here the letter may end
# the text, and a text without a letter is wrong. Like there, the first hit counts.
_ANSWER = re.compile(r"The answer is ([A-Z])")


def extract(text: str, options: int) -> int | None:
    """The option an answer names, or None if it names none of the question's own."""
    hit = _ANSWER.search(text)
    index = LETTERS.index(hit.group(1)) if hit else options
    return index if index < options else None


def _subject(name: str) -> Callable[[Problem], bool]:
    return lambda problem: problem.subject == name


def _grades(first: int, last: int) -> Callable[[Problem], bool]:
    names = {f"grade{number}" for number in range(first, last + 1)}
    return lambda problem: problem.grade in names


CATEGORIES: dict[str, Callable[[Problem], bool]] = {
    "NAT": _subject("natural science"),
    "SOC": _subject("social science"),
    "LAN": _subject("language science"),
    "TXT": lambda problem: bool(problem.hint),
    "IMG": lambda problem: problem.image is not None,
    "NO": lambda problem: not problem.hint and problem.image is None,
    "G1-6": _grades(1, 6),
    "G7-12": _grades(7, 12),
    "Avg": lambda problem: True,
}
"""The nine columns of the published tables; a problem with hint and picture counts in TXT and in IMG."""


def score(problems: Mapping[str, Problem], predictions: Mapping[str, int | None]) -> Scores:
    """The nine scores over exactly the questions that were predicted."""
    judged = [(problems[pid], option) for pid, option in predictions.items()]
    categories = {name: _score_of(judged, belongs) for name, belongs in CATEGORIES.items()}
    return Scores(categories, unparsable=sum(option is None for _, option in judged))


def _score_of(judged: Iterable[tuple[Problem, int | None]], belongs: Callable[[Problem], bool]) -> Score:
    right = [option == problem.answer for problem, option in judged if belongs(problem)]
    return Score.of(sum(right), len(right))
