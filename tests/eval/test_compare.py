"""Paired comparison over shared questions."""

from __future__ import annotations

import pytest

from eval.compare import compare
from eval.errors import EvalError
from eval.results import Prediction


def made(right: str, gold: int = 1) -> dict[str, Prediction]:
    """One prediction per letter: r right, w wrong, u unparsable."""
    options = {"r": gold, "w": gold + 1, "u": None}
    return {str(pid): Prediction(options[letter], gold) for pid, letter in enumerate(right)}


def test_counts_and_test() -> None:
    found = compare(made("rrrrrrrwwu"), made("rrwwwwwwru"))
    assert found.pairs == (2, 5, 1, 2)
    assert found.difference == pytest.approx(0.4)
    assert found.interval.low < 0.4 < found.interval.high
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert found.left_out == 0


def test_only_shared_questions_count() -> None:
    a = made("rrw")
    b = {pid: prediction for pid, prediction in made("wrwrr").items() if pid != "0"}
    found = compare(a, b)
    assert found.pairs == (1, 0, 0, 1)
    assert found.left_out == 3


def test_table_names_every_count() -> None:
    lines = compare(made("rrrw"), made("rwwr")).table().splitlines()
    assert lines[:7] == [
        "questions     4",
        "A right       75.00 %",
        "B right       50.00 %",
        "both right    1",
        "only A right  2",
        "only B right  1",
        "both wrong    0",
    ]
    assert lines[7].startswith("A - B         +25.00 points, 95 % interval -")
    assert lines[8] == "McNemar       p = 1 (exact, two-sided)"
    assert "(1 answered by one alone)" in compare(made("rr"), made("r")).table()


def test_no_shared_question() -> None:
    with pytest.raises(EvalError, match="share no question"):
        compare({"1": Prediction(0, 0)}, {"2": Prediction(0, 0)})


def test_different_right_answers() -> None:
    with pytest.raises(EvalError, match="question 0 has the right answer 1 in A but 2 in B"):
        compare(made("r", gold=1), made("r", gold=2))
