"""What a scorer gives back: scores with intervals, and what became of every answer. Knows no benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.statistics import bootstrap, bootstrap_mean, minimum_detectable, wilson

WIDE = 80  # characters of a line in a terminal
SMALL = 1000  # questions; of fewer it is said what they cannot tell


@dataclass(frozen=True)
class Score:
    """One figure with its 95 % interval; value and interval are None where there was nothing to score.

    Args:
        value: A share in [0, 1], or what the official scorer prints where that is no share.
        count: How many questions (or groups, or pictures) it is over.
        scale: What the published tables multiply it by.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    scale: float = 100.0

    @classmethod
    def of(cls, right: int, count: int) -> Score:
        """The share of right answers, with Wilson's interval."""
        if count == 0:
            return cls(None, None, None, 0)
        return cls(right / count, *wilson(right, count), count)

    @classmethod
    def mean(cls, values: Sequence[float], scale: float = 100.0) -> Score:
        """The mean of values that are not only 0 and 1, with a bootstrap interval."""
        if not values:
            return cls(None, None, None, 0, scale)
        return cls(math.fsum(values) / len(values), *bootstrap_mean(values), len(values), scale)

    @classmethod
    def statistic(
        cls, function: Callable[[Sequence[Any]], float], units: Sequence[Any], scale: float = 100.0
    ) -> Score:
        """Any function of independent units (questions, pictures, groups), with a bootstrap interval."""
        if not units:
            return cls(None, None, None, 0, scale)
        return cls(function(units), *bootstrap(function, units), len(units), scale)


def percent(share: float | None) -> str:
    """Two decimals as the published tables print them; a dash where there is nothing to average."""
    return "-" if share is None else f"{share * 100:.2f}"


@dataclass(frozen=True)
class Scores:
    """The figures of a result by name, how many answers were read as nothing, and what else was found."""

    categories: dict[str, Score]
    unparsable: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """What to print: the names, the values, both ends of the intervals and the counts."""
        if not self.categories:
            return f"no scores: {self.notes.get('judged', 'the right answers are not public')}"
        scores = self.categories.items()
        head = (
            "",
            "%" if all(score.scale == 100 for _, score in scores) else "score",
            "low",
            "high",
            "count",
        )
        rows = [
            (name, *(_shown(score, end) for end in (score.value, score.low, score.high)), str(score.count))
            for name, score in scores
        ]
        narrow = len(rows) * 8 + 5 <= WIDE and all(len(name) < 8 for name in self.categories)
        lines = _lying(head, rows) if narrow else _standing(head, rows)
        return "\n".join(
            [*lines, f"unparsable answers: {self.unparsable} (counted as wrong)", *self._small()]
        )

    def _small(self) -> list[str]:
        """What a small set cannot tell."""
        shares = [score for score in self.categories.values() if score.scale == 100]
        head = max(shares, key=lambda score: score.count, default=None)
        if head is None or head.value is None or not 0 < head.value < 1 or head.count >= SMALL:
            return []
        points = 100 * minimum_detectable(head.value, head.count)
        if points >= 100:
            return [f"{head.count} questions are too few to tell systems apart"]
        return [
            f"differences below {points:.0f} points may be chance ({head.count} questions, 80 % power at 5 %)"
        ]


def _shown(score: Score, value: float | None) -> str:
    return "-" if value is None else f"{value * score.scale:.2f}"


def _lying(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A column per score."""
    columns = zip(head, *rows, strict=True)
    return [f"{name:<5}" + "".join(f"{cell:>8}" for cell in cells) for name, *cells in columns]


def _standing(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per score."""
    width = max(len(name) for name, *_ in rows)
    return [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in (head, *rows)]


@dataclass(frozen=True)
class Mark:
    """What one answer was read as, and what it earned."""

    read: str | int | None  # None: nothing usable was found in it
    score: float | None  # in [0, 1]; None: the right answer is not public, or a judge has not seen it


@dataclass(frozen=True)
class Scored:
    """The scores of one set of answers.

    Args:
        scores: By name, the headline first; the official order and names otherwise.
        marks: By question id.
        notes: Whatever else the official scorer prints, as JSON.
    """

    scores: dict[str, Score]
    marks: dict[str, Mark]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unparsable(self) -> int:
        """How many answers were read as nothing; they count as the official rule says."""
        return sum(mark.read is None for mark in self.marks.values())

    @property
    def figures(self) -> Scores:
        """Everything but the marks."""
        return Scores(self.scores, self.unparsable, self.notes)


def unscored(read: Mapping[str, str | None]) -> Scored:
    """What answers were read as, by question id, where the right ones are not public."""
    return Scored({}, {key: Mark(text, None) for key, text in read.items()})
