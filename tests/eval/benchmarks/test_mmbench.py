"""MMBench: its table, its prompt, the inference of options, circles and the file for the server."""

from __future__ import annotations

import sys
from pathlib import Path

import openpyxl
import pytest
from PIL import Image

from eval.benchmark import Question, find
from eval.errors import EvalError
from eval.scorers.mmbench import Rotation, first_pass, hits, report
from eval.scorers.options import infer, infer_2023
from eval.scores import Mark
from tests.eval.benchmarks.options_files import in_base64, write_tsv
from tests.eval.benchmarks.short_answer_files import write_jsonl

MMBENCH = find("mmbench")
COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
    "comment", "split",
)  # fmt: skip
ANIMALS = {"A": "teddy bear", "B": "rabbit", "C": "cat", "D": "dog"}


def _row(index: int, options: str, answer: str, image: str, **more: str) -> dict[str, str]:
    texts = dict(zip("ABCD", options.split("|"), strict=False))
    return {
        **dict.fromkeys(COLUMNS, ""),
        "index": str(index),
        "answer": answer,
        "image": image,
        **texts,
        **more,
    }


def _rows() -> list[dict[str, str]]:
    """Two questions: one with four options and a hint, one with two; with all their rotations."""
    red, blue = in_base64("red"), in_base64("blue")
    animal = {"question": "What is it?", "hint": "An animal.", "category": "identity"}
    animal |= {"l2-category": "finegrained_perception (instance-level)", "split": "dev", "source": "made"}
    place = {"question": "Is it far?", "hint": "nan", "category": "distance"}
    place |= {"l2-category": "relation_reasoning", "split": "dev"}
    return [
        _row(3, "ant|bee|cat|dog", "B", red, **animal),
        _row(1_000_003, "bee|cat|dog|ant", "A", red, **animal),
        _row(2_000_003, "cat|dog|ant|bee", "D", "3", **animal),
        _row(3_000_003, "dog|ant|bee|cat", "C", "3", **animal),
        _row(7, "yes|no", "A", blue, **place),
        _row(1_000_007, "no|yes", "B", in_base64("green"), **place),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tsv(tmp_path / "mmbench_dev_20230712.tsv", _rows())
    return tmp_path


def _load(folder: Path, split: str = "dev") -> list[Question]:
    return MMBENCH.load(folder, split, folder / "pictures")


def test_prompts_have_the_exact_bytes_of_llava(folder: Path) -> None:
    first, *_, fifth, _ = _load(folder)
    assert first.prompt == (
        "An animal.\nWhat is it?\nA. ant\nB. bee\nC. cat\nD. dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert fifth.prompt == (
        "Is it far?\nA. yes\nB. no\nAnswer with the option's letter from the given choices directly."
    )
    assert (first.options, fifth.options) == (("A", "B", "C", "D"), ("A", "B"))
    assert (first.id, first.gold) == ("3", "B")


def test_an_option_that_says_none_ends_the_options_that_are_shown(folder: Path) -> None:
    row = _row(1, "red|none|blue", "C", in_base64("red"), question="Which?", hint="NONE")
    write_tsv(folder / "mmbench_dev_20230712.tsv", [row])
    (question,) = _load(folder)
    assert (
        question.prompt == "Which?\nA. red\nAnswer with the option's letter from the given choices directly."
    )
    assert question.facts["choices"] == {"A": "red", "B": "none", "C": "blue"}  # the scorer knows them all
    assert MMBENCH.score([question], {"1": "the blue one"}).scores["Overall"].value == 1


def test_pictures_are_unpacked_once_and_shared_by_the_rotations(folder: Path) -> None:
    questions = _load(folder)
    names = [question.images[0].name for question in questions]
    assert names == ["3.jpg", "3.jpg", "3.jpg", "3.jpg", "7.jpg", "1000007.jpg"]
    with Image.open(questions[0].images[0]) as image:
        assert image.size == (8, 6)
    before = questions[0].images[0].stat().st_mtime_ns
    questions[4].images[0].write_bytes(b"half")
    again = _load(folder)
    assert again[0].images[0].stat().st_mtime_ns == before
    assert again[4].images[0].stat().st_size > len(b"half")
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["1000007.jpg", "3.jpg", "7.jpg"]


def test_a_question_counts_if_every_rotation_is_right(folder: Path) -> None:
    questions = _load(folder)
    answers = {
        "3": "B",
        "1000003": "A. bee",
        "2000003": "(D)",
        "3000003": "The bee",
        "7": "A",
        "1000007": "A",
    }
    scored = MMBENCH.score(questions, answers)
    assert {name: (score.value, score.count) for name, score in scored.scores.items()} == {
        "Overall": (0.5, 2),
        "FP-S": (1.0, 1),
        "RR": (0.0, 1),
        "distance": (0.0, 1),
        "identity": (1.0, 1),
    }
    assert scored.marks["3"] == Mark("B", 1.0)
    assert scored.marks["3000003"] == Mark("C", None)
    assert scored.marks["7"] == Mark("A", 0.0)
    assert scored.unparsable == 0
    assert scored.notes == {"first pass": 1.0, "groups": 2}


def test_an_answer_without_an_option_is_wrong_and_counted(folder: Path) -> None:
    answers = dict.fromkeys((row["index"] for row in _rows()), "I cannot see that.")
    scored = MMBENCH.score(_load(folder), answers | {"3": "Cannot determine the answer"})
    assert scored.scores["Overall"].value == 0
    assert scored.unparsable == 6
    assert scored.marks["3"].read is None


def test_the_report_tells_splits_apart(folder: Path) -> None:
    rows = [row | {"split": "test" if row["index"].endswith("7") else "dev"} for row in _rows()]
    write_tsv(folder / "mmbench_dev_20230712.tsv", rows)
    scored = MMBENCH.score(_load(folder), dict.fromkeys((row["index"] for row in rows), "A"))
    assert next(iter(scored.scores)) == "Overall"
    assert scored.scores["Overall (test)"].value == 0
    assert scored.scores["RR"].value is None
    assert scored.scores["RR (test)"].count == 1


def test_every_row_must_be_answered(folder: Path) -> None:
    with pytest.raises(EvalError, match="5 of 6 questions have no answer"):
        MMBENCH.score(_load(folder), {"3": "B"})


def test_the_upload_has_the_columns_of_the_server(folder: Path) -> None:
    questions = _load(folder)
    texts = {"3": "=3", "1000003": "A\nbecause", "2000003": "D\x07", "3000003": "", "7": "3"}
    path = folder / "out" / "upload.xlsx"
    MMBENCH.write(path, questions, texts | {"1000007": "B"})
    book = openpyxl.load_workbook(path)
    rows = list(book.active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (3, "What is it?", "ant", "bee", "cat", "dog", "=3", "B", "dev")
    assert rows[5] == (7, "Is it far?", "yes", "no", None, None, "3", "A", "dev")
    assert MMBENCH.read(path) == texts | {"2000003": "D", "1000007": "B"}


def test_the_test_split_has_no_score_but_an_upload(folder: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in _rows()]
    write_tsv(folder / "mmbench_test_20230712.tsv", rows)
    questions = _load(folder, "test")
    answers = {question.id: "B" for question in questions}
    scored = MMBENCH.score(questions, answers)
    assert scored.scores == {}
    assert scored.marks["3"] == Mark("B", None)
    MMBENCH.write(folder / "upload.xlsx", questions, answers)
    assert MMBENCH.read(folder / "upload.xlsx") == answers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": "x"}, "line 2: index 'x' is no whole number; fetch the file again"),
        ({"index": "7"}, "index 7 is there twice"),
        ({"answer": "E"}, "line 2: answer 'E' is none of its options"),
        ({"B": "", "C": "", "D": ""}, "line 2: has 1 options"),
        ({"image": "?"}, "line 2: holds no picture in base64"),
        ({"image": "ü" * 80}, "line 2: holds no picture in base64"),
        ({"image": "99"}, "line 2: its picture is in row 99, which has none"),
    ],
)
def test_broken_rows_are_named(folder: Path, change: dict[str, str], message: str) -> None:
    rows = _rows()
    write_tsv(folder / "mmbench_dev_20230712.tsv", [rows[0] | change, *rows[4:]])
    with pytest.raises(EvalError, match=message):
        _load(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="mmbench_dev_20230712.tsv: no such file"):
        _load(tmp_path)
    with pytest.raises(EvalError, match="none.xlsx: cannot be read"):
        MMBENCH.read(tmp_path / "none.xlsx")
    (tmp_path / "broken.xlsx").write_text("no table")
    with pytest.raises(EvalError, match="broken.xlsx: is no Excel table"):
        MMBENCH.read(tmp_path / "broken.xlsx")
    book = openpyxl.Workbook()
    book.active.append(["index", "answer"])
    book.save(tmp_path / "columns.xlsx")
    with pytest.raises(EvalError, match="columns.xlsx: has no columns index and prediction"):
        MMBENCH.read(tmp_path / "columns.xlsx")
    assert MMBENCH.needs("dev")[0].path == "mmbench_dev_20230712.tsv"


