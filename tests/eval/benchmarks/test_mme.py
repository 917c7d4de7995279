"""MME: both layouts of its folders, LLaVA's prompts, the rule, scores worked out by hand, result files."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.scorers.mme import TASKS, bare, lmms, read, task
from tests.eval.benchmarks.short_answer_files import SHORT, load, picture, write_jsonl

MME = find("mme")
RELEASE = "MME_Benchmark_release_version"
NAMES = [name for names in TASKS.values() for name in names]
APART = {"artwork", "celebrity", "landmark", "posters", "scene"}
REQUEST = "Please answer yes or no."


def add(
    folder: Path, name: str, stem: str, suffix: str = ".jpg", first: str = f"Is it {{}}? {REQUEST}"
) -> None:
    """A picture of a subtask with its two questions."""
    place = folder / RELEASE / name
    texts, pictures = (place / "questions_answers_YN", place / "images") if name in APART else (place, place)
    picture(pictures / f"{stem}{suffix}")
    texts.mkdir(parents=True, exist_ok=True)
    lines = f"{first.format(stem)}\tYes\nIs it not {stem}? {REQUEST}\tNo\n"
    (texts / f"{stem}.txt").write_text(lines, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One picture in every subtask, two in the first; one of them with the double blank."""
    for name in NAMES:
        add(tmp_path, name, "0001", ".png" if name == "OCR" else ".jpg")
    add(tmp_path, "existence", "0002", first=f"Is it {{}}?  {REQUEST}")
    return tmp_path


def key(name: str, stem: str, first: bool) -> str:
    return f"{name}/{stem}: Is it {'' if first else 'not '}{stem}?"


def all_right(folder: Path) -> dict[str, str]:
    return {question.id: f"{question.gold}." for question in load("mme", folder)}


def test_questions(folder: Path) -> None:
    questions = load("mme", folder)
    assert len(questions) == 30
    assert [question.id for question in questions[:3]] == [
        key("existence", "0001", True),
        key("existence", "0001", False),
        key("existence", "0002", True),
    ]
    assert questions[0].prompt == f"Is it 0001?\n{SHORT}"
    assert questions[2].prompt == f"Is it 0002?\n{SHORT}"  # two blanks stood before the request
    assert questions[2].options == ("Yes", "No") and questions[2].gold == "Yes"
    by_task = {question.facts["category"]: question.images[0] for question in questions}
    assert by_task["scene"] == folder / RELEASE / "scene" / "images" / "0001.jpg"
    assert by_task["OCR"] == folder / RELEASE / "OCR" / "0001.png"
    assert [*by_task] == NAMES


def test_scores(folder: Path) -> None:
    answers = all_right(folder) | {
        key("existence", "0002", False): "eyes",  # a yes: one of four wrong, one picture of two
        key("OCR", "0001", True): "    yes",  # other
        key("OCR", "0001", False): "snow",  # a no
        key("code_reasoning", "0001", True): "none",  # a no
        key("code_reasoning", "0001", False): "Well",  # other
    }
    scored = MME.score(load("mme", folder), answers)
    values = {name: score.value for name, score in scored.scores.items()}
    assert values == pytest.approx(
        {
            **{"Perception": 8 * 200 + 125 + 50, "Cognition": 600.0},
            **dict.fromkeys(NAMES, 200.0),
            **{"existence": 125.0, "OCR": 50.0, "code_reasoning": 0.0},
        }
    )
    assert [*values] == ["Perception", "Cognition", *NAMES]
    assert scored.notes["official"]["existence"] == pytest.approx(
        {"acc": 0.75, "acc_plus": 0.5, "precision": 2 / 3, "recall": 1.0, "other": 0, "score": 125.0}
    )
    # the yes that was read as other is left out of recall
    assert scored.notes["official"]["OCR"] == {
        **{"acc": 0.5, "acc_plus": 0.0, "precision": 0.0, "recall": 0.0, "other": 1, "score": 50.0}
    }
    assert scored.unparsable == 2
    assert scored.marks[key("OCR", "0001", True)].read is None
    assert scored.marks[key("OCR", "0001", False)].score == 1.0
    assert all(
        score.scale == 1 and score.low <= score.value <= score.high for score in scored.scores.values()
    )


def test_some_subtasks_alone_can_be_scored(folder: Path) -> None:
    questions = [question for question in load("mme", folder) if question.facts["category"] == "count"]
    scored = MME.score(questions, {question.id: question.gold for question in questions})
    assert {name: score.value for name, score in scored.scores.items()} == {
        **{"Perception": 200.0, "Cognition": None, "count": 200.0}
    }


