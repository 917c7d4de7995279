"""POPE: loading, prompts, the rule with its quirks, scores worked out by hand, the official answer file."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmark import find
from eval.errors import EvalError
from eval.scorers.pope import Counts, lmms, read, vlmevalkit
from tests.eval.benchmarks.short_answer_files import SHORT, edit, load, picture, write_jsonl

POPE = find("pope")
LABELS = {"random": ["yes", "no", "yes"], "popular": ["yes", "no", "no"], "adversarial": ["no", "no", "yes"]}
OFFSETS = {"random": 10_000_000, "popular": 20_000_000, "adversarial": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions in each list: two about one picture, one about another."""
    names = [
        "COCO_val2014_000000000001.jpg",
        "COCO_val2014_000000000001.jpg",
        "COCO_val2014_000000000002.jpg",
    ]
    for name in names:
        picture(tmp_path / "val2014" / name)
    for split, labels in LABELS.items():
        lines = [
            {
                "question_id": 1 + place,
                "image": names[place],
                "text": f"Is there a {split} in the image?",
                "label": label,
            }
            for place, label in enumerate(labels)
        ]
        write_jsonl(tmp_path / "coco" / f"coco_pope_{split}.json", lines)
    return tmp_path


def answered(texts: dict[str, list[str]]) -> dict[str, str]:
    return {
        str(OFFSETS[split] + 1 + place): text
        for split, some in texts.items()
        for place, text in enumerate(some)
    }


ANSWERS = answered(
    {
        "random": ["Yes", "No", "No, it is not."],  # tp tn fn
        "popular": ["Yes", "NO", "no"],  # tp fp tn
        "adversarial": ["No", "no", "No"],  # tn tn fn: yes is never said
    }
)


def test_questions_of_all_three_lists(folder: Path) -> None:
    questions = load("pope", folder)
    assert [question.id for question in questions] == [*ANSWERS]
    assert questions[0].prompt == f"Is there a random in the image?\n{SHORT}"
    assert questions[0].images == (folder / "val2014" / "COCO_val2014_000000000001.jpg",)
    assert questions[0].options == ("Yes", "No")
    assert [question.gold for question in questions[:3]] == ["yes", "no", "yes"]


def test_scores(folder: Path) -> None:
    scored = POPE.score(load("pope", folder), ANSWERS)
    values = {name: score.value for name, score in scored.scores.items()}
    assert next(iter(values)) == "mean F1"
    assert values == pytest.approx(
        {
            "mean F1": 4 / 9,
            **{"random Accuracy": 2 / 3, "random Precision": 1.0, "random Recall": 0.5},
            **{"random F1 score": 2 / 3, "random Yes ratio": 1 / 3},
            **{"popular Accuracy": 2 / 3, "popular Precision": 0.5, "popular Recall": 1.0},
            **{"popular F1 score": 2 / 3, "popular Yes ratio": 2 / 3},
            **{"adversarial Accuracy": 2 / 3, "adversarial Precision": 0.0, "adversarial Recall": 0.0},
            **{"adversarial F1 score": 0.0, "adversarial Yes ratio": 0.0},
        }
    )
    assert scored.notes["zero denominators"] == ["adversarial Precision", "adversarial F1 score"]
    assert scored.notes["official"]["popular"] == {
        **{"TP": 1, "FP": 1, "TN": 1, "FN": 0},
        "F1, accuracy, precision, recall, yes": [0.667, 0.667, 0.5, 1.0, 0.667],
    }
    assert scored.marks["20000002"].read == "yes" and scored.marks["20000002"].score == 0.0
    assert scored.unparsable == 0
    assert all(score.low <= score.value <= score.high for score in scored.scores.values())


def test_some_lists_alone_can_be_scored(folder: Path) -> None:
    questions = [question for question in load("pope", folder) if question.facts["category"] == "random"]
    scored = POPE.score(questions, {question.id: ANSWERS[question.id] for question in questions})
    assert scored.scores["mean F1"].value == pytest.approx(2 / 3)
    assert not [name for name in scored.scores if name.startswith("popular")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No", "no"),
        ("There is not a dog", "no"),
        ("Yes, no doubt", "no"),
        (" no", "no"),
        ("no,", "no"),
        ("NO", "yes"),  # case counts
        ("Not here", "yes"),
        ("nope", "yes"),
        ("no!", "yes"),
        ("\nno", "yes"),  # only blanks part words
        ("I cannot tell", "yes"),
        ("A cat. No dog.", "yes"),  # the first sentence alone
        (".no", "yes"),
        ("Yes,no", "yes"),  # the comma goes, and with it the border
        ("", "yes"),
    ],
)
def test_reading(text: str, expected: str) -> None:
    assert read(text) == expected


