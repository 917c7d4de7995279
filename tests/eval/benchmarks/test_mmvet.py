"""MM-Vet: loading, prompts, how grades are asked for, scores worked out by hand, both official files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.judge import RecordedJudge
from eval.judged import Review, Setting
from eval.scorers.mmvet import AGAIN, read_grade, read_true_grade, tables
from tests.eval.benchmarks.judged_files import ScriptedJudge, judged_part, load, mmvet
from tests.eval.benchmarks.short_answer_files import edit, write_json, write_jsonl

MMVET = find("mmvet")
JUDGED = judged_part("mmvet")
ANSWERS = {"v1_0": "-1 or -5", "v1_1": "Bob", "v1_2": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mmvet(tmp_path)
    return tmp_path


def test_questions(folder: Path) -> None:
    first, second, _ = load("mmvet", folder)
    assert (first.id, first.prompt, first.gold) == ("v1_0", "What is x?", "-1<AND>-5")
    assert first.images == (folder / "images" / "v1_0.png",)
    assert second.facts["capability"] == ["rec"]


def test_the_set_for_bard_is_a_part_in_the_order_of_the_whole(folder: Path) -> None:
    assert [question.id for question in load("mmvet", folder, "bard_set")] == ["v1_0", "v1_2"]


def test_without_a_judge_there_are_marks_but_no_scores(folder: Path) -> None:
    scored = MMVET.score(load("mmvet", folder), ANSWERS)
    assert scored.scores == {}
    assert scored.unparsable == 1
    assert {mark.score for mark in scored.marks.values()} == {None}
    assert scored.notes["judged"].startswith("not judged")


def test_what_the_judge_is_asked(folder: Path) -> None:
    judge = ScriptedJudge(lambda request: "0.5")
    JUDGED.review(load("mmvet", folder), ANSWERS, judge, Setting())
    texts = [request.text for request in judge.asked]
    assert texts[0] == "Compare.\n\nWhat is x? | -1 <AND> -5 | -1 or -5 | "
    assert texts[1] == "Compare.\n\nWho is it? | A man  <OR>  Bob | Bob | "  # two blanks each (quirk)
    assert texts[2] == "Compare.\n\nWhat is y? | 7 |  | "
    assert {(request.temperature, request.max_tokens) for request in judge.asked} == {(0.0, 3)}
    assert JUDGED.requests(load("mmvet", folder), ANSWERS, Setting()) == judge.asked


def test_a_grade_that_cannot_be_read_is_asked_for_again_and_hotter(folder: Path) -> None:
    """The first comes at the second call; the second never, so it has 0 although its last reply is one."""

    def reply(request) -> str:  # type: ignore[no-untyped-def]
        if request.id == "v1_0":
            return "0.8" if request.text.endswith(AGAIN) else "Score: 0.8"
        if request.id == "v1_1":
            return "1.0" if request.temperature == 2.0 else " 0.5"
        return "0.1 | why"

    judge = ScriptedJudge(reply)
    reviews = JUDGED.review(load("mmvet", folder), ANSWERS, judge, Setting())
    assert [request.temperature for request in judge.asked if request.id == "v1_1"] == [
        0.0,
        0.0,
        0.5,
        1.0,
        1.5,
        2.0,
    ]
    assert reviews == {
        "v1_0": [Review("scripted", "0.8", (0.8,))],
        "v1_1": [Review("scripted", "1.0", (0.0,))],
        "v1_2": [Review("scripted", "0.1", (0.1,))],
    }
    assert JUDGED.score(load("mmvet", folder), ANSWERS, reviews).unparsable == 1


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("1.0", 1.0),
        (".5", 0.5),
        ("0.95", 0.95),
        ("1e-1", 0.1),
        ("-0.1", None),
        ("1.0.", None),
        ("", None),
        ("1.1", None),
    ],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == read_true_grade(reply) == grade


def test_nan_passes_the_official_test_but_not_ours() -> None:
    official = read_grade("nan")
    assert official is not None
    assert math.isnan(official)
    assert read_true_grade("nan") is None


TWO_RUNS = {"v1_0": (0.5, 1.0), "v1_1": (0.25, 0.25), "v1_2": (0.0, 0.4)}


def reviewed() -> dict[str, list[Review]]:
    return {
        id_: [Review("gpt-4", f"{grade}", (grade,)) for grade in grades] for id_, grades in TWO_RUNS.items()
    }


def test_scores_of_two_runs(folder: Path) -> None:
    scored = JUDGED.score(load("mmvet", folder), ANSWERS, reviewed())
    # runs: 0.75 / 3 and 1.65 / 3
    assert [*scored.scores] == ["total", "ocr", "math", "rec"]
    assert scored.scores["total"].value == pytest.approx((0.25 + 0.55) / 2)
    assert scored.scores["ocr"].value == pytest.approx((0.25 + 0.7) / 2)
    assert scored.scores["ocr"].count == 2
    assert scored.scores["rec"].value == pytest.approx(0.25)
    official = scored.notes["official"]
    common = {"total": 40.0, "std": 15.0, "runs": "[25.0, 55.0]"}
    assert official["cap-score"] == {"math": 47.5, "ocr": 47.5, "rec": 25.0, **common}
    assert official["cap-int-score"] == {"math_ocr": 47.5, "rec": 25.0, **common}
    assert scored.marks["v1_0"].read == "0.5; 1"
    assert scored.marks["v1_0"].score == pytest.approx(0.75)
    assert scored.unparsable == 0
    assert len(scored.notes["preamble_sha256"]) == 64


def test_halves_are_rounded_as_numpy_does() -> None:
    # 1.25 %: to the even digit
    scores = {str(number): [1.0 if number == 0 else 0.0] for number in range(80)}
    assert tables({key: ["rec"] for key in scores}, scores)["cap-score"]["total"] == 1.2


def test_grades_that_never_came_are_counted(folder: Path) -> None:
    reviews = reviewed() | {"v1_1": [Review("gpt-4", "none", (0.0,)), Review("gpt-4", "none", (0.0,))]}
    scored = JUDGED.score(load("mmvet", folder), ANSWERS, reviews)
    assert scored.unparsable == 1
    assert scored.notes["unread grades"] == 2
    assert scored.marks["v1_1"].read is None


def test_both_official_files_come_back(folder: Path) -> None:
    questions = load("mmvet", folder)
    MMVET.write(folder / "out.json", questions, ANSWERS)
    assert json.loads((folder / "out.json").read_text(encoding="utf-8")) == ANSWERS
    assert MMVET.read(folder / "out.json") == ANSWERS
    JUDGED.write(folder / "grades.json", questions, reviewed())
    first = json.loads((folder / "grades.json").read_text(encoding="utf-8"))["v1_0"]
    assert first == {"model": ["gpt-4", "gpt-4"], "content": ["0.5", "1.0"], "score": [0.5, 1.0]}
    assert JUDGED.read(folder / "grades.json") == reviewed()


def test_recorded_replies_judge_offline(folder: Path) -> None:
    lines = [
        {"id": id_, "reply": str(grade)}
        for run in (0, 1)
        for id_, grades in TWO_RUNS.items()
        for grade in [grades[run]]
    ]
    write_jsonl(folder / "replies.jsonl", lines)
    judge = RecordedJudge(folder / "replies.jsonl", "gpt-4")
    assert JUDGED.review(load("mmvet", folder), ANSWERS, judge, Setting(runs=2)) == reviewed()


def test_judging_without_the_examples_is_refused_but_loading_is_not(folder: Path) -> None:
    (folder / "preamble.txt").unlink()
    questions = load("mmvet", folder)
    with pytest.raises(EvalError, match=r"mmvet: judging needs preamble.txt in the data folder"):
        JUDGED.requests(questions, ANSWERS, Setting())
    assert JUDGED.score(questions, ANSWERS, reviewed()).notes["preamble_sha256"] is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"capability": ["rec"]', '"capability": []', r"mm-vet.json: v1_1: capability is empty"),
        ('"question": "What is x?", ', "", r"mm-vet.json: v1_0: has no 'question'"),
        ("v1_1.png", "v1_9.png", r"mmvet: 1 of 3 pictures are missing \(the first is .*v1_9.png\)"),
        ('{"v1_0"', '["v1_0"', r"mm-vet.json: broken JSON at line 1"),
    ],
)
def test_broken_questions(folder: Path, old: str, new: str, said: str) -> None:
    edit(folder / "mm-vet.json", old, new)
    with pytest.raises(EvalError, match=said):
        load("mmvet", folder)


def test_broken_parts(folder: Path) -> None:
    write_json(folder / "bard_set.json", ["v1_7"])
    with pytest.raises(EvalError, match=r"bard_set.json: 'v1_7' is not in mm-vet.json"):
        load("mmvet", folder, "bard_set")
    write_json(folder / "bard_set.json", {"v1_1": 0})
    with pytest.raises(EvalError, match=r"bard_set.json: is not a list of ids"):
        load("mmvet", folder, "bard_set")
    write_json(folder / "mm-vet.json", {})
    with pytest.raises(EvalError, match=r"mm-vet.json: holds no questions"):
        load("mmvet", folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1.0\n", "1.5\n", r"v1_0: a score is no number from 0 to 1"),
        ('"gpt-4",', "", r"v1_0: model, content and score are not equally long lists"),
        ('"score"', '"grade"', r"v1_0: has no 'score'"),
    ],
)
def test_broken_grades(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "grades.json"
    JUDGED.write(path, load("mmvet", folder), reviewed())
    edit(path, old, new)
    with pytest.raises(EvalError, match=said):
        JUDGED.read(path)


def test_grades_of_other_or_too_few_questions(folder: Path) -> None:
    questions = load("mmvet", folder)
    found = reviewed()
    with pytest.raises(EvalError, match=r"mmvet: 1 reviews belong to no question \(the first is 'v1_9'\)"):
        JUDGED.score(questions, ANSWERS, found | {"v1_9": found["v1_1"]})
    with pytest.raises(EvalError, match=r"mmvet: 1 of 3 questions have no review \(the first is v1_2\)"):
        JUDGED.score(questions, ANSWERS, {id_: found[id_] for id_ in ("v1_0", "v1_1")})
    with pytest.raises(EvalError, match=r"question 'v1_1' has 1 reviews where others have 2"):
        JUDGED.score(questions, ANSWERS, found | {"v1_1": found["v1_1"][:1]})
    write_json(folder / "out.json", {"v1_0": 3})
    with pytest.raises(EvalError, match=r"out.json: v1_0 is 3, not a text"):
        MMVET.read(folder / "out.json")


def test_llavas_answer_lines_have_bare_numbers(folder: Path) -> None:
    write_jsonl(folder / "a.jsonl", [{"question_id": 0, "text": "x"}, {"question_id": 12, "text": ""}])
    assert MMVET.read(folder / "a.jsonl") == {"v1_0": "x", "v1_12": ""}


def test_grades_of_the_whole_set_score_the_set_for_bard(folder: Path) -> None:
    grades = {key: [Review("gpt", "", (grade,))] for key, grade in zip(ANSWERS, (0.5, 1.0, 0.1), strict=True)}
    questions = load("mmvet", folder, "bard_set")
    scored = JUDGED.score(questions, {}, grades)
    assert scored.scores["total"].value == pytest.approx(0.3)
    with pytest.raises(EvalError, match="1 reviews belong to no question"):
        JUDGED.score(questions, {}, {**grades, "v1_9": grades["v1_0"]})


def test_answers_to_another_benchmark(folder: Path) -> None:
    questions, judge = load("mmvet", folder), ScriptedJudge(lambda request: "0.5")
    for use in (
        lambda: MMVET.score(questions, {"7": "x"}),
        lambda: JUDGED.review(questions, {"7": "x"}, judge, Setting()),
        lambda: JUDGED.score(questions, {}, {"7": [Review("gpt", "", (0.5,))]}),
    ):
        with pytest.raises(EvalError, match="holds answers to another benchmark"):
            use()
    assert judge.asked == []
