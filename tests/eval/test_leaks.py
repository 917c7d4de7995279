"""Questions that stand in the training data are counted, and what cannot be read is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.prompts import FORMATS, render
from data.scienceqa import load_split
from eval.bare import bare, plain, with_options
from eval.benchmark import LETTER, SHORT, Question, find
from eval.leaks import LeakCheck, leaks, trained_on

PICTURES = {"red": (250, 0, 0), "blue": (0, 0, 250), "green": (0, 200, 0)}


def adapter(folder: Path, recipe: object) -> Path:
    """An adapter folder that records a recipe."""
    folder.mkdir(parents=True)
    told = {"peft_type": "MMA", "format_version": "1.2", "provenance": {"recipe": recipe}}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def mixed(folder: Path, *sources: dict[str, Any], start: Path | None = None) -> Path:
    """An adapter that was trained on sources."""
    recipe = {"data": {"root": None, "mix": list(sources)}, "optim": {"seed": 3}}
    return adapter(folder, {**recipe, "start": None if start is None else str(start)})


def talk(image: str | None, *said: str) -> dict[str, Any]:
    """A row as LLaVA writes it; question, answer, question, ..."""
    turns = [
        {"from": ("human", "gpt")[place % 2], "value": text.replace("|", "\n")}
        for place, text in enumerate(said)
    ]
    return {"conversations": turns} | ({} if image is None else {"image": image})


def rows(path: Path, *content: dict[str, Any]) -> dict[str, Any]:
    """A source of rows."""
    path.write_text(json.dumps(list(content)))
    return {"path": str(path), "images": None, "kind": "", "take": None, "weight": None}


@pytest.fixture
def asked(tmp_path: Path) -> list[Question]:
    """Five questions, three of them about pictures."""
    folder = tmp_path / "asked"
    folder.mkdir()
    for name, colour in PICTURES.items():
        Image.new("RGB", (20, 10), colour).save(folder / f"{name}.png")
        # Under another name in the training data, with the same bytes.
        (tmp_path / f"t-{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    return [
        Question("q1", f"What colour is the wall?\n{SHORT}", (folder / "red.png",)),
        Question("q2", f"What colour is the wall?\n{SHORT}", (folder / "blue.png",)),
        Question("q3", f"What is this?\n{SHORT}", (folder / "green.png",)),
        Question("q4", "Which planet is nearest to the sun?"),
        Question("q5", "What is this?"),
    ]


def test_the_overlap_is_that_counted_by_hand(tmp_path: Path, asked: list[Question]) -> None:
    source = rows(
        tmp_path / "train.json",
        # q1, in a later turn, in other case and spacing
        talk("t-red.png", "<image>|Hello there?", "Hi", "what  COLOUR is the wall", "red"),
        # q2's text with another picture
        talk("t-green.png", "<image>|What colour is the wall?", "green"),
        # q3: a short question, with its picture
        talk("t-green.png", f"What is this?|<image>|{SHORT}", "a wall"),
        # q4 by its text; q5 is too short for that
        talk(None, "Which planet is nearest to the Sun", "Mercury"),
        talk(None, "What is this?", "Nothing"),
    )
    assert leaks(asked, mixed(tmp_path / "a", source), progress=False) == {
        "in_training": 3,
        "with_same_picture": 2,
        "text_only": 1,
        "first": ["q1", "q3", "q4"],
        "sources": [str(tmp_path / "train.json")],
        "why_unknown": None,
    }


def test_nothing_in_common_is_a_zero(tmp_path: Path, asked: list[Question]) -> None:
    source = rows(tmp_path / "train.json", talk("t-red.png", "<image>|Is it red?", "yes"))
    found = leaks(asked, mixed(tmp_path / "a", source), progress=False)
    assert (found["in_training"], found["why_unknown"]) == (0, None)


def test_all_pictures_of_a_question_must_be_there(tmp_path: Path, asked: list[Question]) -> None:
    pair = (*asked[0].images, *asked[1].images)
    both = [Question("two", "How do the pictures differ?", pair)]
    one = rows(tmp_path / "one.json", talk("t-red.png", "How do the pictures differ?", "?"))
    row = talk(None, "How do the pictures differ?", "?") | {"images": ["t-blue.png", "t-red.png"]}
    two = rows(tmp_path / "two.json", row)
    assert leaks(both, mixed(tmp_path / "a", one), progress=False)["in_training"] == 0
    assert leaks(both, mixed(tmp_path / "b", two), progress=False)["in_training"] == 1


@pytest.mark.parametrize("format", FORMATS)
def test_scienceqa_in_any_format_is_the_same_question(root: Path, format: str) -> None:
    for problem in load_split(root, "test"):
        known = with_options(problem.question, problem.choices).whole
        rendered = render(problem, format, problem.picture(root)).prompt
        assert known in list(bare(rendered).possible)


def test_a_scienceqa_folder_is_read_as_root_and_as_source(tmp_path: Path, root: Path) -> None:
    questions = find("scienceqa").load(root, "test", tmp_path / "unpacked")
    by_root = adapter(tmp_path / "a", {"data": {"root": str(root), "mix": [], "train": "half"}})
    by_mix = mixed(tmp_path / "b", {"path": str(root), "kind": "scienceqa", "split": "half"})
    for folder in (by_root, by_mix):
        found = leaks(questions, folder, progress=False)
        assert (found["in_training"], found["with_same_picture"], found["text_only"]) == (4, 2, 2)
        assert found["first"] == ["1", "2", "3", "4"]


def test_llava_rows_of_scienceqa_are_found_behind_their_context(tmp_path: Path, root: Path) -> None:
    questions = find("scienceqa").load(root, "test", tmp_path / "unpacked")
    content = [
        talk(None, f"Context: One.|{question.prompt}".replace("\n", "|"), "A") for question in questions
    ]
    found = leaks(questions, mixed(tmp_path / "a", rows(tmp_path / "t.json", *content)), progress=False)
    assert found["in_training"] == found["text_only"] == 5  # three have a picture, the rows have none


def test_the_same_words_about_another_text_are_another_question(tmp_path: Path, root: Path) -> None:
    questions = find("scienceqa").load(root, "test", tmp_path / "unpacked")[:1]  # about "Ice melts."
    for hint, count in (("Snow melts.", 0), ("Ice  melts", 1)):
        row = talk(None, questions[0].prompt.replace("Ice melts.", hint).replace("\n", "|"), "A")
        source = rows(tmp_path / f"{count}.json", row)
        assert leaks(questions, mixed(tmp_path / hint, source), progress=False)["in_training"] == count


def test_only_rows_that_were_taken_count(tmp_path: Path) -> None:
    questions = [Question(str(n), f"Which number comes behind {n}?") for n in range(20)]
    source = rows(tmp_path / "t.json", *(talk(None, question.prompt, "?") for question in questions))
    found = leaks(questions, mixed(tmp_path / "a", {**source, "take": 7}), progress=False)
    assert found["in_training"] == 7


def test_the_data_of_the_adapter_it_began_with_counts(tmp_path: Path, asked: list[Question]) -> None:
    early = rows(tmp_path / "early.json", talk(None, asked[3].prompt, "Mercury"))
    late = rows(tmp_path / "late.json", talk("t-blue.png", asked[1].prompt, "blue"))
    first = mixed(tmp_path / "first", early)
    found = leaks(asked, mixed(tmp_path / "second", late, start=first), progress=False)
    assert found["first"] == ["q2", "q4"]
    lost = leaks(asked, mixed(tmp_path / "third", late, start=tmp_path / "gone"), progress=False)
    assert lost["first"] == ["q2"]
    assert str(tmp_path / "gone") in lost["why_unknown"]


def test_data_that_is_gone_is_told(tmp_path: Path, asked: list[Question]) -> None:
    gone = {"path": str(tmp_path / "gone.json")}
    found = leaks(asked, mixed(tmp_path / "a", gone), progress=False)
    assert found["in_training"] is None
    assert "there is no file" in found["why_unknown"]
    there = rows(tmp_path / "t.json", talk(None, asked[3].prompt, "Mercury"))
    part = leaks(asked, mixed(tmp_path / "b", gone, there), progress=False)
    assert part["in_training"] == 1
    assert "gone.json" in part["why_unknown"]


def test_broken_rows_are_told_and_the_others_read(tmp_path: Path, asked: list[Question]) -> None:
    source = rows(tmp_path / "t.json", talk(None, asked[3].prompt, "Mercury"), talk(None, "", "?"))
    found = leaks(asked, mixed(tmp_path / "a", source), progress=False)
    assert (found["in_training"], found["why_unknown"]) == (1, f"{source['path']}: 1 rows cannot be read")


@pytest.mark.parametrize("recipe", [None, {}, {"data": {"mix": [{"take": 0}]}}, {"data": 3}])
def test_a_recipe_that_says_nothing_is_told(tmp_path: Path, asked: list[Question], recipe: object) -> None:
    found = leaks(asked, adapter(tmp_path / "a", recipe), progress=False)
    assert found["in_training"] is None
    assert found["why_unknown"]


def test_the_base_and_a_folder_without_adapter_are_unknown(tmp_path: Path, asked: list[Question]) -> None:
    assert leaks(asked, None)["in_training"] is None
    assert str(tmp_path) in leaks(asked, tmp_path)["why_unknown"]


def test_an_adapter_that_begins_with_itself_ends(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "a", start=tmp_path / "a")
    assert len(trained_on(folder).stages) == 1


def test_options_in_another_order_are_the_same_and_other_options_are_not() -> None:
    one = bare(f"Which is red?\nA. a rose\nB. The sky.\n{LETTER}")
    assert one.whole == bare("Question: Which is red?\nOptions: (A) the sky (B) A rose\nResponse:").whole
    assert one.whole != bare("Which is red?\nA. a rose\nB. the sea").whole
    assert one.whole != bare("Which is red?").whole


def test_numbers_and_signs_are_kept() -> None:
    texts = ["What is 1.5 + 3?", "What is 15 + 3?", "What is 15 * 3?", "What is -15 * 3?", "What is 1 5 * 3?"]
    assert len({plain(text) for text in texts}) == len(texts)
    assert plain("  It's a  well-known, “old” Thing... ") == "its a well known old thing"


def test_a_hundred_thousand_rows_take_seconds_and_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        for number in range(100_000):
            row = talk(None, f"What stands on page {number} of the book?|{SHORT}", "A word.")
            file.write(json.dumps(row) + "\n")
    questions = [Question(str(n), f"What stands on page {n * 10} of the book?") for n in range(100)]
    check = LeakCheck(questions, progress=False)
    folder = mixed(tmp_path / "a", {"path": str(path)})
    start = time.process_time()
    assert check.of(folder)["in_training"] == 100
    assert time.process_time() - start < 30  # about 6; shared cores may be slow
    assert len(check._by_text) == len(check._by_size) == 100
    start = time.process_time()
    check.of(folder)  # adapters of one recipe are looked up once
    assert time.process_time() - start < 1
