"""MMMU: college questions about pictures in thirty subjects, from the Parquet files of MMMU/MMMU.

Asked as in the official configuration for LLaVA-1.5: the marks `<image 1>` stay in the text, and the first
picture stands in front. That code does not ask a model where the options hold several pictures; here it is
asked, and shown all pictures that question and options name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import Final, add_answer, refuse_none
from eval.benchmark import LETTER, SHORT, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import ANEW, Row, read_json, row_of
from eval.results import write_text
from eval.scorers.mmmu import (
    MULTIPLE_CHOICE,
    SEED,
    SUBJECTS,
    Response,
    judge,
    official_draw,
    parse_choice,
    report,
)
from eval.scores import Mark, Score, Scored, unscored
from eval.unpack import picture, read_parquet, shards, unpack

SOURCE = "https://huggingface.co/datasets/MMMU/MMMU"
HIDDEN = "?"  # stands for the answers of the test split
_MARK = re.compile(r"<image (\d+)>")


def needs(split: str) -> list[Needed]:
    """The Parquet files of each subject."""
    return [Needed(f"{subject}/{split}-*.parquet", SOURCE) for subject in SUBJECTS]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions of every subject that is there, in the official order."""
    found: dict[str, Question] = {}
    for subject in SUBJECTS:
        if not (folder / subject).is_dir():
            continue
        for path in shards(folder / subject, split):
            for row in read_parquet(path):
                question = _question(row, subject, unpacked)
                if question.id in found:
                    raise EvalError(f"{row.where}: id {question.id} is there twice; fetch the file again")
                found[question.id] = question
    if not found:
        raise EvalError(
            f"{folder}: no folder of a subject in it, such as {SUBJECTS[0]}; `python -m eval prepare` says "
            "where they are published"
        )
    return list(found.values())


def _question(row: Row, subject: str, unpacked: Path) -> Question:
    pid, asked = row.text("id"), row.text("question")
    if not re.fullmatch(r"\w+", pid):
        raise EvalError(f"{row.where}: id {pid!r} is no plain name; fetch the file again")
    choices = _choices(row) if row.text("question_type") == MULTIPLE_CHOICE else None
    images = tuple(
        unpack(unpacked, f"{pid}_{number}", content)
        for number in _shown(row, asked, choices or {})
        if (content := picture(row, f"image_{number}")) is not None
    )
    if not images:
        raise EvalError(f"{row.where}: has no picture; fetch the file again")
    lines = [f"({letter}) {text}" for letter, text in (choices or {}).items()]
    return Question(
        pid,
        f"{asked}\n\n{SHORT}" if choices is None else "\n".join([asked, "", *lines, "", LETTER]),
        images,
        tuple(choices or ()),
        _gold(row, choices),
        {"subject": subject, "choices": choices},
    )


def _choices(row: Row) -> dict[str, str]:
    options = _literal(row, "options")
    if not isinstance(options, list) or not options or not all(isinstance(one, str) for one in options):
        raise EvalError(f"{row.where}: options is no list of texts; fetch the file again")
    return {chr(ord("A") + place): text for place, text in enumerate(options)}


def _literal(row: Row, name: str) -> Any:
    """A column that holds a list as Python writes it."""
    try:
        return ast.literal_eval(row.text(name))
    except (ValueError, SyntaxError, RecursionError):
        raise EvalError(f"{row.where}: {name} is no list; fetch the file again") from None


def _shown(row: Row, asked: str, choices: dict[str, str]) -> list[int]:
    """The numbers of the pictures to show."""
    in_options = [int(number) for text in choices.values() for number in _MARK.findall(text)]
    if len(in_options) <= 1:
        return [1]
    numbers = dict.fromkeys([*(int(number) for number in _MARK.findall(asked)), *in_options])
    return [number for number in numbers if f"image_{number}" in row.values]