def test_without_openpyxl_the_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(EvalError, match="needs the package openpyxl: pip install openpyxl"):
        MMBENCH.write(folder / "upload.xlsx", _load(folder), {})


@pytest.mark.parametrize(
    ("answer", "letter", "letter_2023"),
    [
        ("B", "B", "B"),
        ("{C}", "C", None),  # only the newer rule knows these brackets
        ("E", None, "E"),  # only the older one looks for E
        ("B is right because it has long ears", None, "B"),  # too early in the sentence for the newer rule
        ("A big old rabbit", "A", "B"),  # an article for the older one
        ("It is A, not B", None, "B"),  # the older one reads no A before a comma if there is a bare B
        ("A.B", None, None),
        ("Z", "Z", None),
        ("the answer is a cat", "A", "C"),  # nothing has to follow the letter
        ("the answer is beautiful", "B", None),
        ("The Answer  is **D**, I am quite sure of that, really sure", "D", None),
        ("the animal is a CAT", "C", "C"),
        ("cat and dog", None, None),
        ("cat, as far as I can see from here and from there", None, "C"),  # longer than twice the options
        ("Cannot determine the answer", "Z", None),
        ("B Failed to obtain answer via API", None, None),
        ("", None, None),
        (":B)", "B", "B"),
        ("(B) or (B).", "B", "B"),
    ],
)
def test_options_are_inferred_by_both_rules(answer: str, letter: str | None, letter_2023: str | None) -> None:
    assert infer(answer, ANIMALS) == letter
    assert infer_2023(answer, ANIMALS) == letter_2023


def test_an_empty_option_occurs_in_every_answer() -> None:
    assert infer("perhaps", {"A": "yes", "B": ""}) is None  # "perhaps" is longer than twice the options
    assert infer("maybe", {"A": "yes", "B": ""}) == "B"


def test_a_group_without_its_first_row_is_passed_over() -> None:
    rotations = [Rotation(1_000_001, "A", "A"), Rotation(2, "A", "A"), Rotation(1_000_002, "B", None)]
    hit = hits(rotations)
    assert hit == {2: False}
    assert report(rotations, hit)["none"]["Overall"].count == 1
    assert first_pass(rotations).value == 1.0


def test_llavas_answer_lines(folder: Path) -> None:
    write_jsonl(
        folder / "a.jsonl", [{"question_id": 3, "text": "B"}, {"question_id": 1_000_003, "text": "A"}]
    )
    assert MMBENCH.read(folder / "a.jsonl") == {"3": "B", "1000003": "A"}
