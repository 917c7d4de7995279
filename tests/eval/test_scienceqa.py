"""From text to option, and from options to the nine scores."""

from __future__ import annotations

import pytest

from data.scienceqa import Problem
from eval.scienceqa import CATEGORIES, extract, score
from eval.scores import Score, percent


@pytest.mark.parametrize(
    ("text", "options", "found"),
    [
        ("The answer is A.", 2, 0),
        ("The answer is B. BECAUSE: it is.", 2, 1),
        ("Because of that. The answer is B.", 2, 1),
        ("The answer is B", 2, 1),  # the end of the text may follow the letter
        ("The answer is B\nmore", 2, 1),  # and so may a line break
        ("The answer is AB.", 2, 0),
        ("The answer is D!", 4, 3),
        ("The answer is A. No, The answer is B.", 2, 0),  # the first hit counts
        ("The answer is D. The answer is A.", 2, None),  # even if it names no option
        ("The answer is C.", 2, None),
        ("The answer is E.", 5, 4),
        ("the answer is A.", 2, None),
        ("The answer is  A.", 2, None),
        ("The answer is (A).", 2, None),
        ("The answer is 1.", 2, None),
        ("A", 2, None),
        ("", 2, None),
    ],
)
def test_extract(text: str, options: int, found: int | None) -> None:
    assert extract(text, options) == found


def gold(problems: dict[str, Problem]) -> dict[str, int | None]:
    return {pid: problem.answer for pid, problem in problems.items()}


def test_categories_count_what_they_are_defined_by(problems: dict[str, Problem]) -> None:
    counts = {name: found.count for name, found in score(problems, gold(problems)).categories.items()}
    assert counts == {
        "NAT": 5, "SOC": 3, "LAN": 0, "TXT": 3, "IMG": 3, "NO": 3, "G1-6": 4, "G7-12": 4, "Avg": 8,
    }  # fmt: skip


def test_scores_are_shares_of_right_answers_with_wilson_intervals(problems: dict[str, Problem]) -> None:
    predictions = gold(problems) | {"1": 1, "8": 0}
    scores = score(problems, predictions)
    average = scores.categories["Avg"]
    assert average.value == 6 / 8
    assert (average.low, average.high) == pytest.approx((0.4093, 0.9285), abs=5e-5)
    assert scores.categories["NAT"].value == 3 / 5
    assert scores.categories["SOC"].value == 1
    assert scores.unparsable == 0


def test_unparsable_answers_are_counted_and_wrong(problems: dict[str, Problem]) -> None:
    scores = score(problems, gold(problems) | {"2": None, "3": None})
    assert scores.unparsable == 2
    assert scores.categories["Avg"].value == 6 / 8
    assert scores.categories["IMG"].value == 1 / 3


def test_only_predicted_questions_are_scored(problems: dict[str, Problem]) -> None:
    scores = score(problems, {"4": 1, "6": 1})
    assert scores.categories["Avg"] == Score.of(1, 2)
    assert scores.categories["IMG"] == Score.of(0, 0)


def test_a_category_without_data_shows_a_dash(problems: dict[str, Problem]) -> None:
    scores = score(problems, gold(problems))
    assert scores.categories["LAN"] == Score(None, None, None, 0)
    names, values, low, high, counts, unparsable = scores.table().splitlines()
    place = names.split().index("LAN")
    assert names.split() == list(CATEGORIES)
    assert values.split()[1:][place] == low.split()[1:][place] == high.split()[1:][place] == "-"
    assert counts.split()[1:][place] == "0"
    assert values.split()[1] == "100.00"
    assert unparsable == "unparsable answers: 0 (counted as wrong)"


def test_percent_keeps_a_zero() -> None:
    assert percent(0.0) == "0.00"
    assert percent(None) == "-"


def test_an_unknown_grade_counts_in_no_grade_category(problems: dict[str, Problem]) -> None:
    assert not CATEGORIES["G1-6"](problems["6"])  # grade10 is not grade1
    assert CATEGORIES["G7-12"](problems["6"])