def test_readings_of_other_tools() -> None:
    assert [vlmevalkit(text) for text in ("NO!", "yes/no", "A cat. No dog.", "nope")] == [
        "No",
        "Unknown",
        "No",
        "Unknown",
    ]
    assert [lmms(text) for text in (" NO\n", "No.", "yes")] == ["no", "other", "yes"]


def test_nothing_to_divide_by_is_zero() -> None:
    counts = Counts.of([("no", "no")])
    assert (counts.precision, counts.recall, counts.f1, counts.accuracy) == (0.0, 0.0, 0.0, 1.0)
    assert counts.empty == ["Precision", "Recall", "F1 score"]


def test_answer_file_comes_back(folder: Path, tmp_path: Path) -> None:
    questions = load("pope", folder)
    POPE.write(tmp_path / "answers.jsonl", questions, ANSWERS)
    assert POPE.read(tmp_path / "answers.jsonl") == ANSWERS
    first = (tmp_path / "answers.jsonl").read_text().splitlines()[0]
    assert first == (
        '{"question_id": 10000001, "prompt": "Is there a random in the image?\\nAnswer the question using '
        'a single word or phrase.", "text": "Yes", "answer_id": "10000001", "model_id": "mma", '
        '"metadata": {}}'
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"yes"', '"maybe"', "coco_pope_random.json: line 1: label is 'maybe', not yes or no; fetch"),
        ('"question_id": 2', '"question_id": 1', "line 2: a second question 1; fetch the file again"),
        ('"label": "no"', '"other": "no"', "line 2: has no 'label'"),
        ("000000000001", "000000000003", "1 of 3 pictures are missing .the first is .*000000000003.jpg"),
    ],
)
def test_broken_lists(folder: Path, old: str, new: str, message: str) -> None:
    edit(folder / "coco" / "coco_pope_random.json", old, new)
    with pytest.raises(EvalError, match=message):
        load("pope", folder)


def test_an_empty_list_is_refused(folder: Path) -> None:
    (folder / "coco" / "coco_pope_popular.json").write_text("")
    with pytest.raises(EvalError, match="coco_pope_popular.json: holds no questions; fetch"):
        load("pope", folder)


def test_answers_must_be_complete_and_of_this_set(folder: Path) -> None:
    questions = load("pope", folder)
    with pytest.raises(EvalError, match="2 of 3 questions have no answer"):
        POPE.score(questions, {"1": "Yes"})
    with pytest.raises(EvalError, match="1 answers belong to no question .the first is 'x'."):
        POPE.score(questions, {**ANSWERS, "x": "Yes"})


def test_broken_answer_files(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, [{"question_id": 1, "text": "Yes"}, {"question_id": 1, "text": "No"}])
    with pytest.raises(EvalError, match="line 2: '1' is answered a second time; keep one"):
        POPE.read(path)
    write_jsonl(path, [{"question_id": 1, "answer": "Yes"}])
    with pytest.raises(EvalError, match="line 1: has no 'text'"):
        POPE.read(path)
    path.write_text("")
    with pytest.raises(EvalError, match="holds no answers"):
        POPE.read(path)


def test_popes_own_lines_name_no_ids(folder: Path) -> None:
    questions = load("pope", folder)
    lines = [{"question": one.prompt.partition("\n")[0], "answer": ANSWERS[one.id]} for one in questions]
    write_jsonl(folder / "all.jsonl", lines)
    assert POPE.score(questions, POPE.read(folder / "all.jsonl")) == POPE.score(questions, ANSWERS)
    write_jsonl(folder / "popular.jsonl", lines[3:6])
    scored = POPE.score(questions, POPE.read(folder / "popular.jsonl"))
    assert scored.scores["mean F1"].value == scored.scores["popular F1 score"].value == pytest.approx(2 / 3)
    assert "random F1 score" not in scored.scores
    assert scored.notes["warning"] == "mean F1 is over popular alone; random, adversarial not answered"
    write_jsonl(folder / "bare.jsonl", [{"answer": line["answer"]} for line in lines])
    assert POPE.score(questions, POPE.read(folder / "bare.jsonl")) == POPE.score(questions, ANSWERS)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [{"answer": "Yes"}] * 3,
            "stand in the order of random or of popular or of adversarial; give each line",
        ),
        ([{"answer": "Yes"}] * 4, "the 4 answers stand in the order of no list"),
        ([{"question": "Is it?", "answer": "Yes"}] * 9, "the 9 answers stand in the order of no list"),
    ],
)
def test_answers_of_no_list(folder: Path, lines: list[dict[str, str]], said: str) -> None:
    write_jsonl(folder / "a.jsonl", lines)
    with pytest.raises(EvalError, match=said):
        POPE.score(load("pope", folder), POPE.read(folder / "a.jsonl"))


def test_one_list_alone_by_ids(folder: Path) -> None:
    scored = POPE.score(load("pope", folder), {key: ANSWERS[key] for key in ("1", "2", "3")})
    assert {name.split()[0] for name in scored.scores} == {"mean", "adversarial"}
