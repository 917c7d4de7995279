"""MMBench: its official table with the pictures inside, asked as LLaVA asks it, scored in circles.

The dev split is scored; for the test split only the file for the server is written.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import llava_texts, refuse_none
from eval.benchmark import LETTER, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import Row, read_table
from eval.scorers.mmbench import BASE, Rotation, first_pass, hits, report
from eval.scorers.options import NONE, infer
from eval.scores import Mark, Score, Scored, unscored
from eval.unpack import unpack, write_bytes

FILES = {"dev": "mmbench_dev_20230712.tsv", "test": "mmbench_test_20230712.tsv"}
SOURCE = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
LETTERS = "ABCD"
LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION = 6  # LLaVA's upload has the predictions as its seventh column
LONGEST_REFERENCE = 64  # a shorter text in `image` is the index of the row that holds the picture

ILLEGAL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that no Excel table may hold

# Texts that pandas, and so every official script, takes for an empty cell.
_EMPTY = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
_EMPTY |= {"N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}


def needs(split: str) -> list[Needed]:
    """The table of the split."""
    return [Needed(FILES[split], f"{SOURCE}/{FILES[split]}")]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """Every row is a question: the rotations of the options stand as rows of their own."""
    path = folder / FILES[split]
    rows: dict[int, Row] = {}
    for row in read_table(path, "\t"):
        index = _index(row)
        if index in rows:
            raise EvalError(f"{row.where}: index {index} is there twice; fetch the file again")
        rows[index] = row
    if not rows:
        raise EvalError(f"{path}: holds no question; fetch the file again")
    return [_question(index, row, split, _picture(index, rows, unpacked)) for index, row in rows.items()]


def _index(row: Row) -> int:
    text = row.text("index")
    if not text.isdecimal():
        raise EvalError(f"{row.where}: index {text!r} is no whole number; fetch the file again")
    return int(text)


def _cell(row: Row, name: str, default: str | None = None) -> str | None:
    text = row.text(name, default)
    return None if text in _EMPTY else text


def _is_none(text: str | None) -> bool:
    """Whether LLaVA takes a cell for empty: in any case of the letters, unlike pandas."""
    return text is None or text.lower() in ("nan", "none")


def _picture(index: int, rows: Mapping[int, Row], unpacked: Path) -> Path:
    """The unpacked picture of a row; rows that share one share the file."""
    row = rows[index]
    text = row.text("image")
    if len(text) <= LONGEST_REFERENCE and text.isdecimal():
        owner = int(text)
        text = rows[owner].text("image") if owner in rows else ""
        if len(text) <= LONGEST_REFERENCE:
            raise EvalError(
                f"{row.where}: its picture is in row {owner}, which has none; fetch the file again"
            )
        index = owner
    elif index % BASE in rows and rows[index % BASE].text("image") == text:
        index %= BASE
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        content = b""
    if not content:
        raise EvalError(f"{row.where}: holds no picture in base64; fetch the file again")
    return unpack(unpacked, str(index), content)


def _question(index: int, row: Row, split: str, image: Path) -> Question:
    cells = {letter: _cell(row, letter, "") for letter in LETTERS}
    choices = {letter: text for letter, text in cells.items() if text is not None}
    # Quirk: LLaVA shows the options up to the first that is empty or says "none"; the scorer knows them all.
    shown = list(itertools.takewhile(lambda letter: not _is_none(cells[letter]), LETTERS))
    if len(choices) < 2:
        raise EvalError(f"{row.where}: has {len(choices)} options; fetch the file again")
    gold = None if split == "test" else row.text("answer")
    if gold is not None and gold not in choices:
        raise EvalError(f"{row.where}: answer {gold!r} is none of its options; fetch the file again")
    hint = _cell(row, "hint", "")
    lines = [row.text("question"), *(f"{letter}. {choices[letter]}" for letter in shown), LETTER]
    if hint is not None and not _is_none(hint):
        lines.insert(0, hint)
    kept = {name: value for name, value in row.values.items() if name not in LEFT_OUT}
    return Question(
        str(index),
        "\n".join(lines),
        (image,),
        tuple(shown),
        gold,
        {
            "choices": choices,
            "split": _cell(row, "split", ""),
            "category": _cell(row, "category", ""),
            "l2-category": _cell(row, "l2-category", ""),
            "row": kept,
        },
    )


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The circular report of the dev split."""
    check_complete(BENCHMARK, questions, answers)
    read = {question.id: infer(answers[question.id], question.facts["choices"]) for question in questions}
    read = {key: None if letter == NONE else letter for key, letter in read.items()}
    if any(question.gold is None for question in questions):
        return unscored(read)
    rotations = [
        Rotation(
            int(question.id),
            question.gold,
            read[question.id],
            question.facts["split"] or "none",
            question.facts["l2-category"],
            question.facts["category"],
        )
        for question in questions
    ]
    hit = hits(rotations)
    # A group is judged as one, so its hit is the mark of its first row; the rotations have none of their own.
    marks = {
        key: Mark(letter, float(hit[int(key)]) if int(key) in hit else None) for key, letter in read.items()
    }
    notes = {"first pass": first_pass(rotations).value, "groups": len(hit)}
    return Scored(_scores(report(rotations, hit)), marks, notes)


