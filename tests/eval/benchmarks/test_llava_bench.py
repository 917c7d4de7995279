"""LLaVA-Bench: loading, messages, reviews in both orders, scores worked out by hand, both official files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.judge import Request
from eval.judge_http import Endpoint, HttpJudge
from eval.judged import Review, Setting
from eval.scorers.pairs import CHECKER, Pair, read_first_two, read_llava, read_wilder, summarise
from tests.eval.benchmarks.judged_files import ScriptedJudge, judged_part, llava_bench, load
from tests.eval.benchmarks.short_answer_files import edit
from tests.eval.judge_server import Act, judge_server

BENCH = find("llava_bench")
JUDGED = judged_part("llava_bench")
ANSWERS = {"0": "A hill", "1": "", "2": "It parks.\nThere."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llava_bench(tmp_path)
    return tmp_path


def test_questions(folder: Path) -> None:
    questions = load("llava_bench", folder)
    assert [(one.id, one.prompt) for one in questions] == [
        ("0", "What of conv?"),
        ("1", "What of detail?"),
        ("2", "What of complex?"),
    ]
    assert questions[1].images == (folder / "images" / "002.jpg",)


def test_what_the_judge_is_asked(folder: Path) -> None:
    judge = ScriptedJudge(lambda request: "8 7")
    JUDGED.review(load("llava_bench", folder), ANSWERS, judge, Setting())
    first, second, _ = judge.asked
    assert first.messages[0] == {"role": "system", "content": CHECKER}
    assert first.messages[1]["content"] == (
        "[Context]\nA hill.\nA sea.\n\n[Question]\nWhat of conv?\n\n[Assistant 1]\nReference 0\n\n"
        "[End of Assistant 1]\n\n[Assistant 2]\nA hill\n\n[End of Assistant 2]\n\n[System]\nRule of conv.\n\n"
    )
    assert second.messages[1]["content"].startswith("[Context]\nA street.\nA car.\n\n[Question]")
    assert (first.temperature, first.max_tokens, first.draw) == (0.2, 1024, 0)


REPLIES = {"0": "8 6\nWell.", "1": "10 x", "2": "5 5"}


def by_question(request: Request) -> str:
    return REPLIES[request.id]


def test_scores_of_one_run(folder: Path) -> None:
    questions = load("llava_bench", folder)
    reviews = JUDGED.review(questions, ANSWERS, ScriptedJudge(by_question), Setting())
    scored = JUDGED.score(questions, ANSWERS, reviews)
    # the pair that could not be read stays in the means as -1 -1
    assert [*scored.scores] == [
        "all",
        "llava_bench_complex",
        "llava_bench_conv",
        "llava_bench_detail",
        "reference_x10",
        "candidate_x10",
    ]
    assert scored.scores["all"].value == pytest.approx(10 / 12)
    assert scored.scores["llava_bench_conv"].value == pytest.approx(6 / 8)
    assert scored.scores["reference_x10"].value == pytest.approx(4.0)
    assert scored.scores["reference_x10"].scale == 10
    assert scored.notes["official"] == [
        {
            "all": [83.3, 40.0, 33.3],
            "llava_bench_complex": [100.0, 50.0, 50.0],
            "llava_bench_conv": [75.0, 80.0, 60.0],
            "llava_bench_detail": [100.0, -10.0, -10.0],
        }
    ]
    assert scored.unparsable == 1
    assert (scored.marks["0"].read, scored.marks["0"].score) == ("8 6", 0.6)
    assert (scored.marks["1"].read, scored.marks["1"].score) == (None, None)
    assert len(scored.notes["rule_sha256"]) == 3


def test_scores_are_means_over_runs(folder: Path) -> None:
    questions = load("llava_bench", folder)
    judge = ScriptedJudge(lambda request: "8 4" if request.draw else "10 8")
    reviews = JUDGED.review(questions, ANSWERS, judge, Setting(runs=2))
    scored = JUDGED.score(questions, ANSWERS, reviews)
    assert scored.scores["all"].value == pytest.approx(0.65)
    assert scored.notes["relative by run"] == pytest.approx([0.8, 0.5])
    assert scored.notes["mean and deviation over runs"] == pytest.approx([0.65, 0.15])
    assert [one["all"][0] for one in scored.notes["official"]] == [80.0, 50.0]
    assert scored.marks["0"].score == pytest.approx(0.6)


def prefers_the_first(request: Request) -> str:
    """A judge that gives two points more to what it sees first."""
    text = str(request.messages[1]["content"])
    return "10 6" if text.index("Reference") < text.index("End of Assistant 1") else "8 8"


def test_both_orders_cancel_a_preference_for_the_first(folder: Path) -> None:
    questions = load("llava_bench", folder)
    reviews = JUDGED.review(questions, ANSWERS, ScriptedJudge(prefers_the_first), Setting(swapped=True))
    assert reviews["0"] == [
        Review("scripted", "10 6", (10.0, 6.0)),
        Review("scripted", "8 8", (8.0, 8.0), swapped=True),
    ]
    scored = JUDGED.score(questions, ANSWERS, reviews)
    assert scored.scores["all"].value == pytest.approx(14 / 18)
    assert scored.scores["candidate_x10"].value == pytest.approx(7.0)
    assert scored.notes["orders"] == ["reference first", "answer first"]
    assert len(scored.notes["relative by run"]) == 1


def test_nan_and_infinity_count_as_not_read(folder: Path) -> None:
    questions = load("llava_bench", folder)
    judge = ScriptedJudge(lambda request: "nan 5" if request.id == "0" else "10 5")
    reviews = JUDGED.review(questions, ANSWERS, judge, Setting())
    assert reviews["0"][0].values == (-1.0, -1.0)
    assert JUDGED.score(questions, ANSWERS, reviews).scores["all"].value == pytest.approx(9 / 19)


def test_a_served_judge_from_answers_to_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    questions = load("llava_bench", folder)
    setting = Setting(runs=2, swapped=True)

    def behave(number: int, text: str) -> Act:
        return Act(status=500) if number % 3 == 0 else Act(text="9 9\nEqual.")

    with judge_server(behave) as server:
        judge = HttpJudge(Endpoint(server.url, "m", folder / "cache"), sleep=lambda seconds: None)
        first = JUDGED.review(questions, ANSWERS, judge, setting)
        assert set(server.judged.values()) == {2}  # one for each run: their requests differ in nothing sent
        calls = len(server.calls)
        assert JUDGED.review(questions, ANSWERS, judge, setting) == first
        assert len(server.calls) == calls
    assert JUDGED.score(questions, ANSWERS, first).scores["all"].value == pytest.approx(1.0)


def test_answers_come_back(folder: Path) -> None:
    questions = load("llava_bench", folder)
    BENCH.write(folder / "answers.jsonl", questions, ANSWERS)
    line = json.loads((folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (line["question_id"], line["prompt"], line["text"]) == (0, "What of conv?", "A hill")
    assert BENCH.read(folder / "answers.jsonl") == ANSWERS


@pytest.mark.parametrize("setting", [Setting(), Setting(runs=2), Setting(runs=2, swapped=True)])
def test_reviews_come_back(folder: Path, setting: Setting) -> None:
    questions = load("llava_bench", folder)
    judge = ScriptedJudge(lambda request: f"8 {request.draw}.5\nWell.")
    reviews = JUDGED.review(questions, ANSWERS, judge, setting)
    path = folder / "reviews"
    JUDGED.write(path, questions, reviews)
    assert JUDGED.read(path) == reviews
    assert path.is_dir() == (setting != Setting())


def test_fewer_runs_leave_no_old_ones_behind(folder: Path) -> None:
    questions = load("llava_bench", folder)
    path = folder / "reviews"
    for runs in (3, 2):
        judge = ScriptedJudge(lambda request: "8 5")
        JUDGED.write(path, questions, JUDGED.review(questions, ANSWERS, judge, Setting(runs=runs)))
    assert len(JUDGED.read(path)["0"]) == 2


def test_a_review_line_is_the_official_one(folder: Path) -> None:
    questions = load("llava_bench", folder)
    reviews = JUDGED.review(questions, ANSWERS, ScriptedJudge(prefers_the_first), Setting(swapped=True))
    JUDGED.write(folder / "reviews", questions, reviews)
    names = sorted(path.name for path in (folder / "reviews").iterdir())
    assert names == ["review01.jsonl", "review02_swapped.jsonl"]
    lines = [
        json.loads((folder / "reviews" / name).read_text(encoding="utf-8").splitlines()[1]) for name in names
    ]
    assert lines[0] == {
        "id": 2,
        "question_id": 1,
        "answer1_id": "r1",
        "answer2_id": "1",
        "category": "llava_bench_detail",
        "content": "10 6",
        "tuple": [10.0, 6.0],
        "model": "scripted",
    }
    assert (lines[1]["answer1_id"], lines[1]["answer2_id"], lines[1]["tuple"]) == ("1", "r1", [8.0, 8.0])


def test_without_a_judge_there_are_no_scores(folder: Path) -> None:
    scored = BENCH.score(load("llava_bench", folder), ANSWERS)
    assert (scored.scores, scored.unparsable) == ({}, 1)


def test_judging_needs_the_rules_and_loading_does_not(folder: Path) -> None:
    (folder / "rule.json").unlink()
    questions = load("llava_bench", folder)
    with pytest.raises(EvalError, match=r"llava_bench: judging needs rule.json in the data folder"):
        JUDGED.requests(questions, ANSWERS, Setting())


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "questions.jsonl",
            '"question_id": 1',
            '"question_id": 0',
            r"questions.jsonl: line 2: a second line for question 0",
        ),
        ("questions.jsonl", "conv", "chat", r"line 1: rule.json has no rule 'llava_bench_chat'"),
        (
            "questions.jsonl",
            '"image": "002.jpg"',
            '"image": "009.jpg"',
            r"line 2: context.jsonl has no description of 009.jpg",
        ),
        (
            "answers_gpt4.jsonl",
            '"question_id": 2',
            '"question_id": 7',
            r"line 3: answers_gpt4.jsonl has no answer to 2",
        ),
        (
            "context.jsonl",
            '"caption": "A hill.\\nA sea."',
            '"caption": 3',
            r"context.jsonl: line 1: caption is 3, not a text",
        ),
        (
            "rule.json",
            '"prompt": "Rule of conv."',
            '"text": ""',
            r"rule.json: llava_bench_conv: has no 'prompt'",
        ),
    ],
)
def test_broken_files(folder: Path, file: str, old: str, new: str, said: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(EvalError, match=said):
        load("llava_bench", folder)


def test_missing_pictures_and_empty_files(folder: Path) -> None:
    (folder / "images" / "001.jpg").unlink()
    with pytest.raises(
        EvalError, match=r"llava_bench: 1 of 2 pictures are missing \(the first is .*001.jpg\)"
    ):
        load("llava_bench", folder)
    (folder / "questions.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(EvalError, match=r"questions.jsonl: is empty"):
        load("llava_bench", folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"tuple": [8.0, 0.5]', '"tuple": [8.0]', r"line 1: tuple is not a list of two numbers"),
        ('"tuple": [8.0, 0.5]', '"pair": [8.0, 0.5]', r"line 1: has no 'score'"),
        ('"question_id": 1', '"question_id": 0', r"line 2: question '0' is reviewed twice"),
        ('"question_id": 1', '"question_id": 5', r"1 reviews belong to no question \(the first is '5'\)"),
    ],
)
def test_broken_reviews(folder: Path, old: str, new: str, said: str) -> None:
    questions = load("llava_bench", folder)
    judge = ScriptedJudge(lambda request: f"8 {request.draw}.5")
    path = folder / "reviews.jsonl"
    JUDGED.write(path, questions, JUDGED.review(questions, ANSWERS, judge, Setting()))
    edit(path, old, new)
    with pytest.raises(EvalError, match=said):
        JUDGED.score(questions, ANSWERS, JUDGED.read(path))


def test_runs_that_do_not_fit_together(folder: Path) -> None:
    questions = load("llava_bench", folder)
    judge = ScriptedJudge(lambda request: "8 5")
    path = folder / "reviews"
    JUDGED.write(path, questions, JUDGED.review(questions, ANSWERS, judge, Setting(runs=2)))
    edit(path / "review02.jsonl", '"question_id": 1', '"question_id": 9')
    with pytest.raises(EvalError, match=r"question '9' is not in review01.jsonl"):
        JUDGED.read(path)
    path.joinpath("none").mkdir()
    with pytest.raises(EvalError, match=r"no review files \(\*.jsonl\) in this folder"):
        JUDGED.read(path / "none")


READINGS = [
    # reply, LLaVA, Wilder, the present lmms-eval
    ("8 7\nwhy", (8, 7), (8, 7), (8, 7)),
    ("8,7", (8, 7), (8, 7), (8, 7)),
    ("8, 7", None, None, (8, 7)),
    (" 8 7 ", None, (8, 7), (8, 7)),
    ("8 7,", None, None, (8, 7)),
    ("\n8 7", None, None, (8, 7)),
    ("8 7\r\nwhy", (8, 7), (8, 7), (8, 7)),
    ("8. .7", (8, 0.7), (8, 0.7), (8, 7)),
    ("1_0 5", (10, 5), (10, 5), (1, 0)),
    ("8-7", None, None, (8, -7)),
    ("", None, None, None),
]


@pytest.mark.parametrize(("reply", "llava", "wilder", "present"), READINGS)
def test_the_three_readers(
    reply: str,
    llava: tuple[float, float] | None,
    wilder: tuple[float, float] | None,
    present: tuple[float, float] | None,
) -> None:
    for read, expected in ((read_llava, llava), (read_wilder, wilder), (read_first_two, present)):
        assert read(reply) == (expected or (-1, -1)), read
        assert read(reply).read == (expected is not None)


def test_means_are_rounded_before_they_are_divided() -> None:
    pairs = [Pair(1, 2), Pair(1, 2), Pair(0, 2)]
    assert summarise(pairs) == (round(2 / 0.667 * 100, 1), 6.7, 20.0)
    assert summarise(pairs).relative != round(2 / (2 / 3) * 100, 1)
    assert summarise([Pair(0, 2)]).relative is None


def test_grades_that_are_not_read_are_told_of(folder: Path) -> None:
    questions = load("llava_bench", folder)
    reviews = JUDGED.review(questions, ANSWERS, ScriptedJudge(by_question), Setting())
    assert JUDGED.score(questions, ANSWERS, reviews).notes["warning"] == (
        "1 of 3 reviews hold no grades and count as -1, as in the official tables"
    )
    reviews = JUDGED.review(questions, ANSWERS, ScriptedJudge(lambda request: "Good."), Setting())
    scored = JUDGED.score(questions, ANSWERS, reviews)
    assert scored.scores == {} and scored.unparsable == 3  # officially -1 of -1, which is 100 %
    assert scored.notes["judged"] == "none of 3 reviews holds grades that can be read; try another judge"


def test_answers_and_reviews_of_another_benchmark(folder: Path) -> None:
    questions, judge = load("llava_bench", folder), ScriptedJudge(by_question)
    for use in (
        lambda: BENCH.score(questions, {"v1_1": "x"}),
        lambda: JUDGED.review(questions, {"v1_1": "x"}, judge, Setting()),
    ):
        with pytest.raises(EvalError, match="holds answers to another benchmark"):
            use()
    assert judge.asked == []
    path = folder / "review.jsonl"
    line = {"question_id": 0, "category": "generic", "tuple": [8, 7], "content": "8 7"}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(EvalError, match="line 1: holds answers to another benchmark than llava_bench"):
        JUDGED.read(path)
    line["category"] = "llava_bench_conv"
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(EvalError, match="line 1: holds answers to another benchmark than vicuna80"):
        judged_part("vicuna80").read(path)
