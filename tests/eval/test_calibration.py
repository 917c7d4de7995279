"""Confidence, bins and the calibration error, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from eval.calibration import calibration, confidence


def test_confidence_is_the_share_of_the_likeliest_option() -> None:
    assert confidence([math.log(0.3), math.log(0.1)]) == pytest.approx(0.75)
    assert confidence([-1.0, -1.0, -1.0, -1.0]) == pytest.approx(0.25)
    assert confidence([-5000.0, -5001.0]) == pytest.approx(1 / (1 + math.exp(-1)))  # no underflow
    assert confidence([-2.0]) == 1.0


def test_error_of_four_answers() -> None:
    found = calibration([(0.95, 1), (0.95, 1), (0.85, 0), (0.55, 1)])
    assert found is not None
    # two answers 0.05 apart, one 0.85, one 0.45
    assert found.error == pytest.approx((2 * 0.05 + 0.85 + 0.45) / 4)
    assert [one.count for one in found.bins] == [0, 0, 0, 0, 0, 1, 0, 0, 1, 2]
    assert (found.count, found.right) == (4, 0.75)
    assert found.confidence == pytest.approx(0.825)


def test_overconfident_and_underconfident_answers_do_not_cancel_between_bins() -> None:
    found = calibration([(0.9, 0.0), (0.6, 1.0)])
    assert found is not None
    assert found.error == pytest.approx((0.9 + 0.4) / 2)


def test_edges_belong_to_the_lower_bin() -> None:
    found = calibration([(0.0, 0), (0.5, 1), (1.0, 1)], bins=2)
    assert found is not None
    assert [one.count for one in found.bins] == [2, 1]
    assert [(one.low, one.high) for one in found.bins] == [(0.0, 0.5), (0.5, 1.0)]
    assert found.bins[0].confidence == 0.25
    assert found.bins[0].right == 0.5


def test_tenths_are_edges_however_they_are_rounded() -> None:
    found = calibration([(tenth / 10, 1) for tenth in range(1, 11)])
    assert found is not None
    assert [one.count for one in found.bins] == [1] * 10


def test_graded_answers_count_as_what_they_earned() -> None:
    found = calibration([(0.8, 0.5), (0.8, 1.0)])
    assert found is not None
    assert found.error == pytest.approx(0.05)


def test_no_answers_have_no_calibration() -> None:
    assert calibration([]) is None


def test_empty_bins_say_nothing() -> None:
    found = calibration([(0.95, 1)])
    assert found is not None
    assert (found.bins[0].confidence, found.bins[0].right) == (None, None)
