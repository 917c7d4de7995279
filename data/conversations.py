"""One row of a file as a `Sample`, or everything that is wrong with it.

Kinds of rows, told by the fields they have:

- conversations (LLaVA, ShareGPT, captions): `conversations: [{from, value}]`, with `image`, `images` or
  `video` (a folder of frames)
- messages: `messages: [{role, content}]`, a content being a text or a list of parts
- alpaca: `instruction`, `input`, `output`

`<image>` in a question is the place of the next picture; there is one for every picture, or none at all.
A conversation may begin with answers and end with a question, as ShareGPT's do: these are left out, for
nothing is learned from them. Opens no pictures and builds no prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from data.sample import IMAGE, Sample, Turn

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
}
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_ADDRESS = re.compile(r"(?i)^(https?|ftp|data|file|s3|gs):")


class Wrong(Exception):
    """What is wrong with a row."""


@dataclass(frozen=True)
class Reading:
    """How rows become samples: where pictures lie, and how many frames a video gives."""

    kind: str
    images: Path
    frames: int = 8


def kind_of(row: object) -> str | None:
    """The kind of a row, or None where it is of none."""
    fields = row if isinstance(row, dict) else {}
    return next((kind for kind, (field, _) in _KINDS.items() if field in fields), None)


def sample_of(row: object, name: str, reading: Reading) -> Sample | list[str]:
    """The sample of a row, named `name` where it has no id, or all its faults."""
    if not isinstance(row, dict):
        return ["is no object; write one with the fields of its format"]
    field, turns_of = _KINDS[reading.kind]
    if field not in row:
        return [f"has no field {field!r}; add it, or name another kind"]
    row_id = row.get("id", name)
    if not isinstance(row_id, str | int) or isinstance(row_id, bool):
        return ["id is neither a text nor a number; correct it"]
    faults: list[str] = []
    images, video = _pictures(row, reading, faults)
    try:
        system, turns, parts = turns_of(row)
        images += _files(parts, reading, faults)
        turns = turns if faults else _marked(turns, len(images), video)
        faults += _text_faults(turns, system)
    except Wrong as wrong:
        faults.append(str(wrong))
    if faults:
        return faults
    *earlier, last = turns
    return Sample(
        id=str(row_id),
        prompt=last.question,
        response=last.answer,
        images=tuple(images),
        earlier=tuple(earlier),
        system=system,
        video=video,
    )


Conversation = tuple["str | None", list[Turn], list[object]]
"""System prompt, turns, and the names of pictures that stand in the turns themselves."""


def _conversation(row: dict[str, Any]) -> Conversation:
    return _turns(_spoken(row["conversations"], "conversations", "from", "value"))


def _messages(row: dict[str, Any]) -> Conversation:
    return _turns(_spoken(row["messages"], "messages", "role", "content"))


def _instruction(row: dict[str, Any]) -> Conversation:
    texts = [row.get(name) or "" for name in ("instruction", "input", "output")]
    if not all(isinstance(text, str) for text in texts):
        raise Wrong("instruction, input and output must be texts; correct them")
    instruction, given, output = texts
    return None, [Turn(f"{instruction}\n{given}" if given.strip() else instruction, output)], []


_KINDS: dict[str, tuple[str, Callable[[dict[str, Any]], Conversation]]] = {
    "conversations": ("conversations", _conversation),
    "messages": ("messages", _messages),
    "alpaca": ("instruction", _instruction),
}
KINDS = tuple(_KINDS)


def _spoken(turns: object, field: str, by: str, said: str) -> list[tuple[str, str, list[object]]]:
    """Role, text and pictures of everything that was said."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Wrong(f"{field} is no list of objects; write [{{{by}, {said}}}, ...]")
    spoken = []
    for number, turn in enumerate(turns, 1):
        role = turn.get(by)
        if not isinstance(role, str) or role not in ROLES:
            raise Wrong(f"{field}, turn {number}: {by} is {role!r}; it may be {', '.join(ROLES)}")
        text, parts = _content(turn.get(said), f"{field}, turn {number}: {said}")
        if parts and ROLES[role] != "user":
            raise Wrong(f"{field}, turn {number}: a picture of {role!r}; pictures stand in questions only")
        spoken.append((ROLES[role], text, parts))
    return spoken


