"""MMLU: its tables, both prompts, the letter, the weighted averages, and the tables of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmark import Question, find
from eval.errors import EvalError
from eval.scorers.mmlu import (
    CATEGORIES,
    SUBJECTS,
    Item,
    letter_of,
    prompt,
    read_letter,
    report,
    unweighted,
)
from eval.scores import Mark
from tests.eval.benchmarks.options_files import write_csv

MMLU = find("mmlu")
DEV = [[f"Dev {place}?", "a", "b", "c", "d", "ABCDA"[place]] for place in range(5)]
MATH = [["What is 1+1?", "1", "2", "3", "4", "B"], ["Zero?\nReally, ", "0", "None", '"1"', "x", "A"]]
LAW = [["A law?", "w", "x", "y", "z", "D"]]


def _write(folder: Path, subject: str, rows: list[list[str]], dev: list[list[str]] = DEV) -> None:
    write_csv(folder / "test" / f"{subject}_test.csv", rows)
    write_csv(folder / "dev" / f"{subject}_dev.csv", dev)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path, "professional_law", LAW)
    _write(tmp_path, "abstract_algebra", MATH)
    return tmp_path


def _load(folder: Path) -> list[Question]:
    return MMLU.load(folder, "test", folder / "pictures")


def test_prompts_have_the_exact_bytes_of_the_original_code(folder: Path) -> None:
    questions = _load(folder)
    ids = ["abstract_algebra/0", "abstract_algebra/1", "professional_law/0"]
    assert [question.id for question in questions] == ids
    dev = "".join(f"Dev {place}?\nA. a\nB. b\nC. c\nD. d\nAnswer: {'ABCDA'[place]}\n\n" for place in range(5))
    assert questions[1].prompt == (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
        + dev
        + 'Zero?\nReally, \nA. 0\nB. None\nC. "1"\nD. x\nAnswer:'
    )
    assert questions[0].options == ("A", "B", "C", "D")
    assert (questions[0].gold, questions[0].images) == ("B", ())


def test_averages_are_over_questions(folder: Path) -> None:
    answers = {"abstract_algebra/0": " B", "abstract_algebra/1": "Because", "professional_law/0": "D."}
    scored = MMLU.score(_load(folder), answers)
    assert {name: (score.value, score.count) for name, score in scored.scores.items()} == {
        "Average": (2 / 3, 3),
        "STEM": (0.5, 2),
        "humanities": (1.0, 1),
        "abstract_algebra": (0.5, 2),
        "professional_law": (1.0, 1),
    }
    assert scored.notes["average over subjects"] == 0.75
    assert scored.notes["official"]["Average"] == "0.667"
    assert scored.marks["abstract_algebra/1"] == Mark(None, 0.0)
    assert scored.unparsable == 1
    with pytest.raises(EvalError, match="2 of 3 questions have no answer"):
        MMLU.score(_load(folder), {"abstract_algebra/0": " B"})


def test_tables_of_results_come_back(folder: Path) -> None:
    answers = {"abstract_algebra/0": "B", "abstract_algebra/1": "hm", "professional_law/0": "D"}
    MMLU.write(folder / "out", _load(folder), answers)
    assert MMLU.read(folder / "out") == {
        "abstract_algebra/0": "B",
        "abstract_algebra/1": "",
        "professional_law/0": "D",
    }
    # as the original code names its columns, with real probabilities
    (folder / "out" / "professional_law.csv").write_text(
        "0,1,2,3,4,5,ada_correct,ada_choiceA_probs,ada_choiceB_probs,ada_choiceC_probs,ada_choiceD_probs\n"
        "A law?,w,x,y,z,D,False,0.1,0.4,0.4,0.1\n"
    )
    assert MMLU.read(folder / "out")["professional_law/0"] == "B"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\nx,y\n", "virology.csv: has no four columns such as model_choiceA_probs"),
        (
            "m_choiceA_probs,m_choiceB_probs,m_choiceC_probs,m_choiceD_probs\n0,0,x,1\n",
            "virology.csv: line 2: a probability is no number",
        ),
    ],
)
def test_broken_tables_of_results_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "virology.csv").write_text(text)
    with pytest.raises(EvalError, match=message):
        MMLU.read(tmp_path)


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="test: no file <subject>_test.csv in it"):
        _load(tmp_path)
    with pytest.raises(EvalError, match="no table of a subject in it, such as abstract_algebra.csv"):
        MMLU.read(tmp_path)
    _write(tmp_path, "virology", LAW, DEV[:4])
    with pytest.raises(EvalError, match=r"virology_dev.csv: has 4 of 5 examples"):
        _load(tmp_path)
    _write(tmp_path, "virology", [LAW[0], LAW[0][:5]])
    with pytest.raises(EvalError, match=r"virology_test.csv: line 2: 5 cells instead of 6"):
        _load(tmp_path)
    _write(tmp_path, "virology", [[*LAW[0][:5], "E"]])
    with pytest.raises(EvalError, match="line 1: answer 'E' is no letter A to D"):
        _load(tmp_path)
    (tmp_path / "dev" / "virology_dev.csv").unlink()
    with pytest.raises(EvalError, match="virology_dev.csv: no such file"):
        _load(tmp_path)
    paths = [need.path for need in MMLU.needs("test")]
    assert (len(paths), paths[0], paths[-1]) == (
        114,
        "dev/abstract_algebra_dev.csv",
        "test/world_religions_test.csv",
    )


def test_there_are_57_subjects_in_four_categories() -> None:
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57
    assert [len(subjects) for subjects in CATEGORIES.values()] == [18, 13, 12, 14]


def test_the_two_prompts_differ_in_blanks_only() -> None:
    shot, item = Item(" Shot? ", "abcd", "C"), Item("Item?\n", "wxyz", "A")
    assert prompt("us_foreign_policy", [shot], item) == (
        "The following are multiple choice questions (with answers) about  us foreign policy.\n\n"
        " Shot? \nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\nItem?\n\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert prompt("virology", [], item).startswith("The following are multiple choice questions")


def test_the_likeliest_letter_wins_and_the_earlier_of_equals() -> None:
    assert letter_of({" A": -2.0, " C": -0.5, " D": -0.5}) == "C"
    assert letter_of({" D": -101.0}) == "A"  # letters that were not reported count as -100
    assert letter_of({}) == "A"
    assert letter_of({"B": -0.1, " D": -3.0}) == "D"  # without its blank it is another token


@pytest.mark.parametrize(
    ("text", "letter"), [(" A", "A"), ("B. x", "B"), ("C\n", "C"), ("Dog", None), ("b", None), ("", None)]
)
def test_a_letter_is_read_at_the_start(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


def test_nothing_judged_has_no_average() -> None:
    scores = report([])
    assert list(scores) == ["Average"] and scores["Average"].value is None
    assert unweighted(scores) is None
