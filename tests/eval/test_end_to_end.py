"""Every benchmark from its official files to a result: asked of the embedded base, kept, scored again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.benchmark import find
from eval.results import read_result
from eval.task import texts_of

SETS = (
    "ai2d", "coco_captions", "gqa", "llava_bench", "llava_bench_wilder", "mathvista", "mmbench", "mme",
    "mmlu", "mmmu", "mmvet", "pope", "textvqa", "vicuna80", "vqav2",
)  # fmt: skip
SPLITS = {"coco_captions": "val2014"}  # instead of the first


def make_set(name: str, folder: Path) -> Path:
    """The small set in official layout that the tests of the benchmark make."""
    folder.mkdir()
    module = importlib.import_module(f"tests.eval.benchmarks.test_{name}")
    made: Path = module.folder.__wrapped__(folder)
    return made


@pytest.mark.parametrize("name", SETS)
def test_asked_scored_and_scored_again(
    name: str, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_set(name, tmp_path / "set"), tmp_path / "out" / "result.json"
    split = SPLITS.get(name, find(name).splits[0])
    words = [name, "--data", str(data), "--split", split, "--adapter", str(adapters[0]), "--out", str(out)]
    assert main([*words, "--official", "--device", "cpu", "--long", "truncate", "--max-new-tokens", "6"]) == 0
    printed = capsys.readouterr().out
    benchmark, result = find(name), read_result(out)
    questions = benchmark.load(data, split, tmp_path / "unpacked")
    assert list(result.predictions) == [question.id for question in questions]
    texts = texts_of(result, questions)
    assert any(texts.values())
    again = benchmark.score(questions, texts)
    assert result.scores == again.figures
    assert result.scores.unparsable == again.unparsable
    for pid, made in result.predictions.items():
        assert made.score == again.marks[pid].score if pid in again.marks else made.score is None
    official = out.with_name(f"result-answers{benchmark.suffix}")
    assert official.exists() and str(official) in printed
    assert main(["score", name, str(out), "--data", str(data), "--split", split]) == 0
    from_result = capsys.readouterr().out
    assert main(["score", name, str(official), "--data", str(data), "--split", split]) == 0
    assert capsys.readouterr().out == from_result
    assert from_result.rstrip("\n") in printed


def test_hidden_answers_are_written_for_the_server(
    adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_set("vqav2", tmp_path / "set"), tmp_path / "result.json"
    words = ["vqav2", "--data", str(data), "--split", "test-dev", "--adapter", str(adapters[0])]
    assert main([*words, "--out", str(out), "--device", "cpu", "--max-new-tokens", "4"]) == 0
    assert "no scores: the right answers are not public" in capsys.readouterr().out
    answers = json.loads((tmp_path / "result-answers.json").read_text())
    assert {"question_id", "answer"} == set(answers[0])
