"""The bootstrap over counts agrees with the one that draws units one by one."""

from __future__ import annotations

import pytest

from eval.resampling import Counts, score_of_groups, score_of_kinds
from eval.statistics import bootstrap


def share(counts: Counts) -> float:
    return float(counts[1] / counts.sum())


def test_interval_is_that_of_drawn_units() -> None:
    score = score_of_kinds(share, [60, 140])
    low, high = bootstrap(lambda some: sum(some) / len(some), [0] * 60 + [1] * 140)
    assert (score.value, score.count) == (0.7, 200)
    assert (score.low, score.high) == pytest.approx((low, high), abs=0.01)
    assert score == score_of_kinds(share, [60, 140])


def test_groups_are_drawn_from_by_themselves() -> None:
    score = score_of_groups(share, [[0, 5], [3, 1], [0, 0]], scale=1)
    assert (score.value, score.count, score.scale) == (1.25, 9, 1)
    assert (score.low, score.high) == (1.0, 1.75)  # the first group is always 1


def test_of_nothing_there_is_no_score() -> None:
    assert score_of_kinds(share, [0, 0]).value is None and score_of_groups(share, []).low is None
