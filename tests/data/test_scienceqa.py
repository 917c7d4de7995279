from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.scienceqa import digest, load_captions, load_problems, load_split, row_faults

Edit = Callable[[str, Callable[[Any], None]], None]


def test_fields_and_caption_arrive(root: Path) -> None:
    problem = load_problems(root)["1"]
    assert problem.question == "Which is colder?"
    assert problem.choices == ("ice", "steam")
    assert (problem.answer, problem.grade, problem.topic, problem.caption) == (0, "grade2", None, "some ice")


def test_splits_keep_their_order(root: Path) -> None:
    assert [problem.pid for problem in load_split(root, "trainval")] == ["2", "1", "3", "4"]


def test_the_picture_lies_in_the_folder_of_the_problems_own_split(root: Path) -> None:
    paths = [problem.picture(root) for problem in load_split(root, "trainval")]
    assert paths == [None, root / "images/train/1/image.png", None, root / "images/val/4/image.png"]


def test_unknown_split_lists_the_known_ones(root: Path) -> None:
    with pytest.raises(DataError, match="no split 'dev'; it has train, val, test, trainval"):
        load_split(root, "dev")


def test_an_id_without_problem_is_named(root: Path, edit: Edit) -> None:
    edit("pid_splits.json", lambda splits: splits["val"].append("99"))
    with pytest.raises(DataError, match=r"1 ids of split 'val' are not in problems.json \(99\)"):
        load_split(root, "val")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answer", 2, r"answer 2 is out of range for 2 choices \(0 to 1\)"),
        ("answer", -1, r"answer -1 is out of range for 2 choices \(0 to 1\)"),
        ("answer", "A", "answer is a text, not an index"),
        ("answer", True, "answer is a truth value, not an index"),
        ("choices", ["ice"], "has 1 choices; 2 to 26 are possible"),
        ("choices", "ice", "choices is not a list of texts"),
        ("choices", ["ice", 3], "choices is not a list of texts"),
        ("question", " ", "question is empty"),
        ("hint", None, "hint is null, not a text"),
        ("lecture", 5, "lecture is the number 5, not a text"),
        ("topic", ["x"], "topic is a list, not a text or null"),
        ("image", "../x.png", "image '../x.png' is not a plain file name"),
        ("split", "..", r"split '\.\.' is not a plain file name"),
    ],
)
def test_a_faulty_row_names_problem_and_fault(
    root: Path, edit: Edit, field: str, value: object, message: str
) -> None:
    edit("problems.json", lambda rows: rows["3"].update({field: value}))
    with pytest.raises(DataError, match=f"problem 3 {message}; correct it"):
        load_problems(root)


def test_a_missing_field_is_named(root: Path, edit: Edit) -> None:
    edit("problems.json", lambda rows: rows["3"].pop("grade"))
    with pytest.raises(DataError, match="problem 3 has no field 'grade'"):
        load_problems(root)


def test_a_row_shows_all_its_faults(row: dict[str, Any]) -> None:
    assert row_faults("1", row) == []
    assert row_faults("1", []) == ["is a list, not an object"]
    assert len(row_faults("../1", {**row, "hint": 3, "answer": 9})) == 3


def test_files_that_are_missing_or_broken_are_named(root: Path) -> None:
    (root / "problems.json").write_text("{")
    with pytest.raises(DataError, match=r"problems.json is not JSON in UTF-8"):
        load_problems(root)
    (root / "problems.json").write_bytes(b'{"1": "\xff"}')
    with pytest.raises(DataError, match=r"problems.json is not JSON in UTF-8"):
        load_problems(root)
    (root / "problems.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list, not an object"):
        load_problems(root)
    (root / "problems.json").unlink()
    with pytest.raises(DataError, match=r"there is no file .*problems.json"):
        load_problems(root)
    (root / "problems.json").mkdir()
    with pytest.raises(DataError, match=r"problems.json cannot be read"):
        load_problems(root)


def test_splits_must_be_lists_of_texts(root: Path, edit: Edit) -> None:
    edit("pid_splits.json", lambda splits: splits.update(val=[4]))
    with pytest.raises(DataError, match="split 'val' is not a list of ids in quotes"):
        load_split(root, "train")


def test_captions_are_optional_but_strict(root: Path) -> None:
    (root / "captions.json").write_text(json.dumps({"captions": {"1": 5}}))
    with pytest.raises(DataError, match="'captions' is not an object of id to text"):
        load_captions(root)
    (root / "captions.json").unlink()
    assert load_problems(root)["1"].caption is None


def test_digest_is_the_same_in_any_order(root: Path, edit: Edit) -> None:
    before = digest(root, "train")
    edit("pid_splits.json", lambda splits: splits["train"].reverse())
    assert digest(root, "train") == before
    assert digest(root, "val") != before


@pytest.mark.parametrize("field", ["question", "solution", "hint"])
def test_digest_sees_text(root: Path, edit: Edit, field: str) -> None:
    before = digest(root, "train")
    edit("problems.json", lambda rows: rows["2"].update({field: "other"}))
    assert digest(root, "train") != before


def test_digest_sees_picture_sizes_of_its_split(root: Path) -> None:
    train, val = digest(root, "train"), digest(root, "val")
    with (root / "images/train/1/image.png").open("ab") as file:
        file.write(b"more")
    assert digest(root, "train") != train
    assert digest(root, "val") == val
    (root / "images/train/1/image.png").unlink()
    with pytest.raises(DataError, match=r"problem 1: no picture .*image.png"):
        digest(root, "train")
