"""Bootstrap intervals over very many units of few kinds, which need not be drawn one by one.

`eval/statistics.py` has the general bootstrap. Knows no benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.scores import Score
from eval.statistics import RESAMPLES

Counts = NDArray[np.int64]


def score_of_kinds(function: Callable[[Counts], float], counts: Sequence[int], scale: float = 100.0) -> Score:
    """A function of how often each kind of unit occurs, with a 95 % bootstrap interval.

    Drawing the units with replacement and counting kinds is drawing counts from a multinomial distribution.
    """
    return score_of_groups(function, [counts], scale)


def score_of_groups(
    function: Callable[[Counts], float], groups: Sequence[Sequence[int]], scale: float = 100.0
) -> Score:
    """The sum of a function over groups whose sizes are fixed, so that each is drawn from by itself."""
    given = [np.array(counts, dtype=np.int64) for counts in groups if sum(counts)]
    if not given:
        return Score(None, None, None, 0, scale)
    random = np.random.default_rng(0)
    found = np.zeros(RESAMPLES)
    for counts in given:
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), RESAMPLES)
        found += [function(row) for row in drawn]
    low, high = np.quantile(found, [0.025, 0.975])
    value = sum(function(counts) for counts in given)
    return Score(value, float(low), float(high), sum(int(counts.sum()) for counts in given), scale)
