"""Two answers that a judge gave a number each: reading its reply, and the summary of many.

LLaVA-Bench, LLaVA-Bench Wilder and Vicuna-80 share these rules. The first answer is the reference (or the
baseline), the second the candidate. Knows nothing of files or of how the judge is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

UNREAD = (-1.0, -1.0)
"""What the public code puts in the place of a pair that it cannot read; it stays in every mean."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


CHECKER = "You are a helpful and precise assistant for checking the quality of the answer."
"""The system message, quoted because judgements depend on it."""


@dataclass(frozen=True)
class Rule:
    """What a rule file says for one category: what the answers' authors are called, and what to do."""

    role: str
    prompt: str


def message(rule: Rule, question: str, first: str, second: str, context: str | None = None) -> str:
    """The user message that shows a judge two answers; without a context it begins at the question."""
    role = rule.role
    blocks = [
        f"[Question]\n{question}",
        f"[{role} 1]\n{first}",
        f"[End of {role} 1]",
        f"[{role} 2]\n{second}",
        f"[End of {role} 2]",
        f"[System]\n{rule.prompt}",
    ]
    if context is not None:
        blocks.insert(0, f"[Context]\n{context}")
    return "".join(f"{block}\n\n" for block in blocks)


class Pair(NamedTuple):
    """The numbers of the first and of the second answer."""

    first: float
    second: float

    @property
    def read(self) -> bool:
        """Whether the reply held a pair; a judge that says "-1 -1" cannot be told from one that does not."""
        return self != UNREAD


class Summary(NamedTuple):
    """The three figures that the public summary prints, rounded as it rounds."""

    relative: float | None  # the second in percent of the first; None: the first is 0, and the script stops
    first_x10: float
    second_x10: float


def read_llava(reply: str) -> Pair:
    """The pair of LLaVA's reader, for LLaVA-Bench and Vicuna-80.

    Only the first line counts, commas are blanks, and single blanks divide it. So two blanks in a row, "8, 9"
    and a blank at either end all make a third piece, and nothing is read.
    """
    return _two_pieces(_first_line(reply))


def read_wilder(reply: str) -> Pair:
    """The pair of the Wilder reader: as LLaVA's, but blanks at the ends of the first line do no harm.

    The line is the first of the reply as it came: one that begins with a line break has an empty first line.
    It is stripped before commas become blanks, so a comma at its end still makes a third piece.
    """
    return _two_pieces(_first_line(reply).strip())


def read_first_two(reply: str) -> Pair:
    """The pair of the present lmms-eval reader: the first two numbers in the first line that has any text.

    A number is digits with an optional fraction, so "1e1" is two of them and "8/10 9/10" gives 8 and 10.
    """
    found = _NUMBER.findall(_first_line(reply.strip()))
    return Pair(float(found[0]), float(found[1])) if len(found) >= 2 else Pair(*UNREAD)


def _first_line(reply: str) -> str:
    return reply.split("\n", maxsplit=1)[0]


def _two_pieces(line: str) -> Pair:
    pieces = line.replace(",", " ").split(" ")
    if len(pieces) != 2:
        return Pair(*UNREAD)
    try:
        # Python's own idea of a number is the rule: "1e1", "inf", "nan" and "1_0" are numbers
        return Pair(float(pieces[0]), float(pieces[1]))
    except ValueError:
        return Pair(*UNREAD)


def summarise(pairs: Sequence[Pair]) -> Summary:
    """The printed figures of some pairs; the means are rounded before they are divided (quirk)."""
    first, second = (round(mean, 3) for mean in np.asarray(pairs, dtype=float).mean(0).tolist())
    percent = round(second / first * 100, 1) if first else None
    return Summary(percent, round(first * 10, 1), round(second * 10, 1))


def summaries(pairs: Sequence[tuple[str | None, Pair]]) -> dict[str, Summary]:
    """The figures of all pairs and of each category, sorted as they are printed."""
    groups: dict[str, list[Pair]] = {"all": []}
    for category, pair in pairs:
        groups["all"].append(pair)
        if category is not None:
            groups.setdefault(category, []).append(pair)
    return {name: summarise(group) for name, group in sorted(groups.items()) if group}


def totals(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Both sums, which the Vicuna announcement quotes."""
    return sum(pair.first for pair in pairs), sum(pair.second for pair in pairs)


def relative(table: FloatArray) -> float:
    """The second over the first, unrounded, as the mean over judge runs; 0 where a first is 0 throughout.

    table: questions x runs x 2, each the sum of a question's pairs in a run.
    """
    sums = table.sum(0)
    ratios = np.divide(sums[:, 1], sums[:, 0], out=np.zeros(len(sums)), where=sums[:, 0] != 0)
    return float(ratios.mean())
