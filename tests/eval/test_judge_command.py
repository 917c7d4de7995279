"""`python -m eval judge`: an endpoint, recorded replies, and our own model as the judge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.benchmark import find
from tests.eval.benchmarks.judged_files import llava_bench
from tests.eval.judge_server import Act, judge_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small LLaVA-Bench."""
    llava_bench(tmp_path)
    return tmp_path


@pytest.fixture
def answers(folder: Path) -> Path:
    """Answers to it in the official format."""
    questions = find("llava_bench").load(folder, find("llava_bench").splits[0], folder / "unpacked")
    path = folder / "answers.jsonl"
    find("llava_bench").write(path, questions, {question.id: "An answer." for question in questions})
    return path


def words(answers: Path, *rest: str) -> list[str]:
    fixed = ["judge", "llava_bench", str(answers), "--data", str(answers.parent)]
    return [*fixed, "--out", str(answers.parent / "reviews.jsonl"), *rest]


def test_an_endpoint_is_asked_once_and_the_reviews_score_alone(
    answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, scores = answers.parent / "cache", answers.parent / "scores.json"
    with judge_server(lambda number, text: Act("8 6\nWell.")) as server:
        rest = ["--url", server.url, "--cache", str(cache), "--prices", "10", "30"]
        assert main(words(answers, *rest, "--dry-run")) == 0
        told = capsys.readouterr().out
        assert re.search(r"3 calls to the judge \(0 replies are known already\).* at most about", told)
        assert server.calls == []
        assert main(words(answers, *rest, "--json", str(scores))) == 0
        printed = capsys.readouterr()
        assert "3 calls to the judge" in printed.err
        assert "75.00" in printed.out
        assert len(server.calls) == 3
        assert main(words(answers, *rest)) == 0
        assert len(server.calls) == 3, "everything was known"
        assert server.calls[0]["model"] == "gpt-4-0314"
    assert next(iter(json.loads(scores.read_text())["scores"].values()))["value"] == 0.75
    reviews = answers.parent / "reviews.jsonl"
    capsys.readouterr()
    assert main(["score", "llava_bench", str(reviews), "--data", str(answers.parent)]) == 0
    table = printed.out.partition("wrote")[0]
    assert capsys.readouterr().out == table
    lines = reviews.read_text().splitlines()
    reviews.write_text("\n".join([lines[0][:-9], *lines[1:]]))
    assert main(["score", "llava_bench", str(reviews), "--data", str(answers.parent)]) == 2
    assert "reviews.jsonl: line 1: broken JSON" in capsys.readouterr().err


def test_both_orders_and_several_runs_go_into_a_folder(
    answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(lambda number, text: Act("8 6\nWell.")) as server:
        rest = ["--url", server.url, "--cache", str(answers.parent / "cache"), "--runs", "2", "--swapped"]
        for _ in range(2):
            assert main(words(answers, *rest)) == 0
        assert len(server.calls) == 12
    assert (answers.parent / "reviews.jsonl").is_dir()
    assert (
        main(["score", "llava_bench", str(answers.parent / "reviews.jsonl"), "--data", str(answers.parent)])
        == 0
    )


def test_recorded_replies(answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = answers.parent / "replies.jsonl"
    recorded.write_text("".join(json.dumps({"id": str(i), "reply": "10 5\nNo."}) + "\n" for i in range(3)))
    assert main(words(answers, "--recorded", str(recorded))) == 0
    assert "50.00" in capsys.readouterr().out


def test_a_model_of_ours(answers: Path, adapters: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(answers, "--adapter", str(adapters[0]))) == 0
    assert "wrote" in capsys.readouterr().out
    assert len((answers.parent / "reviews.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "rest", "message"),
    [
        ("pope", [], "pope needs no judge; `python -m eval score pope` scores its answers"),
        ("mmvet", ["--swapped"], "--swapped: the judge of mmvet sees answers in one order alone"),
        ("llava_bench_wilder", ["--swapped"], "--swapped: the judge of llava_bench_wilder sees"),
        ("llava_bench", ["--runs", "0"], "--runs is 0; it must be at least 1"),
        ("llava_bench", ["--url", "judge"], "'judge': not an address of a judge"),
    ],
)
def test_what_is_refused(
    answers: Path, name: str, rest: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(answers, *([] if "--url" in rest else ["--url", "http://127.0.0.1:9"]), *rest)
    assert main([asked[0], name, *asked[2:]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
