"""The generated data set: same bytes for a seed, honest splits, right answers, careful with folders."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.errors import DataError
from data.mini.families import BY_NAME, FAMILIES
from data.mini.generate import SMALLEST, generate

SIZE = 300


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "set"
    generate(folder, SIZE)
    return folder


def load(root: Path, name: str) -> Any:
    return json.loads((root / f"{name}.json").read_text(encoding="utf-8"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", SIZE)
    assert contents(tmp_path / "again") == contents(root)


def test_another_seed_gives_other_problems(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", SIZE, seed=1)
    assert load(tmp_path / "other", "problems") != load(root, "problems")


def test_splits_have_the_stated_shares_and_every_row_its_split(root: Path) -> None:
    rows, splits = load(root, "problems"), load(root, "pid_splits")
    assert {name: len(pids) for name, pids in splits.items()} == {
        "train": 200, "val": 40, "test": 60, "trainval": 240, "minitrain": 20, "minival": 4, "minitest": 6,
    }  # fmt: skip
    assert sorted(splits["train"] + splits["val"] + splits["test"], key=int) == list(rows)
    for split in ("train", "val", "test"):
        assert {rows[pid]["split"] for pid in splits[split]} == {split}
        assert set(splits[f"mini{split}"]) <= set(splits[split])


def test_half_of_every_split_has_a_picture_in_equal_shares_of_families(root: Path) -> None:
    rows, splits, facts = load(root, "problems"), load(root, "pid_splits"), load(root, "facts")
    for split in ("train", "val", "test"):
        pictures = [pid for pid in splits[split] if rows[pid]["image"]]
        assert len(pictures) == len(splits[split]) // 2
        shares = Counter(facts[pid]["family"] for pid in pictures)
        assert set(shares) == set(BY_NAME)
        assert max(shares.values()) - min(shares.values()) <= 1
        for pid in pictures:
            with Image.open(root / "images" / split / pid / "image.png") as picture:
                assert picture.size == (144, 144)


def test_pictures_captions_and_facts_belong_to_the_same_rows(root: Path) -> None:
    rows = load(root, "problems")
    pictured = {pid for pid, row in rows.items() if row["image"]}
    facts = load(root, "facts")
    captions = load(root, "captions")["captions"]
    assert {path.parent.name for path in root.rglob("image.png")} == pictured == set(facts) == set(captions)
    for pid in pictured:
        assert all(value in captions[pid] for value in facts[pid]["facts"].values())


def test_evaluation_facts_never_occur_in_training(root: Path) -> None:
    splits, facts = load(root, "pid_splits"), load(root, "facts")
    shown = {
        split: {json.dumps(facts[pid], sort_keys=True) for pid in splits[split] if pid in facts}
        for split in ("train", "val", "test")
    }
    assert not shown["train"] & (shown["val"] | shown["test"])
    for pid, fact in facts.items():
        assert BY_NAME[fact["family"]].reserved(fact["facts"]) == (pid not in splits["train"])


def test_no_problem_occurs_twice(root: Path) -> None:
    facts = load(root, "facts")
    keys = Counter(
        (row["question"], frozenset(row["choices"]), row["hint"], json.dumps(facts.get(pid)))
        for pid, row in load(root, "problems").items()
    )
    assert max(keys.values()) == 1


def test_answers_follow_from_the_facts(root: Path) -> None:
    rows = load(root, "problems")
    for pid, fact in load(root, "facts").items():
        row, family = rows[pid], BY_NAME[fact["family"]]
        (ask,) = [ask for ask in family.asks if row["question"] in ask.wordings]
        right = ask.answer(fact["facts"][ask.attribute])
        assert [option == right for option in row["choices"]].index(True) == row["answer"]
        assert row["choices"].count(right) == 1


def test_the_hint_holds_the_answer_of_a_hint_problem(root: Path) -> None:
    """The value that decides the answer is stated, and no value of a wrong option is."""
    checked = 0
    wordings = {
        wording: (family, ask) for family in FAMILIES for ask in family.asks for wording in ask.wordings
    }
    for row in load(root, "problems").values():
        if row["image"] or row["question"] not in wordings:
            continue
        family, ask = wordings[row["question"]]
        stated = {
            ask.answer(value)
            for value in family.attributes[ask.attribute]
            for sentence in family.sentences[ask.attribute]
            if sentence.format(value) in row["hint"]
        }
        assert stated == {row["choices"][row["answer"]]}
        checked += 1
    assert checked == SIZE // 4


def test_generating_again_into_the_same_folder_changes_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate(root, SIZE)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", SMALLEST)
    assert len(load(tmp_path / "empty", "problems")) == SMALLEST
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_folder_with_another_size_or_seed_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"'problems': 300.*'problems': 301"):
        generate(root, SIZE + 1)
    with pytest.raises(DataError, match="'seed': 7"):
        generate(root, SIZE, seed=7)


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds no mini data set"):
        generate(tmp_path, SMALLEST)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="is a file"):
        generate(tmp_path / "notes.txt", SMALLEST)


def test_an_unreadable_stamp_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generated.json").write_text("{")
    with pytest.raises(DataError, match="is not readable as JSON"):
        generate(tmp_path, SMALLEST)


def test_too_few_problems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"179 problems are too few .* 180 or more"):
        generate(tmp_path / "small", SMALLEST - 1)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("data.mini.generate.draw", fail)
    with pytest.raises(DataError, match=r"cannot be written \(disk full\): make room"):
        generate(tmp_path / "set", SMALLEST)
    assert not list(tmp_path.iterdir())