def test_half_a_picture_counts_in_the_first_share_only() -> None:
    found = task([[("yes", "yes"), ("no", "no")], [("no", "yes")]])
    assert (found.acc, found.acc_plus) == (2 / 3, 1.0)
    assert task([]).score == 0.0


@pytest.mark.parametrize(
    ("response", "official", "lenient"),
    [
        ("Yes", "yes", "yes"),
        ("nO\n", "no", "no"),
        ("eyes", "yes", "yes"),
        ("none", "no", "no"),
        ("not", "no", "no"),
        ("  no", "no", "no"),
        ("   no", "other", "no"),
        ("    yes", "other", "yes"),
        ("n.o", "other", "no"),
        ("y", "other", "yes"),
        ("N.", "other", "no"),
        ("noyes", "no", "no"),  # the yes ends behind the fourth character
        ("The answer is yes", "other", "other"),
        ("", "other", "other"),
    ],
)
def test_reading(response: str, official: str, lenient: str) -> None:
    assert (read(response), lmms(response)) == (official, lenient)


def test_a_question_without_its_request() -> None:
    assert bare(f"Is it?  {REQUEST}") == bare(f"Is it?\n{SHORT}") == bare("Is it?") == "Is it?"


def test_result_files(folder: Path, tmp_path: Path) -> None:
    questions = load("mme", folder)
    answers = all_right(folder) | {key("existence", "0002", True): "Yes,\tit\nis"}
    MME.write(tmp_path / "results", questions, answers)
    lines = (tmp_path / "results" / "existence.txt").read_text().split("\n")
    assert lines[0] == f"0001.jpg\tIs it 0001? {REQUEST}\tYes\tYes."
    assert lines[2] == f"0002.jpg\tIs it 0002?  {REQUEST}\tYes\tYes, it is"
    back = MME.read(tmp_path / "results")
    assert back == answers | {key("existence", "0002", True): "Yes, it is"}
    assert MME.score(questions, back).scores == MME.score(questions, answers).scores


def test_result_files_of_the_llava_converter(folder: Path, tmp_path: Path) -> None:
    """They name the text file in place of the picture."""
    MME.write(tmp_path / "results", load("mme", folder), all_right(folder))
    for path in (tmp_path / "results").glob("*.txt"):
        path.write_text(path.read_text().replace(".jpg\t", ".txt\t"))
    assert MME.read(tmp_path / "results") == all_right(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Is it?\tYes\n", "0001.txt: 1 lines, not 2; fetch"),
        ("Is it?\tYes\nIs it not? No\n", "0001.txt: line 2: not a question, a tab, and Yes or No; fetch"),
        ("Is it?\tmaybe\nIs it not?\tNo\n", "0001.txt: line 1: not a question, a tab"),
        (f"Is it?\tYes\nIs it?  {REQUEST}\tNo\n", "0001.txt: line 2: asks the same as line 1; fetch"),
    ],
)
def test_broken_questions(folder: Path, content: str, message: str) -> None:
    (folder / RELEASE / "count" / "0001.txt").write_text(content)
    with pytest.raises(EvalError, match=message):
        load("mme", folder)


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / RELEASE / "scene" / "images" / "0001.jpg").unlink()
    with pytest.raises(EvalError, match="mme: 1 of 1 pictures of scene are missing .the first is .*0001.jpg"):
        load("mme", folder)
    (folder / RELEASE / "count" / "0001.txt").unlink()
    with pytest.raises(EvalError, match="count: holds no questions; `python -m eval prepare mme`"):
        load("mme", folder)
    with pytest.raises(EvalError, match="is no folder; name the folder with a text file for every subtask"):
        MME.read(tmp_path / "nowhere")


def test_broken_result_files(folder: Path, tmp_path: Path) -> None:
    questions = load("mme", folder)
    with pytest.raises(EvalError, match="mme: 30 of 30 questions have no answer"):
        MME.score(questions, {})
    MME.write(tmp_path / "results", questions, all_right(folder))
    path = tmp_path / "results" / "color.txt"
    path.write_text(path.read_text().replace("\tNo.", ""))
    with pytest.raises(
        EvalError, match="color.txt: line 2: 3 cells, not picture, question, truth and response"
    ):
        MME.read(tmp_path / "results")
    path.unlink()
    with pytest.raises(EvalError, match="color.txt: no such file"):
        MME.read(tmp_path / "results")


def test_llavas_answer_lines(folder: Path) -> None:
    answers = all_right(folder)
    lines = [
        {
            "question_id": f"{one.facts['category']}/images/{one.images[0].name}",
            "prompt": one.prompt,
            "text": answers[one.id],
        }
        for one in load("mme", folder)
    ]
    write_jsonl(folder / "answers.jsonl", lines)
    assert MME.read(folder / "answers.jsonl") == answers