def _gold(row: Row, choices: dict[str, str] | None) -> str | list[str] | None:
    answer = row.text("answer")
    if answer == HIDDEN:
        return None
    if choices is None:
        return _several(answer) or answer
    if answer not in choices:
        raise EvalError(f"{row.where}: answer {answer!r} is none of its options; fetch the file again")
    return answer


def _several(answer: str) -> list[str] | None:
    """The right answers of an open question that has more than one: a list as Python writes it."""
    try:
        found = ast.literal_eval(answer) if answer.startswith("[") else None
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """Shares of what was answered; a choice that cannot be read is wrong, and random under a second name."""
    answered = [question for question in questions if question.id in answers]
    check_complete(BENCHMARK, answered, answers)
    if any(question.gold is None for question in answered):
        return unscored({question.id: _read(question, answers[question.id]) for question in answered})
    responses = [
        Response(
            one.id,
            one.facts["subject"],
            one.gold,
            one.facts["choices"],
            answers[one.id],
            parsed=isinstance(answers[one.id], Final),
        )
        for one in answered
    ]
    judged = {response.id: judge(response) for response in responses}
    scores = report([(response.subject, judged[response.id].right) for response in responses])
    draw = official_draw()
    drawn = report([(response.subject, judge(response, draw).right) for response in responses])
    unread = [key for key, found in judged.items() if found.read is None]
    return Scored(
        scores,
        {key: Mark(found.read, float(found.right)) for key, found in judged.items()},
        {
            "official": _rounded(scores),
            f"official, random where unread (seed {SEED})": _rounded(drawn),
            "unread": unread,
        },
    )


def _read(question: Question, text: str) -> str | None:
    """The letter of a choice, None if there is none; an open answer as it is."""
    choices = question.facts["choices"]
    if choices is None:
        return text
    if isinstance(text, Final):
        return text if text in choices else None
    return parse_choice(text, choices)


def _rounded(scores: dict[str, Score]) -> dict[str, float | None]:
    """As the official code prints them."""
    return {name: None if score.value is None else round(score.value, 3) for name, score in scores.items()}


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The file that the official code evaluates: a letter for each choice, the text of each open answer.

    A choice that cannot be read keeps its text, which is wrong there too.
    """
    content = {
        question.id: _read(question, answers[question.id]) or answers[question.id]
        for question in questions
        if question.id in answers
    }
    write_text(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, str]:
    """The answers of such a file, where a choice is its letter and nothing else; or the responses in an
    `output.json`, or in a folder with one for each subject."""
    files = [path]
    if path.is_dir():
        files = [file for name in SUBJECTS if (file := path / name / "output.json").is_file()]
        if not files:
            raise EvalError(f"{path}: no file such as {SUBJECTS[0]}/output.json in it; name their folder")
    answers: dict[str, str] = {}
    for file in files:
        content = read_json(file, ANEW)
        if isinstance(content, list):
            for place, item in enumerate(content, 1):
                row = row_of(item, f"{file}: item {place}", ANEW)
                add_answer(answers, row.id("id"), row.text("response"), row.where)
        else:
            whole: Row = row_of(content, str(file), ANEW)
            for name in whole.values:
                add_answer(answers, name, Final(whole.text(name)), str(file))
    refuse_none(path, answers)
    return answers


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU",
    version=1,
    rule="MMMU main_parse_and_eval.py; unreadable choices are wrong",
    splits=("validation", "test"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=128,
    sizes={"validation": 900, "test": 10500},
    published=(
        Published("LLaVA-1.5-7B", "Overall", 35.3, "table of xtuner"),
        Published("LLaVA-1.5-13B", "Overall", 36.7, "outputs stored with MMMU, random where unread"),
        Published("TinyLLaVA Phi-2+SigLIP share (3.1B)", "Overall", 38.4, "TinyLLaVA_Factory README"),
        Published("LLaVA-NeXT-Vicuna-7B", "Overall", 35.8, "LLaVA MODEL_ZOO"),
    ),
)