def _content(content: object, where: str) -> tuple[str, list[object]]:
    """The text of a content, marks included, and its pictures."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Wrong(f"{where} is neither a text nor a list of parts; correct it")
    text, pictures = "", []
    for part in content:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("image", "image_url"):
            given = part.get(kind, part.get("path", part.get("url")))
            pictures.append(given.get("url") if isinstance(given, dict) else given)
            text += f"{IMAGE}\n"
        else:
            raise Wrong(f"{where} has a part of type {kind!r}; it may be text, image or image_url")
    return text, pictures


def _turns(spoken: Sequence[tuple[str, str, list[object]]]) -> Conversation:
    """Questions with their answers; what stands before the first or behind the last is left out."""
    system = None
    if spoken and spoken[0][0] == "system":
        system, spoken = spoken[0][1], spoken[1:]
    while spoken and spoken[0][0] == "assistant":
        spoken = spoken[1:]
    if spoken and spoken[-1][0] == "user":
        spoken = spoken[:-1]
    if not spoken:
        raise Wrong("has no question with an answer; add one or take the row out")
    for number, (role, _, _) in enumerate(spoken):
        if role != ("user", "assistant")[number % 2]:
            raise Wrong(
                f"has a turn of {role!r} where the other should speak; let question and answer alternate, "
                "system first"
            )
    pairs = zip(spoken[::2], spoken[1::2], strict=True)
    turns = [Turn(question, answer) for (_, question, _), (_, answer, _) in pairs]
    return system, turns, [part for _, _, parts in spoken for part in parts]


def _pictures(row: dict[str, Any], reading: Reading, faults: list[str]) -> tuple[list[Path], bool]:
    """The picture files that the row names itself, and whether they are frames of a video."""
    given = [name for name in ("image", "images", "video") if row.get(name) not in (None, [], "")]
    if len(given) > 1:
        faults.append(f"has {' and '.join(given)}; keep one of them")
        return [], False
    if not given:
        return [], False
    names = row[given[0]]
    if given == ["video"]:
        folders = _files([names], reading, faults)
        return (_frames(folders[0], reading.frames, faults) if folders else []), True
    return _files(names if isinstance(names, list) else [names], reading, faults), False


def _files(names: Sequence[object], reading: Reading, faults: list[str]) -> list[Path]:
    """The paths of names, of which none leads out of the folder of pictures."""
    paths = []
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            faults.append(f"picture {name!r} is no path; name a file below {reading.images}")
        elif _ADDRESS.match(name):
            faults.append(f"picture {name[:60]!r} is an address; fetch it and name the file")
        elif ".." in PurePath(name).parts or not (path := reading.images / name).is_relative_to(
            reading.images
        ):
            faults.append(f"picture {name!r} lies outside {reading.images}; name a file below it")
        else:
            paths.append(path)
    return paths


def _frames(folder: Path, most: int, faults: list[str]) -> list[Path]:
    """At most so many frames, evenly spread, each from the middle of its part of the video."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)
    except OSError:
        files = []
    if not files:
        faults.append(
            f"there is no folder {folder} with frames ({', '.join(FRAME_SUFFIXES)}); put them there"
        )
    if len(files) <= most:
        return files
    return [files[(2 * place + 1) * len(files) // (2 * most)] for place in range(most)]


def _marked(turns: list[Turn], pictures: int, video: bool) -> list[Turn]:
    """The same turns, once it is sure that each picture has a mark or none has."""
    if video:
        turns = [Turn(turn.question.replace("<video>", IMAGE), turn.answer) for turn in turns]
    marks = sum(turn.question.count(IMAGE) for turn in turns)
    if video and marks == 1:
        # The one mark of a video stands for all its frames.
        return [Turn(turn.question.replace(IMAGE, IMAGE * pictures), turn.answer) for turn in turns]
    if marks not in (0, pictures):
        raise Wrong(f"has {marks} {IMAGE} marks for {pictures} pictures; put one for each, or none")
    if any("<video>" in turn.question for turn in turns):
        raise Wrong("has a <video> mark and no video; name its folder of frames in the field video")
    return turns


def _text_faults(turns: Sequence[Turn], system: str | None) -> list[str]:
    """Turns without text, and texts that are no text."""
    faults = []
    for number, turn in enumerate(turns, 1):
        faults += [
            f"{what} {number} is empty; write it or take the turn out"
            for what, text in (("question", turn.question), ("answer", turn.answer))
            if not text.strip()
        ]
    texts = [system or "", *(text for turn in turns for text in (turn.question, turn.answer))]
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        faults.append("holds half a character (\\ud800 to \\udfff); correct it")
    return faults
