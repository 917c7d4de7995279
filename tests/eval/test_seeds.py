"""Several seeds in one table."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.results import Result, write_result
from eval.scores import Score, Scores

SETTINGS = {"benchmark": "pope", "split": "coco", "decode": "generate", "blind": False}


def result(right: int) -> Result:
    scores = {"accuracy": Score.of(right, 10), "MME": Score(100.0 * right, 0.0, 2000.0, 10, 1.0)}
    return Result(Scores(scores, 0), {}, SETTINGS, {}, {"data": "d"})


def test_mean_and_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for right in (6, 8):
        write_result(tmp_path / f"{right}.json", result(right))
    assert main(["seeds", str(tmp_path / "6.json"), str(tmp_path / "8.json")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["mean", "sd", "low", "high", "seeds"]
    assert rows[1] == ["accuracy", "70.00", "14.14", "-57.06", "197.06", "2"]
    assert rows[2][:3] == ["MME", "700.00", "141.42"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(result(8), settings={**SETTINGS, "split": "val"}),
            "split is 'val', in .*a.json it is 'coco'",
        ),
        (replace(result(8), digests={"data": "e"}), "b.json: was made on other questions than"),
        (replace(result(8), scores=Scores({}, 0)), "b.json: has other scores than"),
        (replace(result(8), scores=Scores({}, 0)), "has other scores"),
        (None, "one result says nothing of the deviation"),
    ],
)
def test_what_does_not_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: Result | None, message: str
) -> None:
    files = [tmp_path / "a.json"]
    write_result(files[0], result(6))
    if other is not None:
        files.append(tmp_path / "b.json")
        write_result(files[1], other)
    assert main(["seeds", *map(str, files)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_results_without_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_result(tmp_path / name, replace(result(8), scores=Scores({}, 0)))
    assert main(["seeds", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "a: holds no scores; name results that are scored" in capsys.readouterr().err
