"""Which questions the report shows, and what their cards say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from data.scienceqa import Problem
from eval.benchmark import LETTER, SHORT, Question
from eval.compare import earned
from eval.report_parts import Part, changed, state
from eval.report_questions import choose, questions_section, spread, told_gold
from eval.results import Prediction, Result
from eval.scores import Scores
from tests.eval.report_files import Page, graded_benchmark, graded_part, scienceqa_part, scienceqa_result


def part_of(marks: dict[str, str]) -> Part:
    """A part without questions; r, w and u say what became of each answer of a column."""
    made = {
        "r": Prediction(0, 0),
        "w": Prediction(1, 0),
        "u": Prediction(None, 0, text=""),
    }
    columns = {
        name: Result(Scores({}, 0), {f"q{place}": made[one] for place, one in enumerate(some)}, {}, {}, {})
        for name, some in marks.items()
    }
    return Part(graded_benchmark(), "all", columns)


def card(part: Part, pid: str) -> str:
    """What the card of a question says."""
    drawn = questions_section(part, 100, 10**6)
    found: list[str] = [
        one for one in re.findall(r"<article.*?</article>", drawn, re.DOTALL) if f"<h4>{pid}<" in one
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (None, "-"),
        (Prediction(0, 0), "r"),
        (Prediction(1, 0), "w"),
        (Prediction(None, 0), "u"),
        (Prediction(None, "yes", "yes", None, "yes", 1.0), "r"),
        (Prediction(None, "yes", "no", None, "no", 0.0), "w"),
        (Prediction(None, ["a"], "a", None, "a", 0.3), "p"),
        (Prediction(None, None, "a", None, "a", None), "n"),
        (Prediction(2, None), "n"),
        (Prediction(None, "yes", "?", None, None, 0.0), "u"),
    ],
)
def test_what_became_of_an_answer(made: Prediction | None, told: str) -> None:
    assert state(made) == told


def test_a_mark_counts_more_than_the_option() -> None:
    assert earned(Prediction(1, 0, score=0.5)) == 0.5


def test_changed_is_what_earned_differently() -> None:
    assert changed(Prediction(0, 0), Prediction(1, 0))
    assert not changed(Prediction(1, 0), Prediction(2, 0))  # both wrong
    assert not changed(Prediction(0, 0), None)
    unscored = Prediction(None, None, "a", None, "a"), Prediction(None, None, "b", None, "b")
    assert changed(*unscored)
    assert not changed(unscored[0], unscored[0])


def test_spread_is_even_and_never_longer_than_what_there_is() -> None:
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(["a", "b"], 5) == ["a", "b"]
    assert spread([], 3) == []


def test_all_questions_are_chosen_where_they_are_few() -> None:
    chosen = choose(part_of({"ours": "rwru", "theirs": "rrrr"}), 60)
    assert chosen.ids == ("q0", "q1", "q2", "q3")
    assert chosen.of_kind == {"unparsable": 1, "changed": 2, "wrong": 1}


def test_every_kind_has_its_share_in_the_order_of_the_set() -> None:
    ours = "r" * 400 + "w" * 100 + "u" * 4
    theirs = "r" * 380 + "w" * 124
    chosen = choose(part_of({"ours": ours, "theirs": theirs}), 40)
    assert len(chosen.ids) == 40
    assert list(chosen.ids) == sorted(chosen.ids, key=lambda pid: int(pid[1:]))
    assert {"q500", "q501", "q502", "q503"} <= set(chosen.ids)
    places = [int(pid[1:]) for pid in chosen.ids]
    assert sum(380 <= place < 400 for place in places) >= 12  # changed
    assert sum(400 <= place < 500 for place in places) >= 12  # wrong
    assert sum(place < 380 for place in places) >= 8  # any


def test_none_is_shown_where_none_is_wanted() -> None:
    assert questions_section(part_of({"ours": "rw"}), 0, 1000) == ""


def test_section_says_what_is_left_out() -> None:
    said = Page(questions_section(part_of({"ours": "r" * 90 + "w" * 10, "theirs": "r" * 100}), 20, 1000)).said
    assert (
        "Of 100 questions there are 10 that ours has not fully right, 10 that another column has better or "
        "worse, 0 with an unparsable answer." in said
    )
    assert "80 are left out." in said


def test_cards_carry_what_the_filters_need() -> None:
    drawn = questions_section(part_of({"ours": "rwu", "theirs": "rrw"}), 20, 1000)
    assert re.findall(r'data-states="(.*?)" data-changed="(.*?)"', drawn) == [
        ("rr", "00"),
        ("wr", "11"),
        ("uw", "00"),
    ]


def test_filters_offer_what_there_is() -> None:
    alone = questions_section(part_of({"ours": "rw"}), 20, 1000)
    assert 'value="changed"' not in alone
    assert "partly right" not in alone
    assert 'value="changed"' in questions_section(part_of({"ours": "rw", "theirs": "rr"}), 20, 1000)


def test_partly_right_answers_have_a_filter(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0, 0.3, 0.0, 1.0)})
    assert "partly right" in questions_section(part, 20, 10**6)


def test_options_are_marked_and_the_request_for_a_letter_is_left_out(
    root: Path, problems: dict[str, Problem]
) -> None:
    part = scienceqa_part(root, {"tuned": scienceqa_result(problems, {"3": 0})})
    shown = card(part, "3")
    assert '<p class="gold">D. thing 3</p>' in shown
    assert "<p>A. thing 0</p>" in shown
    assert "Look &lt;here&gt; &amp; there." in shown
    assert LETTER not in shown
    assert 'alt="Picture of question 3" width="480" height="288"' in shown


def test_of_a_long_prompt_the_end_is_shown_and_the_rest_opens(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0,) * 4})
    prompt = "example " * 300 + "What now?\n" + SHORT
    long = replace(part, questions={**part.questions, "q0": Question("q0", prompt)})
    shown = card(long, "q0")
    assert "<summary>all 2,409 letters</summary>" in shown
    assert shown.count("What now?") == 2
    assert SHORT not in shown


def test_a_long_answer_opens_on_demand(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0,) * 4}, ours="word " * 100)
    assert '<details class="said"><summary>word word' in card(part, "q0")


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    part = graded_part(tmp_path, {"ours": (1.0,) * 4})
    assert "&lt;/script&gt;&lt;b&gt;red&lt;/b&gt;" in card(part, "q0")


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        (None, "not public"),
        (1, "B"),
        (30, "30"),
        ("Yes", "Yes"),
        (["red", "blue", "red"], "red (2), blue (1)"),
        (("red",), "red"),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_the_right_answer_in_words(gold: object, told: str) -> None:
    assert told_gold(gold, None) == told


def test_the_right_option_by_its_own_name() -> None:
    assert told_gold(1, Question("1", "", options=("Yes", "No"))) == "No"


def test_a_picture_that_cannot_be_decoded_is_told(root: Path, problems: dict[str, Problem]) -> None:
    """It may have been asked about with a grey one in its place."""
    (root / "images" / "test" / "2" / "image.png").write_bytes(b"broken")
    part = scienceqa_part(root, {"a": scienceqa_result(problems, dict.fromkeys(problems, 0))})
    assert "is not a picture in a known format" in card(part, "2")
