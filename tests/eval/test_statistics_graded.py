"""Intervals and tests of marks that are not only right and wrong, against plain slow versions."""

from __future__ import annotations

import itertools
import random

import pytest

from eval.compare import compare
from eval.errors import EvalError
from eval.results import Prediction
from eval.scores import Score, Scores
from eval.statistics import (
    bootstrap,
    bootstrap_mean,
    mcnemar,
    minimum_detectable,
    over_seeds,
    sign_flips,
)


def test_drawing_counts_is_drawing_values() -> None:
    values = [random.Random(0).choice([0.0, 0.3, 0.6, 0.9, 1.0]) for _ in range(300)]
    one_by_one = bootstrap(lambda some: sum(some) / len(some), values, resamples=4000)
    by_kind = bootstrap_mean(values, resamples=4000)
    assert by_kind == pytest.approx(one_by_one, abs=0.005)
    assert by_kind == bootstrap_mean(values, resamples=4000)
    assert bootstrap_mean([0.5] * 7) == (0.5, 0.5)
    for function in (bootstrap_mean, lambda some: bootstrap(sum, some)):
        with pytest.raises(ValueError, match="bootstrap: no .* to draw from"):
            function([])


def test_random_signs_come_near_counting_every_sign() -> None:
    differences = [0.3, -0.1, 0.6, 0.3, 0.9, -0.3, 0.2, 0.0, 0.4, 0.1]
    seen = abs(sum(differences))
    sums = [
        sum(sign * one for sign, one in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    exact = sum(abs(one) >= seen - 1e-9 for one in sums) / len(sums)
    assert sign_flips(differences) == pytest.approx(exact, abs=0.01)
    # right and wrong only: McNemar's exact test
    assert sign_flips([1.0] * 9 + [-1.0] * 2 + [0.0] * 30) == pytest.approx(mcnemar(9, 2), abs=0.01)


def test_minimum_detectable_difference() -> None:
    # 1.95996 + 0.84162 = 2.80159; times sqrt(2 * 0.25 / 100)
    assert minimum_detectable(0.5, 100) == pytest.approx(0.198102, abs=1e-6)
    assert minimum_detectable(0.5, 400) == pytest.approx(minimum_detectable(0.5, 100) / 2)
    with pytest.raises(ValueError, match="is no proportion"):
        minimum_detectable(1.5, 10)


def test_over_seeds() -> None:
    mean, deviation, (low, high) = over_seeds([80.0, 82.0, 84.0])
    assert (mean, deviation) == (82.0, 2.0)
    assert (low, high) == pytest.approx((82 - 4.303 * 2 / 3**0.5, 82 + 4.303 * 2 / 3**0.5))
    with pytest.raises(ValueError, match="one value says nothing"):
        over_seeds([1.0])


def test_a_small_set_says_what_it_cannot_tell() -> None:
    told = Scores({"Avg": Score.of(50, 100)}, 0).table().splitlines()[-1]
    assert told == "differences below 20 points may be chance (100 questions, 80 % power at 5 %)"
    for scores in (
        {"Avg": Score.of(500, 1000)},
        {"Avg": Score.of(9, 9)},
        {"Perception": Score(1500, 1, 2, 9, 1)},
    ):
        assert "may be chance" not in Scores(scores, 0).table()


def marked(*marks: float) -> dict[str, Prediction]:
    return {str(place): Prediction(None, ["gold"], text="t", score=mark) for place, mark in enumerate(marks)}


def test_graded_marks_are_compared_by_random_signs() -> None:
    a = marked(*[1.0, 0.6, 0.9, 1.0, 0.3] * 8)
    b = marked(*[0.9, 0.3, 0.9, 0.6, 0.3] * 8)
    found = compare(a, b)
    assert found.pairs is None
    assert (found.count, found.mean_a, found.mean_b) == pytest.approx((40, 0.76, 0.6))
    assert found.difference == pytest.approx(0.16)
    assert found.interval.low < 0.16 < found.interval.high
    assert found.p < 0.001
    lines = found.table().splitlines()
    assert lines[1].split() == ["A", "earned", "76.00", "%"]
    assert lines[-1] == "random signs  p = 9.999e-05 (two-sided)"
    assert compare(a, a).p == 1.0


def test_of_a_group_only_the_marked_question_is_compared() -> None:
    a = {"1": Prediction(0, "A", score=1.0), "2": Prediction(1, "B"), "3": Prediction(None, "B", text="?")}
    b = {**a, "1": Prediction(1, "A", score=0.0)}
    assert (found := compare(a, b)).count == 1 and found.difference == 1.0


def test_answers_without_public_truth_are_not_compared() -> None:
    one = {"1": Prediction(None, None, text="yes")}
    with pytest.raises(EvalError, match="no answer has a mark: the right ones are not public"):
        compare(one, one)
