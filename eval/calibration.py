"""Whether a model is right as often as it is sure: reliability bins and the expected calibration error.

Of answers chosen by likelihood alone; a generated text says nothing of how sure it is. Knows no benchmark.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence lies between two tenths."""

    low: float
    high: float
    count: int
    confidence: float | None  # their mean; None: no answer is in it
    right: float | None  # their share of right answers


@dataclass(frozen=True)
class Calibration:
    """The bins, and what they come to.

    Args:
        error: Expected calibration error (Naeini et al. 2015): how far confidence and share of right answers
            are apart, a mean over all answers.
    """

    bins: tuple[Bin, ...]
    error: float
    count: int
    confidence: float
    right: float


def confidence(likelihoods: Sequence[float]) -> float:
    """The probability of the likeliest option, the options together being 1; takes natural logarithms."""
    highest = max(likelihoods)
    return 1 / math.fsum(math.exp(one - highest) for one in likelihoods)


def calibration(answers: Iterable[tuple[float, float]], bins: int = BINS) -> Calibration | None:
    """The calibration of answers, each its confidence and what it earned in [0, 1]; None of no answers.

    The bins are equally wide; a confidence on the edge of two belongs to the lower one, and 0 to the lowest.
    """
    made = list(answers)
    if not made:
        return None
    edges = [place / bins for place in range(1, bins + 1)]
    sorted_in: list[list[tuple[float, float]]] = [[] for _ in edges]
    for sure, earned in made:
        sorted_in[bisect_left(edges, sure)].append((sure, earned))
    found = tuple(_bin(place / bins, (place + 1) / bins, some) for place, some in enumerate(sorted_in))
    apart = (
        one.count * abs(one.confidence - one.right)
        for one in found
        if one.confidence is not None and one.right is not None
    )
    return Calibration(
        bins=found,
        error=math.fsum(apart) / len(made),
        count=len(made),
        confidence=_mean([sure for sure, _ in made]),
        right=_mean([earned for _, earned in made]),
    )


def _bin(low: float, high: float, answers: Sequence[tuple[float, float]]) -> Bin:
    if not answers:
        return Bin(low, high, 0, None, None)
    return Bin(
        low, high, len(answers), _mean([sure for sure, _ in answers]), _mean([right for _, right in answers])
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
