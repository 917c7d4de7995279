"""MM-Vet: what the judge is asked, how its grade is read, and the means over runs and capabilities.

Knows nothing of files or of how the judge is reached; the worked examples in front of every question are
given as text, because they belong to the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

AGAIN = "\nPredict the correctness of the answer (digit): "
"""Added to the message when a grade could not be read; quoted because grades depend on it."""

TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Of the first call and of the five further ones; the first of those is still as cold as the first call."""

MAX_TOKENS = 3


def message(preamble: str, question: str, truth: str, prediction: str) -> str:
    """The whole user message; blanks around <AND> and <OR> are added to those that are there (quirk)."""
    truth = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{preamble}\n{question} | {truth} | {prediction} | "


def read_grade(reply: str) -> float | None:
    """The grade in a reply, or None.

    It is the first of the pieces between blanks, so a reply that begins with a blank has none. "nan" passes
    the test of the range and is a grade (quirk).
    """
    try:
        grade = float(_first_piece(reply))
    except ValueError:
        return None
    return None if grade > 1.0 or grade < 0.0 else grade


def read_true_grade(reply: str) -> float | None:
    """As `read_grade`, but "nan" is none: it would make the mean of all questions nan."""
    grade = read_grade(reply)
    return None if grade != grade else grade  # noqa: PLR0124 (only nan differs from itself)


def _first_piece(reply: str) -> str:
    return reply.split(" ", maxsplit=1)[0].strip()


@dataclass(frozen=True)
class Grade:
    """One grade, and what it was read from as the official file keeps it."""

    content: str
    score: float


Ask = Callable[[Sequence[int], Sequence[str], float], Sequence[str]]
"""(places of the messages, messages, temperature) -> replies."""


def grade_all(
    messages: Sequence[str], ask: Ask, read: Callable[[str], float | None] = read_true_grade
) -> list[Grade]:
    """The grades of all messages; those that could not be read are asked again, five times at most.

    The reply of the last call is never read: such an answer has the grade 0 (quirk).
    """
    grades: dict[int, Grade] = {}
    last = len(TEMPERATURES) - 1
    for call, temperature in enumerate(TEMPERATURES):
        open_ = [place for place in range(len(messages)) if place not in grades]
        if not open_:
            break
        texts = [messages[place] + (AGAIN if call else "") for place in open_]
        for place, reply in zip(open_, ask(open_, texts, temperature), strict=True):
            if call == last:
                grades[place] = Grade(reply, 0.0)
            elif (score := read(reply)) is not None:
                grades[place] = Grade(_first_piece(reply), score)
    return [grades[place] for place in range(len(messages))]


def tables(
    capabilities: Mapping[str, Sequence[str]], scores: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """The two official tables: by capability, and by the exact set of capabilities.

    Names of sets are sorted; the official ones follow the order of a hash. Sums run in the order of the
    grades and NumPy rounds, as in the official code, so that halves fall on the same side.
    """
    runs = len(next(iter(scores.values())))
    by_one: dict[str, list[Sequence[float]]] = {}
    by_set: dict[str, list[Sequence[float]]] = {}
    for id_, grades in scores.items():
        needed = sorted(set(capabilities[id_]))
        for name in needed:
            by_one.setdefault(name, []).append(grades)
        by_set.setdefault("_".join(needed), []).append(grades)
    everything = list(scores.values())
    totals = _percent(everything, runs)
    common = {
        "total": _rounded(totals.mean()),
        "std": _rounded(totals.std()),  # of the population of runs
        "runs": str([float(total) for total in np.round(totals, 1)]),
    }
    return {
        title: {name: _rounded(_percent(group, runs).mean()) for name, group in groups.items()} | common
        for title, groups in (("cap-score", by_one), ("cap-int-score", by_set))
    }


def _percent(group: Sequence[Sequence[float]], runs: int) -> Any:
    sums = [0.0] * runs
    for grades in group:
        for run in range(runs):
            sums[run] += grades[run]
    return np.array(sums) / len(group) * 100


def _rounded(value: Any) -> float:
    return float(np.round(value, 1))
