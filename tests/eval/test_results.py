"""The result file: what is written is read again, and a broken or foreign file is refused in one line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from eval.errors import EvalError
from eval.results import (
    FORMAT,
    Prediction,
    Result,
    check_writable,
    file_digest,
    read_predictions,
    read_result,
    versions,
    write_result,
    write_text,
)
from eval.scienceqa import CATEGORIES
from eval.scores import Score, Scores


def example() -> Result:
    categories = {name: Score.of(place, 10) for place, name in enumerate(CATEGORIES)}
    categories["LAN"] = Score.of(0, 0)
    predictions = {
        "7": Prediction(1, 1, likelihoods=(-2.5, -0.1)),
        "12": Prediction(None, 0, text="The answer is Ä."),
    }
    settings = {"split": "test", "blind": False, "format": None}
    return Result(Scores(categories, 1), predictions, settings, {"python": "3.12"}, {"data": "ab"})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_result(path, example())
    assert read_result(path) == example()
    assert read_predictions(path) == example().predictions
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_the_file_holds_what_is_promised(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, example())
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["scores"]["SOC"] == {"value": 0.1, **_interval(1, 10), "count": 10}
    assert content["scores"]["LAN"] == {"value": None, "low": None, "high": None, "count": 0}
    assert content["unparsable"] == 1
    assert content["predictions"]["7"] == {"option": 1, "gold": 1, "text": None, "likelihoods": [-2.5, -0.1]}
    assert {"settings", "versions", "digests"} <= content.keys()


def _interval(right: int, count: int) -> dict[str, Any]:
    found = Score.of(right, count)
    return {"low": found.low, "high": found.high}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, example())
    before = path.read_bytes()
    broken = example()
    broken.settings["text"] = "\ud800"  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        write_result(path, broken)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_write_text_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "result.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EvalError, match="is a folder; name a file to write"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match=r"cannot be written: .*file is a file; name another"):
        check_writable(tmp_path / "file" / "result.json")
    with pytest.raises(EvalError, match="cannot be written: Is a directory"):
        write_text(tmp_path, "text")
    with pytest.raises(EvalError, match="cannot be written: File exists"):
        write_text(tmp_path / "file" / "result.json", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_bare_and_official_prediction_files(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text('{"4": 1, "5": -1}')
    assert read_predictions(path) == {"4": Prediction(1), "5": Prediction(None)}
    path.write_text(
        '{"acc": 50.0, "correct": 1, "count": 2, "results": {"4": 1, "5": 0}, "outputs": {"4": "B"}}'
    )
    assert read_predictions(path) == {"4": Prediction(1, text="B"), "5": Prediction(0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "broken JSON at line 1, column 1"),
        ('{"4": 1,\n "5"', "broken JSON at line 2, column 5"),
        ("[1, 2]", r"holds \[1, 2\] where an object was expected"),
        ("{}", "no predictions in it"),
        ('{"results": {}}', "no predictions in it"),
        ('{"4": "B"}', "neither a result .* nor question id -> index of the option .* '4' has 'B'"),
        ('{"4": true}', "'4' has True"),
        ('{"4": 1.5}', "'4' has 1.5"),
        ('{"4": -2}', "'4' has -2"),
        ('{"epochs": 3, "lr": 0.1}', "'lr' has 0.1"),
    ],
)
def test_broken_and_foreign_prediction_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(EvalError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"missing.json: no such file"):
        read_predictions(tmp_path / "missing.json")
    with pytest.raises(EvalError, match="cannot be read: Is a directory"):
        read_predictions(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02\xff")
    with pytest.raises(EvalError, match="not text in UTF-8"):
        read_predictions(tmp_path / "weights.bin")


def test_a_prediction_file_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text('{"4": 1}')
    with pytest.raises(EvalError, match=f"no format '{FORMAT}' in it"):
        read_result(path)


def test_a_result_without_a_part(tmp_path: Path) -> None:
    path = _damaged(tmp_path, lambda content: content.pop("digests"))
    with pytest.raises(EvalError, match="a result file without digests; evaluate again"):
        read_result(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(scores=[1]),
        lambda content: content["scores"]["Avg"].pop("low"),
        lambda content: content.update(predictions=[1]),
        lambda content: content.update(unparsable="many"),
        lambda content: content["predictions"]["7"].update(option="B"),
        lambda content: content["predictions"]["7"].update(option=-1),
        lambda content: content["predictions"]["7"].update(gold=None),
        lambda content: content["predictions"]["7"].update(likelihoods=["high"]),
        lambda content: content["predictions"]["7"].update(likelihoods=[math.inf]),
        lambda content: content.update(settings=3),
    ],
)
def test_damaged_results(tmp_path: Path, damage: Any) -> None:
    path = _damaged(tmp_path, damage)
    for read in (read_result, read_predictions):
        with pytest.raises(EvalError, match=r"result\.json: a damaged result file \(.*\); evaluate again"):
            read(path)


def _damaged(folder: Path, damage: Any) -> Path:
    path = folder / "result.json"
    write_result(path, example())
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    return path


def test_versions_and_digest(tmp_path: Path) -> None:
    assert versions().keys() == {"python", "torch", "open_clip", "safetensors", "project"}
    assert re.fullmatch(r"\d+\.\d+.*", versions()["project"])
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a").startswith("ba7816bf8f01cfea")