def _scores(table: Mapping[str, Mapping[str, Score]]) -> dict[str, Score]:
    """The report under one name for each score; the names of a further split say so."""
    scores: dict[str, Score] = {}
    for split, names in table.items():
        for name, score in names.items():
            scores[f"{name} ({split})" if scores and name in scores else name] = score
    return scores or {"Overall": Score.of(0, 0)}


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The table for the server: the official columns that are asked for, with the answers among them."""
    openpyxl = _openpyxl(path)
    book = openpyxl.Workbook()
    sheet = book.active
    names = list(questions[0].facts["row"])
    sheet.append([*names[:PREDICTION], "prediction", *names[PREDICTION:]])
    for number, question in enumerate(questions, 2):
        cells = question.facts["row"].values()
        values: list[Any] = ["" if value in _EMPTY else value for value in cells]
        values[names.index("index")] = int(question.id)
        values.insert(PREDICTION, answers.get(question.id, ""))
        for column, value in enumerate(values, 1):
            if isinstance(value, int):
                sheet.cell(number, column, value)
            elif value:
                cell = sheet.cell(number, column, ILLEGAL.sub("", value))
                cell.data_type = "s"  # otherwise an answer such as "=3" would be a formula
    content = io.BytesIO()
    book.save(content)
    book.close()
    write_bytes(path, content.getvalue())


def read(path: Path) -> dict[str, str]:
    """The predictions of such a table by index, or the texts in LLaVA's answer lines."""
    if path.suffix == ".jsonl":
        return llava_texts(path)
    openpyxl = _openpyxl(path)
    try:
        book = openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True)
    except OSError as error:
        raise EvalError(f"{path}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise EvalError(f"{path}: is no Excel table; write the file anew") from None
    head, *rows = list(book.active.iter_rows(values_only=True)) or [()]
    book.close()
    if not {"index", "prediction"} <= set(head):
        raise EvalError(f"{path}: has no columns index and prediction; write the file anew")
    index, prediction = head.index("index"), head.index("prediction")
    answers: dict[str, str] = {}
    for number, cells in enumerate(rows, 2):
        name = str(cells[index])
        if not name.isdecimal() or name in answers:
            raise EvalError(
                f"{path}: row {number}: index {name!r} is no new whole number; write the file anew"
            )
        text = cells[prediction] if prediction < len(cells) else None  # empty cells at the end are left out
        answers[name] = "" if text is None else str(text)
    refuse_none(path, answers)
    return answers


def _openpyxl(path: Path) -> Any:
    try:
        import openpyxl  # noqa: PLC0415  # only this table needs it
    except ImportError:
        raise EvalError(f"{path}: an Excel table needs the package openpyxl: pip install openpyxl") from None
    return openpyxl


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench",
    version=1,
    rule="VLMEvalKit, circular, exact matching",
    splits=("dev", "test"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".xlsx",
    max_new_tokens=1024,
    sizes={"dev": 4377},
    published=(
        Published("LLaVA-1.5-7B", "Overall", 64.3, "LLaVA MODEL_ZOO"),
        Published("LLaVA-1.5-13B", "Overall", 67.7, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "Overall", 67.4, "LLaVA MODEL_ZOO"),
        Published("TinyLLaVA Phi-2+SigLIP share (3.1B)", "Overall", 66.9, "technical report"),
    ),
)
