"""AI2D: questions about school diagrams with four options, from the Parquet files of lmms-lab/ai2d."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.answer_files import add_answer, read_answers, write_lines
from eval.benchmark import LETTER, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import Row
from eval.scorers.ai2d import lmms_filtered, lmms_match, vlmevalkit_letter
from eval.scorers.options import NONE
from eval.scores import Mark, Score, Scored
from eval.unpack import picture, read_parquet, shards, unpack

LETTERS = "ABCDEFGH"


def needs(split: str) -> list[Needed]:
    """The Parquet files."""
    return [Needed(f"data/{split}-*.parquet", "https://huggingface.co/datasets/lmms-lab/ai2d")]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """One question for each row; the set has no ids, so their places count."""
    questions: list[Question] = []
    for path in shards(folder / "data", split):
        for row in read_parquet(path):
            questions.append(_question(row, str(len(questions)), unpacked))
    return questions


def _question(row: Row, name: str, unpacked: Path) -> Question:
    options = row.texts("options")
    if not 2 <= len(options) <= len(LETTERS):
        raise EvalError(f"{row.where}: has {len(options)} options; fetch the file again")
    answer = row.id("answer")
    if not answer.isdecimal() or int(answer) >= len(options):
        raise EvalError(f"{row.where}: answer {answer!r} is the place of no option; fetch the file again")
    content = picture(row, "image")
    if content is None:
        raise EvalError(f"{row.where}: has no picture; fetch the file again")
    choices = dict(zip(LETTERS, options, strict=False))
    lines = [f"{letter}. {text}" for letter, text in choices.items()]
    return Question(
        name,
        "\n".join([row.text("question"), *lines, LETTER]),
        (unpack(unpacked, name, content),),
        tuple(choices),
        LETTERS[int(answer)],
        {"choices": choices},
    )


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The shares of right answers by VLMEvalKit's rule and by that of lmms-eval."""
    check_complete(BENCHMARK, questions, answers)
    letters = {
        question.id: vlmevalkit_letter(answers[question.id], question.facts["choices"])
        for question in questions
    }
    right = {question.id: letters[question.id] == question.gold for question in questions}
    matches = sum(lmms_match(answers[question.id], question.gold) for question in questions)
    return Scored(
        {
            "Overall": Score.of(sum(right.values()), len(right)),
            "exact_match (lmms-eval)": Score.of(matches, len(right)),
        },
        {key: Mark(None if letter == NONE else letter, float(right[key])) for key, letter in letters.items()},
    )


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The samples as lmms-eval logs them, one line each."""
    lines = [
        {
            "doc_id": int(question.id),
            "target": question.gold,
            "resps": [[answers[question.id]]],
            "filtered_resps": [lmms_filtered(answers[question.id])],
            "exact_match": float(lmms_match(answers[question.id], question.gold)),
        }
        for question in questions
        if question.id in answers
    ]
    write_lines(path, lines)


def read(path: Path) -> dict[str, str]:
    """The unfiltered responses of such a log."""
    answers: dict[str, str] = {}
    for row in read_answers(path):
        response = row.any("resps")
        while isinstance(response, list) and len(response) == 1:  # one list for each sampling
            response = response[0]
        if not isinstance(response, str):
            raise EvalError(f"{row.where}: resps holds no single text; write the file anew")
        add_answer(answers, row.id("doc_id"), response, row.where)
    return answers


BENCHMARK = Benchmark(
    name="ai2d",
    title="AI2D",
    version=1,
    rule="VLMEvalKit, exact matching; lmms-eval beside it",
    splits=("test",),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".jsonl",
    max_new_tokens=16,
    sizes={"test": 3088},
    published=(Published("LLaVA-1.5-7B", "Overall", 54.8, "VLMEvalKit, in the table of xtuner"),),
)
