"""Intervals and tests for counts of right answers; pure functions that know of no benchmark.

Letters: two systems A and B answered the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Z95 = 1.959963984540054  # the normal distribution holds 95 % within this many standard deviations
Z80 = 0.8416212335729143  # and 80 % lie below this many
# Student's distribution with 1, 2, ... degrees of freedom holds 95 % within these.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


class Paired(NamedTuple):
    """How often two systems were right on the same questions."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def total(self) -> int:
        return sum(self)


def wilson(right: int, count: int, z: float = Z95) -> Interval:
    """Score interval of a proportion (Wilson 1927); it stays within [0, 1] and holds at both ends."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"wilson: {right} right of {count} is no proportion")
    share, spread = right / count, z * z / count
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # at 0 and at `count` the exact end is the proportion itself; rounding would miss it by 1e-17
    low = 0.0 if right == 0 else (centre - half) / (1 + spread)
    high = 1.0 if right == count else (centre + half) / (1 + spread)
    return Interval(low, high)


RESAMPLES = 1000


def bootstrap(
    function: Callable[[Sequence[Any]], float], units: Sequence[Any], resamples: int = RESAMPLES
) -> Interval:
    """Percentile interval (Efron 1979) of a function of independent units; the same at every call."""
    if not units:
        raise ValueError("bootstrap: no units to draw from")
    random = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        drawn = random.integers(len(units), size=len(units)).tolist()
        found.append(function([units[place] for place in drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))


def bootstrap_mean(values: Sequence[float], resamples: int = RESAMPLES) -> Interval:
    """The same of a mean, for any number of values: only how often each occurs is drawn."""
    if len(values) == 0:
        raise ValueError("bootstrap: no values to draw from")
    kinds, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), resamples)
    low, high = np.quantile(drawn @ kinds / len(values), [0.025, 0.975])
    return Interval(float(low), float(high))


def sign_flips(differences: Sequence[float], draws: int = 10_000) -> float:
    """Two-sided permutation test (Fisher 1935): the chance of a sum this far from 0 if signs were random."""
    sizes, counts = np.unique(np.abs(np.asarray(differences, dtype=np.float64)), return_counts=True)
    seen = abs(float(np.sum(differences)))
    flipped = 2 * np.random.default_rng(0).binomial(counts, 0.5, size=(draws, len(counts))) - counts
    further = int((np.abs(flipped @ sizes) >= seen - 1e-9).sum())
    return (1 + further) / (1 + draws)


def minimum_detectable(share: float, count: int) -> float:
    """The difference of two shares that is found with 80 % power at the 5 % level, by independent answers.

    Two systems that were asked the same questions differ less by chance, so this is the cautious figure.
    """
    if not 0 <= share <= 1 or count < 1:
        raise ValueError(f"minimum_detectable: {share} of {count} is no proportion")
    return (Z95 + Z80) * math.sqrt(2 * share * (1 - share) / count)


def over_seeds(values: Sequence[float]) -> tuple[float, float, Interval]:
    """Mean, deviation between two seeds or more (n - 1), and Student's 95 % interval of the mean."""
    count = len(values)
    if count < 2:
        raise ValueError("over_seeds: one value says nothing of the deviation between seeds")
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = T95[count - 2] if count - 2 < len(T95) else Z95
    half = quantile * deviation / math.sqrt(count)
    return mean, deviation, Interval(mean - half, mean + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: the chance of a split this uneven if A and B were equally good."""
    if min(only_a, only_b) < 0:
        raise ValueError(f"mcnemar: counts must not be negative, got {only_a} and {only_b}")
    changed = only_a + only_b
    # whole numbers until the last division: 0.5 ** n would underflow from n = 1075 on
    tail = sum(math.comb(changed, k) for k in range(min(only_a, only_b) + 1))
    splits: int = 2**changed
    return min(1.0, 2 * tail / splits)


def paired_difference(pairs: Paired, z: float = Z95) -> tuple[float, Interval]:
    """Accuracy of A minus that of B, with the score interval of Newcombe (1998, method 10)."""
    count = pairs.total
    right_a, right_b = pairs.both + pairs.only_a, pairs.both + pairs.only_b
    share_a, share_b = right_a / count, right_b / count
    low_a, high_a = wilson(right_a, count, z)
    low_b, high_b = wilson(right_b, count, z)
    phi = _correlation(pairs)
    below = _length(share_a - low_a, high_b - share_b, phi)
    above = _length(high_a - share_a, share_b - low_b, phi)
    difference = share_a - share_b
    return difference, Interval(max(-1.0, difference - below), min(1.0, difference + above))


def _length(side: float, other: float, phi: float) -> float:
    """The third side of a triangle; the two systems' errors partly cancel, as far as they correlate."""
    return math.sqrt(max(0.0, side * side - 2 * phi * side * other + other * other))


def _correlation(pairs: Paired) -> float:
    """Newcombe's phi, with his correction of a positive numerator."""
    both, only_a, only_b, neither = pairs
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    numerator: float = both * neither - only_a * only_b
    if numerator > 0:
        numerator = max(0.0, numerator - pairs.total / 2)
    return numerator / math.sqrt(margins)
