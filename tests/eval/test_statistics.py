"""Intervals and tests against values from the literature and against counting every case."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.statistics import Paired, mcnemar, paired_difference, wilson


# Values of Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(right: int, count: int, low: float, high: float) -> None:
    found = wilson(right, count)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_ends_are_where_the_normal_test_turns(case: tuple[int, int]) -> None:
    right, count = case
    share = right / count
    low, high = wilson(right, count)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / count))


def test_wilson_is_symmetric() -> None:
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("right", "count"), [(1, 0), (0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(right: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{right} right of {count} is no proportion"):
        wilson(right, count)


@pytest.mark.parametrize("only_a", range(7))
@pytest.mark.parametrize("only_b", range(7))
def test_mcnemar_equals_counting_every_split(only_a: int, only_b: int) -> None:
    changed = only_a + only_b
    splits = [sum(split) for split in itertools.product((0, 1), repeat=changed)]
    uneven = sum(abs(2 * first - changed) >= abs(only_a - only_b) for first in splits)
    assert mcnemar(only_a, only_b) == pytest.approx(uneven / len(splits))


def test_mcnemar_known_value_and_large_counts() -> None:
    assert mcnemar(12, 2) == pytest.approx(0.012939453125)
    assert mcnemar(2000, 2000) == 1.0
    assert 0 < mcnemar(900, 1100) < 1e-4


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="got -1 and 3"):
        mcnemar(-1, 3)


# Newcombe (1998), "Improved confidence intervals for the difference ... paired data", method 10.
def test_paired_difference_equals_published_value() -> None:
    difference, interval = paired_difference(Paired(36, 12, 2, 0))
    assert difference == pytest.approx(0.2)
    assert interval == pytest.approx((0.0569, 0.3404), abs=5e-5)


counts = st.tuples(*[st.integers(0, 200)] * 4).filter(lambda pairs: sum(pairs) > 0)


@given(counts)
def test_paired_difference_lies_in_its_interval_and_swaps_sign(values: tuple[int, int, int, int]) -> None:
    pairs = Paired(*values)
    difference, (low, high) = paired_difference(pairs)
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    swapped = Paired(pairs.both, pairs.only_b, pairs.only_a, pairs.neither)
    assert paired_difference(swapped)[1] == pytest.approx((-high, -low), abs=1e-12)


def test_two_equal_systems_differ_by_nothing() -> None:
    difference, interval = paired_difference(Paired(30, 0, 0, 20))
    assert difference == 0
    assert interval == pytest.approx((0, 0), abs=0.06)
    assert mcnemar(0, 0) == 1.0
