from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.conversations import Reading, kind_of, sample_of
from data.sample import Sample, Turn

FOLDER = Path("pictures")


def read(row: dict[str, Any], images: Path = FOLDER, frames: int = 8) -> Sample | list[str]:
    kind = kind_of(row)
    assert kind is not None
    return sample_of(row, "rows.json:1", Reading(kind, images, frames))


def said(*turns: tuple[str, str], **fields: object) -> dict[str, Any]:
    return {**fields, "conversations": [{"from": role, "value": text} for role, text in turns]}


def messages(*turns: tuple[str, object], **fields: object) -> dict[str, Any]:
    return {**fields, "messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_llava_row() -> None:
    row = said(
        ("human", "<image>\nWhat?"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", "Yes."),
        id="7", image="coco/1.jpg", model="x",
    )  # fmt: skip
    assert read(row) == Sample(
        "7",
        "Sure?",
        "Yes.",
        images=(FOLDER / "coco/1.jpg",),
        earlier=(Turn("<image>\nWhat?", "A cat."),),
    )


def test_several_pictures_and_a_row_without_any_or_an_id() -> None:
    row = said(("human", "<image> or <image>?"), ("gpt", "B"), images=["a.png", "b.png"], id=3)
    sample = read(row)
    assert isinstance(sample, Sample)
    assert (sample.id, sample.modality) == ("3", "images")
    assert read(said(("human", "Hi"), ("gpt", "Hello"))) == Sample("rows.json:1", "Hi", "Hello")


def test_a_shared_conversation_is_trimmed_to_questions_with_answers() -> None:
    row = said(
        ("system", "Be kind."), ("gpt", "..."), ("user", "Hi"), ("chatgpt", "Hello"), ("human", "And?")
    )
    assert read(row) == Sample("rows.json:1", "Hi", "Hello", system="Be kind.")


def test_alpaca() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert read(row) == Sample("rows.json:1", "Add.\n1 2", "3")
    assert read({**row, "input": ""}) == Sample("rows.json:1", "Add.", "3")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
    ],
)
def test_messages_with_parts(part: dict[str, Any]) -> None:
    content = [part, {"type": "text", "text": "What?"}]
    row = messages(("system", "S"), ("user", content), ("assistant", "A"))
    assert read(row) == Sample("rows.json:1", "<image>\nWhat?", "A", images=(FOLDER / "a.png",), system="S")


def test_a_video_is_evenly_spread_frames_at_its_mark(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for number in range(10):
        Image.new("RGB", (2, 2)).save(tmp_path / f"v/{number:02}.png")
    (tmp_path / "v/notes.txt").touch()
    row = said(("human", "<video>\nWhat?"), ("gpt", "A"), video="v")
    sample = read(row, tmp_path, frames=3)
    assert isinstance(sample, Sample)
    assert [path.name for path in sample.images] == ["01.png", "05.png", "08.png"]
    assert (sample.modality, sample.prompt) == ("video", "<image><image><image>\nWhat?")
    every = read(row, tmp_path, frames=20)
    assert isinstance(every, Sample) and len(every.images) == 10


ASK, TELL = ("human", "Q"), ("gpt", "A")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            said(("human", "<image> <image>"), TELL, image="a.png"),
            "has 2 <image> marks for 1 pictures; put one",
        ),
        (said(("human", "<image> Q"), TELL), "has 1 <image> marks for 0 pictures"),
        (said(("human", "<video> Q"), TELL), "has a <video> mark and no video; name its folder"),
        (said(ASK, TELL, image="../a.png"), "picture '../a.png' lies outside pictures; name a file below"),
        (said(ASK, TELL, image="/etc/a.png"), "picture '/etc/a.png' lies outside pictures"),
        (
            said(ASK, TELL, image="https://x.org/a.png"),
            "picture 'https://x.org/a.png' is an address; fetch it",
        ),
        (said(ASK, TELL, image="data:image/png;base64,AA"), "is an address; fetch it and name the file"),
        (said(ASK, TELL, images=["a.png", 5]), "picture 5 is no path; name a file below pictures"),
        (said(ASK, TELL, image="a.png", video="v"), "has image and video; keep one of them"),
        (said(ASK, TELL, video="nowhere"), "there is no folder pictures/nowhere with frames"),
        (said(ASK, TELL, id=None), "id is neither a text nor a number; correct it"),
        (said(("human", " "), TELL), "question 1 is empty; write it or take the turn out"),
        (said(ASK, ("gpt", "")), "answer 1 is empty; write it"),
        (said(ASK), "has no question with an answer; add one or take the row out"),
        (said(ASK, ASK, TELL), "has a turn of 'user' where the other should speak"),
        (said(ASK, TELL, ("system", "S"), ASK, TELL), "has a turn of 'system' where the other should speak"),
        (said(ASK, ("robot", "A")), "conversations, turn 2: from is 'robot'; it may be human, user, gpt"),
        (said(ASK, ("gpt", "\ud83d")), "holds half a character"),
        ({"conversations": "Hi"}, "conversations is no list of objects; write \\[{from, value}, ...\\]"),
        (messages(("user", 5), ("assistant", "A")), "turn 1: content is neither a text nor a list of parts"),
        (
            messages(("user", [{"type": "audio"}]), ("assistant", "A")),
            "turn 1: content has a part of type 'audio'; it may be text, image or image_url",
        ),
        (
            messages(("user", "Q"), ("assistant", [{"type": "image", "image": "a.png"}])),
            "turn 2: a picture of 'assistant'; pictures stand in questions only",
        ),
        ({"instruction": "Q", "output": 5}, "instruction, input and output must be texts; correct them"),
    ],
)
def test_a_wrong_row_tells_what_is_wrong(row: dict[str, Any], fault: str) -> None:
    found = read(row)
    assert isinstance(found, list) and len(found) == 1
    assert re.search(fault, found[0])


def test_a_row_tells_all_its_faults_and_one_of_another_kind_is_none() -> None:
    found = read(said(("human", ""), ("gpt", ""), images=["../a", "http://b"]))
    assert isinstance(found, list) and len(found) == 4
    reading = Reading("alpaca", FOLDER)
    assert sample_of(said(ASK, TELL), "n", reading) == [
        "has no field 'instruction'; add it, or name another kind"
    ]
    assert sample_of(5, "n", reading) == ["is no object; write one with the fields of its format"]
    assert kind_of({"text": "x"}) is None


def test_an_absolute_path_below_the_folder_is_allowed(tmp_path: Path) -> None:
    sample = read(said(ASK, TELL, image=str(tmp_path / "a.png")), tmp_path)
    assert isinstance(sample, Sample) and sample.images == (tmp_path / "a.png",)
