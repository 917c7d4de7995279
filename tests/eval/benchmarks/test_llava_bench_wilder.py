"""LLaVA-Bench Wilder: pictures out of Parquet, the message with its picture, scores, broken files."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from eval.benchmark import find
from eval.errors import EvalError
from eval.judged import Setting
from tests.eval.benchmarks.judged_files import ScriptedJudge, judged_part, load, png, wilder

BENCH = find("llava_bench_wilder")
JUDGED = judged_part("llava_bench_wilder")
ANSWERS = {"0": "Red.", "1": "No."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wilder(tmp_path)
    return tmp_path


def test_questions_and_their_pictures(folder: Path) -> None:
    first, second = load("llava_bench_wilder", folder)
    assert (first.id, first.prompt, second.prompt) == ("0", "Red?", "Blue?")
    assert first.images[0].is_relative_to(folder / "unpacked")
    assert first.images[0].read_bytes() == png((200, 10, 10))


def test_what_the_judge_is_asked(folder: Path) -> None:
    judge = ScriptedJudge(lambda request: "10 8\nWell.")
    JUDGED.review(load("llava_bench_wilder", folder), ANSWERS, judge, Setting())
    (message,) = judge.asked[0].sent()
    text, shown = message["content"]
    assert text["text"] == (
        "[Question]\nRed?\n\n[Assistant 1]\nIt is red.\n\n[End of Assistant 1]\n\n[Assistant 2]\nRed.\n\n"
        "[End of Assistant 2]\n\n[System]\nRule.\nOf the picture.\n\n"
    )
    head, _, content = shown["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")
    assert (judge.asked[0].temperature, judge.asked[0].max_tokens) == (0.0, 1024)


def test_scores(folder: Path) -> None:
    questions = load("llava_bench_wilder", folder)
    judge = ScriptedJudge(lambda request: " 10 8 \nWell." if request.id == "0" else "I cannot say.")
    scored = JUDGED.score(questions, ANSWERS, JUDGED.review(questions, ANSWERS, judge, Setting()))
    assert [*scored.scores] == ["gpt_eval_llava_all", "reference_x10", "candidate_x10"]
    assert scored.scores["gpt_eval_llava_all"].value == pytest.approx(7 / 9)
    assert scored.notes["official"] == [{"all": [77.8, 45.0, 35.0]}]
    assert scored.unparsable == 1


def test_answers_and_reviews_come_back(folder: Path) -> None:
    questions = load("llava_bench_wilder", folder)
    BENCH.write(folder / "answers.jsonl", questions, ANSWERS)
    assert BENCH.read(folder / "answers.jsonl") == ANSWERS
    reviews = JUDGED.review(questions, ANSWERS, ScriptedJudge(lambda request: "10 8"), Setting())
    JUDGED.write(folder / "reviews.jsonl", questions, reviews)
    assert JUDGED.read(folder / "reviews.jsonl") == reviews


def test_the_rule_is_needed_for_judging_alone(folder: Path) -> None:
    (folder / "rule.txt").unlink()
    with pytest.raises(EvalError, match=r"judging needs rule.txt in the data folder"):
        JUDGED.requests(load("llava_bench_wilder", folder), ANSWERS, Setting())


def test_other_splits(folder: Path) -> None:
    (folder / "small").rename(folder / "Medium")
    assert len(load("llava_bench_wilder", folder, "large")) == 2
    with pytest.raises(EvalError, match=r"small: no test-\*.parquet in it"):
        load("llava_bench_wilder", folder)
    with pytest.raises(EvalError, match=r"there is no split 'full'; choose one of small, large"):
        load("llava_bench_wilder", folder, "full")


def test_broken_files(folder: Path) -> None:
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    (path,) = (folder / "small").iterdir()
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row, said in (
        ({**rows[1], "Question": None}, "row 2: Question is None, not a text"),
        ({**rows[1], "image": None}, "row 2: has no picture"),
    ):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows[0], row]), path)
        with pytest.raises(EvalError, match=said):
            load("llava_bench_wilder", folder)
    path.write_bytes(b"PAR1")
    with pytest.raises(EvalError, match="row 1 cannot be read as Parquet"):
        load("llava_bench_wilder", folder)
