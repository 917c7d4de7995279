"""What many benchmarks share beside their rules: LLaVA's answer lines, and checks of answers and pictures.

Knows no benchmark and opens no picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from eval.benchmark import Question
from eval.errors import EvalError
from eval.files import ANEW, Row, read_lines
from eval.results import write_text


class Final(str):
    """An answer from an official prediction file: converted already, and scored as it stands.

    A model's own text is a plain `str`, which the benchmark converts first. Some converters change their
    own result when they go over it again, so the two must be told apart.
    """

    __slots__ = ()


_SCORING: ContextVar[bool] = ContextVar("scoring", default=False)


@contextmanager
def for_scoring() -> Iterator[None]:
    """Inside the block questions are loaded to score answers: their pictures may be missing."""
    before = _SCORING.set(True)
    try:
        yield
    finally:
        _SCORING.reset(before)


def only_scoring() -> bool:
    """Whether questions are loaded to score answers."""
    return _SCORING.get()


def check_present(name: str, pictures: Iterable[Path]) -> None:
    """Refuse a set of which picture files are missing, unless only answers are scored."""
    if only_scoring():
        return
    wanted = dict.fromkeys(pictures)
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise EvalError(
            f"{name}: {len(missing)} of {len(wanted)} pictures are missing (the first is {missing[0]}); "
            f"`python -m eval prepare {name}` says where they are published"
        )


def answer_line(question_id: str | int, prompt: str, text: str) -> dict[str, Any]:
    """One line of LLaVA's answer files; the official scripts do not read the last three fields."""
    head = {"question_id": question_id, "prompt": prompt, "text": text}
    return {**head, "answer_id": str(question_id), "model_id": "mma", "metadata": {}}


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a JSON Lines file."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_answers(path: Path) -> list[Row]:
    """The lines of an answer file, which must not be empty."""
    rows = read_lines(path, ANEW)
    refuse_none(path, rows)
    return rows


def refuse_none(path: Path, answers: Sized) -> None:
    """Refuse a file without answers."""
    if not answers:
        raise EvalError(f"{path}: holds no answers; name the file of a finished run")


def check_own(benchmark: str, questions: Iterable[Question], answers: Mapping[str, object]) -> None:
    """Refuse answers or reviews of which not one belongs to a question."""
    if answers and not any(question.id in answers for question in questions):
        raise EvalError(
            f"{benchmark}: the file holds answers to another benchmark (the first is to question "
            f"{next(iter(answers))!r}); name the answers to this one"
        )


def llava_texts(path: Path) -> dict[str, str]:
    """The texts in LLaVA's answer lines, by question."""
    answers: dict[str, str] = {}
    for row in read_answers(path):
        add_answer(answers, row.id("question_id"), row.text("text"), row.where)
    return answers


def add_answer(answers: dict[str, str], key: str, text: str, where: str) -> None:
    """Take up an answer; two to one question are refused."""
    if key in answers:
        raise EvalError(f"{where}: {key!r} is answered a second time; keep one of the two answers")
    answers[key] = text
