from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.check import CheckResult, LengthRule, check
from data.errors import DataError
from data.pictures import slot_counter
from data.template import make_template
from models.tokenizer import Tokenizer

Edit = Callable[[str, Callable[[Any], None]], None]


def lines(result: CheckResult) -> list[str]:
    return [f"{fault.where}: {fault.what}" for fault in result.faults]


def test_a_clean_set_has_no_faults_and_is_counted(root: Path) -> None:
    result = check(root)
    assert result.faults == ()
    assert list(result.splits) == ["train", "val", "test", "trainval"]
    train = result.splits["train"]
    assert (train.problems, train.pictures, dict(train.options)) == (3, 1, {2: 2, 3: 1})


def test_all_faults_come_at_once(root: Path, edit: Edit) -> None:
    edit("problems.json", lambda rows: rows["3"].update(answer=7, hint=None))
    edit("pid_splits.json", lambda splits: splits["val"].extend(["1", "99", "99"]))
    (root / "images/val/4/image.png").unlink()
    (root / "images/test/5/image.png").write_text("no picture")
    found = lines(check(root))
    assert [line.split(";")[0] for line in found] == [
        "problem 3: hint is null, not a text",
        "problem 3: answer 7 is out of range for 2 choices (0 to 1)",
        "split val: id 99 has no problem in problems.json",
        "split val: id 99 has no problem in problems.json",
        "split val: id 1 is also in split train",
        "split val: id 99 is listed 2 times",
        "split val: problem 1 says its split is train",
        f"problem 4: there is no picture {root}/images/val/4/image.png",
        f"problem 5: {root}/images/test/5/image.png is not a picture in a known format",
    ]


def test_a_missing_folder_of_pictures_is_one_fault(root: Path) -> None:
    (root / "images").rename(root / "pictures")
    found = lines(check(root))
    assert len(found) == 3
    assert found[0].endswith("images/train, 1 problems have their picture there")


def test_unreadable_files_are_faults(root: Path) -> None:
    (root / "problems.json").write_text("{")
    (root / "captions.json").write_text("[]")
    found = lines(check(root))
    assert ["captions.json holds a list" in found[0], "problems.json is not JSON" in found[1]] == [True, True]
    assert len(found) == 2


def test_lengths_are_measured_and_held_against_the_limit(root: Path, tokenizer: Tokenizer) -> None:
    template = make_template("lavin", tokenizer, slot_counter(6))
    assert len(check(root, LengthRule(template, "QCM-ALE")).splits["trainval"].lengths) == 4
    found = lines(check(root, LengthRule(template, "QCM-ALE", max_tokens=10)))
    assert found[0] == "split train: 3 of 3 problems exceed 10 tokens in QCM-ALE (2, 1, 3)"
    assert len(found) == 4


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is no folder .*nowhere; name the one that holds problems.json"
    ):
        check(tmp_path / "nowhere")
