"""MathVista: from a response to an extraction, to a normalised answer, to shares per kind of question.

The official extraction asks a model where no shortcut applies; this file only says so. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.scores import Score

MULTI_CHOICE = "multi_choice"
KEYS = (
    "question_type",
    "answer_type",
    "language",
    "source",
    "category",
    "task",
    "context",
    "grade",
    "skills",
)
"""What the official scores are broken down by; a question has one value of each, and a list of skills."""


@dataclass(frozen=True)
class Problem:
    """What extraction and normalisation need to know of a question."""

    question_type: str
    answer_type: str
    choices: Sequence[str] | None
    precision: float | None


_QUOTED = re.compile(r'The answer is "(.*)"\.')


def shortcut(response: str, problem: Problem, quick: bool = False) -> str | None:
    """The extraction of a response that needs no model; None where the official code asks one.

    Args:
        quick: Also take a quoted answer, the official `--quick_extract`.
    """
    if response == "":
        return ""
    if problem.question_type == MULTI_CHOICE and response in (problem.choices or ()):
        return response
    try:
        # Quirk: "14.0" is no integer here, though it is after the normalisation.
        if problem.answer_type == "integer":
            return str(int(response))
        if problem.answer_type == "float":
            return str(float(response))  # quirk: "nan" is a number
    except ValueError:
        pass
    quoted = _QUOTED.search(response) if quick else None
    return quoted[1] if quoted else None


_BRACKETED = re.compile(r"\(([a-zA-Z])\)")


def normalise(extraction: str | None, problem: Problem) -> str | None:
    """The answer that an extraction stands for; None where it cannot be one."""
    if problem.question_type == MULTI_CHOICE:
        return _choice(str(extraction).strip(), problem.choices or ())
    try:
        if problem.answer_type == "integer":
            return str(int(float(extraction)))  # type: ignore[arg-type]  # quirk: truncates
        if problem.answer_type == "float":
            return str(round(float(extraction), int(problem.precision)))  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None
    return str(extraction) if problem.answer_type == "list" else extraction


def _choice(text: str, choices: Sequence[str]) -> str | None:
    """The choice of a letter, or else the nearest text.

    Quirk: there is always a nearest one, for an empty text too, and for a letter beyond the choices; the
    first of equals wins.
    """
    if bracketed := _BRACKETED.search(text):
        text = bracketed[1].upper()
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    if text in letters:
        return choices[letters.index(text)]
    return min(choices, key=lambda choice: edit_distance(text, choice), default=None)


def names_choice(text: str, problem: Problem) -> bool:
    """Whether a text names a choice by letter or by its words, so that nothing has to be guessed."""
    choices = problem.choices or ()
    text = text.strip()
    bracketed = _BRACKETED.search(text)
    letter = bracketed[1].upper() if bracketed else text
    return text in choices or letter in [chr(ord("A") + place) for place in range(len(choices))]


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and substitutions of characters."""
    short, long = sorted((one, other), key=len)
    characters = np.array([ord(character) for character in long])
    steps = np.arange(len(long) + 1)
    row = steps  # distances of the beginnings of `long` from a beginning of `short`
    for place, character in enumerate(short, 1):
        changed = row[:-1] + (characters != ord(character))
        row = np.concatenate(([place], np.minimum(changed, row[1:] + 1)))
        # An insertion costs one a step, so each distance is also bounded by all those before it.
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


def report(judged: Sequence[tuple[Mapping[str, Any], bool]]) -> dict[str, dict[str, Score]]:
    """Key -> value -> share, from (values of the keys, right) of every question, with the average first.

    A question counts once for each of its skills.
    """
    table = {"average": {"accuracy": _share([right for _, right in judged])}}
    for key in KEYS:
        groups: dict[str, list[bool]] = {}
        for values, right in judged:
            several = values[key] if isinstance(values[key], list) else [values[key]]
            for value in dict.fromkeys(several):
                groups.setdefault(value, []).append(right)
        table[key] = {value: _share(rights) for value, rights in groups.items()}
    return table


def _share(rights: Sequence[bool]) -> Score:
    return Score.of(sum(rights), len(rights))
