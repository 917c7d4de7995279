"""TextVQA 0.5.1, validation: questions about text in a picture, with or without the words an OCR found.

Published numbers of the LLaVA family were measured with these words in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.answer_files import add_answer, answer_line, check_present, read_answers, refuse_none, write_lines
from eval.benchmark import SHORT, Answers, Benchmark, Needed, Published, Question
from eval.errors import EvalError
from eval.files import ANEW, Row, read_object, read_rows, row_of
from eval.scorers.textvqa import ANSWERS, accuracy, question_key
from eval.scores import Mark, Score, Scored

QUESTIONS = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
SOURCE = "https://dl.fbaipublicfiles.com/textvqa"


def needs(split: str) -> list[Needed]:
    """The questions, the words of the OCR where they are asked with, and the pictures."""
    found = [Needed(QUESTIONS, f"{SOURCE}/data/{QUESTIONS}")]
    if split == "val":
        found.append(Needed(OCR, f"{SOURCE}/data/{OCR}"))
    # the pictures of val lie in the folder of train
    return [*found, Needed("train_images", f"{SOURCE}/images/train_val_images.zip")]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions in the order of the file."""
    rows = _rows(folder / QUESTIONS)
    if not rows:
        raise EvalError(f"{folder / QUESTIONS}: holds no questions; fetch the file again")
    words = _words(folder, rows) if split == "val" else None
    # Quirk: the official script finds annotations by picture and lower-cased question, so where two agree
    # in both, the last one's answers stand for both.
    humans = {_key(row): _humans(row) for row in rows}
    keys = _unique([_key(row) for row in rows])
    questions = [
        _question(folder, row, key, humans[_key(row)], words) for row, key in zip(rows, keys, strict=True)
    ]
    check_present("textvqa", (question.images[0] for question in questions))
    return questions


def _rows(path: Path) -> list[Row]:
    return row_of(read_object(path), str(path)).rows("data")


def _words(folder: Path, rows: Sequence[Row]) -> dict[str, list[str]]:
    """The words found in each picture; some releases have them beside the questions."""
    if not all("ocr_tokens" in row.values for row in rows):
        rows = _rows(folder / OCR)
    return {row.text("image_id"): row.texts("ocr_tokens") for row in rows}


def _humans(row: Row) -> tuple[str, ...]:
    answers = row.texts("answers")
    if len(answers) != ANSWERS:
        raise EvalError(f"{row.where}: {len(answers)} answers, not {ANSWERS}; fetch the file again")
    return tuple(answers)


def _key(row: Row) -> str:
    return _id(row.text("image_id"), row.text("question").lower())


def _id(picture: str, question: str) -> str:
    """Picture and question, which together are all that an official answer file says."""
    return f"{picture}: {question}"


def _unique(keys: Sequence[str]) -> list[str]:
    """Keys told apart by a number where one occurs again."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        found.append(key if seen[key] == 1 else f"{key} #{seen[key]}")
    return found


def _question(
    folder: Path, row: Row, key: str, humans: tuple[str, ...], words: dict[str, list[str]] | None
) -> Question:
    picture = row.text("image_id")
    lines = [row.text("question").capitalize()]  # as LLaVA's list has it
    if words is not None:
        if picture not in words:
            raise EvalError(f"{folder / OCR}: has nothing about picture {picture}; fetch the file again")
        lines.append(f"Reference OCR token: {', '.join(words[picture])}")
    return Question(
        id=key,
        prompt="\n".join([*lines, SHORT]),
        images=(folder / "train_images" / f"{picture}.jpg",),
        gold=humans,
        facts={"image_id": picture, "number": str(row.values.get("question_id"))},
    )


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The mean accuracy over the questions that are answered, as the official script takes it."""
    numbers = {one.facts["number"]: one.id for one in questions}  # EvalAI's name for a question
    answers = {numbers.get(key, key): text for key, text in answers.items()}
    found = {one.id: accuracy(answers[one.id], one.gold) for one in questions if one.id in answers}
    if strange := [key for key in answers if key not in found]:
        raise EvalError(
            f"textvqa: {len(strange)} answers belong to no question (the first is {strange[0]!r}); "
            "name the data they were made on"
        )
    values = [soft.accuracy for soft in found.values()]
    mean = Score.mean(values)
    marks = {key: Mark(soft.read or None, soft.accuracy) for key, soft in found.items()}
    official = {
        "Samples": len(values),
        "Accuracy": None if mean.value is None else round(100 * mean.value, 2),
    }
    return Scored({"Accuracy": mean}, marks, {"official": official})


def read(path: Path) -> dict[str, str]:
    """The answers of LLaVA's answer lines, by picture and by the question in the prompt; or of the list that
    EvalAI takes, by the number of the question."""
    answers: dict[str, str] = {}
    if path.suffix == ".json":
        for row in read_rows(path, ANEW):
            add_answer(answers, row.id("question_id"), row.text("answer"), row.where)
        refuse_none(path, answers)
        return answers
    rows = read_answers(path)
    for row, key in zip(rows, _unique([_key_of_answer(row) for row in rows]), strict=True):
        add_answer(answers, key, row.text("text"), row.where)
    return answers


def _key_of_answer(row: Row) -> str:
    try:
        return _id(row.id("question_id"), question_key(row.text("prompt")))
    except EvalError as error:
        reason = str(error).removeprefix(f"{row.where}: ")
        raise EvalError(f"{row.where}: {reason}") from None


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """LLaVA's answer lines, whose id is that of the picture."""
    asked = [question for question in questions if question.id in answers]
    write_lines(path, (answer_line(one.facts["image_id"], one.prompt, answers[one.id]) for one in asked))


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    version=1,
    rule="LLaVA's eval_textvqa.py (M4C's normaliser on both sides)",
    splits=("val", "val-no-ocr"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".jsonl",
    max_new_tokens=128,
    sizes={"val": 5000, "val-no-ocr": 5000},
    published=(
        Published("LLaVA-1.5-7B", "Accuracy", 58.2, "LLaVA MODEL_ZOO, with OCR"),
        Published("LLaVA-1.5-13B", "Accuracy", 61.3, "LLaVA MODEL_ZOO, with OCR"),
        Published("TinyLLaVA-Phi-2-SigLIP-3.1B", "Accuracy", 60.3, "TinyLLaVA_Factory README, with OCR"),
    ),
)
