from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.prompts import render
from data.sample import Sample
from data.scienceqa import load_split
from data.source import ProblemSource, RowSource, SourceSettings, open_source

ROW = {"id": "r", "instruction": "Q", "output": "A"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [ROW, {**ROW, "output": ""}, {**ROW, "id": "s"}]))
    return path


def test_a_file_gives_samples_and_names_the_row_that_is_wrong(file: Path) -> None:
    source = open_source(SourceSettings(file))
    assert (len(source), source[0], source[-1]) == (3, Sample("r", "Q", "A"), Sample("s", "Q", "A"))
    message = r"rows.jsonl, row 2 answer 1 is empty; .* \(python -m data check .*rows.jsonl lists every fault"
    with pytest.raises(DataError, match=message):
        source[1]


def test_a_broken_row_is_told_once(file: Path) -> None:
    file.write_text(json.dumps(ROW) + "\n{x}\n")
    with pytest.raises(DataError, match=r"^\S+rows.jsonl, row 2 is not JSON in UTF-8 .*; correct it"):
        open_source(SourceSettings(file))[1]


def test_pictures_lie_beside_the_file_or_where_the_settings_say(tmp_path: Path) -> None:
    row = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    }
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    settings = SourceSettings(tmp_path / "rows.json")
    assert open_source(settings)[0].images == (tmp_path / "a.png",)
    assert open_source(replace(settings, images=Path("else")))[0].images == (Path("else/a.png"),)


def test_a_scienceqa_folder_is_asked_as_in_training(root: Path) -> None:
    source = open_source(SourceSettings(root, split="val", format="CQM-A", captions=True))
    (problem,) = load_split(root, "val")
    assert source[0] == render(problem, "CQM-A", problem.picture(root), captions=True)
    assert isinstance(source, ProblemSource) and list(source) == [source[0]]


def test_the_digest_follows_content_and_settings(file: Path, root: Path) -> None:
    one = SourceSettings(file)
    digests = {open_source(each).digest() for each in (one, replace(one, take=2), SourceSettings(root))}
    digests.add(open_source(SourceSettings(root, format="CQM-A")).digest())
    assert len(digests) == 4 and open_source(one).digest() in digests
    file.write_text(json.dumps(ROW))
    assert open_source(one).digest() not in digests


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "parquet"},
            "kind 'parquet' is unknown; choose one of conversations, messages, alpaca, scien",
        ),
        ({"take": 0}, "take of the source .* is 0; it must be at least 1"),
        ({"frames": 0}, "frames of the source .* is 0"),
        ({"weight": 0.0}, "weight of the source .* is 0.0; it must be above 0"),
        ({"weight": float("nan")}, "weight of the source .* is nan"),
        ({"format": "QCX"}, "there is no prompt format 'QCX'"),
    ],
)
def test_wrong_settings_are_refused(file: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SourceSettings(file, **settings)


def test_what_is_no_source_is_refused(file: Path, root: Path) -> None:
    with pytest.raises(DataError, match="is a folder, and kind alpaca is of files; name the file"):
        open_source(SourceSettings(root, kind="alpaca"))
    (root / "pid_splits.json").write_text('{"train": []}')
    with pytest.raises(DataError, match="split 'train' of .* is empty; choose another"):
        open_source(SourceSettings(root))
    file.write_text('{"text": "x"}')
    with pytest.raises(DataError, match="row 1 has none of the fields conversations, messages, instruction"):
        RowSource(SourceSettings(file))
