"""MMLU: 57 subjects of four-option questions without pictures, asked after five solved examples.

Cells are taken as they are written; the original code reads them with pandas, which turns an option such
as "None" into "nan". The question is a user's turn in the adapter's chat template; plain text behind the
decoder's begin token, as in the original, is what `eval/engines/lm_eval.py` asks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from eval.answer_files import refuse_none
from eval.benchmark import Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import ANEW, read_cells
from eval.results import write_text
from eval.scorers.mmlu import LETTERS, SUBJECTS, Item, prompt, read_letter, report, unweighted
from eval.scores import Mark, Scored

SHOTS = 5
SOURCE = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
OPTIONS = tuple(LETTERS)
"""As answers; the chat template says whether a blank stands before them."""


def needs(split: str) -> list[Needed]:
    """The tables of each subject: its examples and its questions."""
    files = [f"{part}/{subject}_{part}.csv" for part in ("dev", split) for subject in SUBJECTS]
    return [Needed(file, SOURCE) for file in files]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions of every subject that is there, in the order of the alphabet."""
    questions: list[Question] = []
    for subject in SUBJECTS:
        path = folder / split / f"{subject}_{split}.csv"
        if not path.is_file():
            continue
        shots = _items(folder / "dev" / f"{subject}_dev.csv")
        if len(shots) < SHOTS:
            raise EvalError(
                f"{folder}/dev/{subject}_dev.csv: has {len(shots)} of {SHOTS} examples; fetch the file again"
            )
        questions += [
            Question(
                f"{subject}/{place}",
                prompt(subject, shots[:SHOTS], item),
                options=OPTIONS,
                gold=item.answer,
                facts={"subject": subject, "question": item.question, "choices": list(item.choices)},
            )
            for place, item in enumerate(_items(path))
        ]
    if not questions:
        raise EvalError(
            f"{folder / split}: no file <subject>_{split}.csv in it; `python -m eval prepare` says where "
            "they are published"
        )
    return questions


def _items(path: Path) -> list[Item]:
    items = []
    for where, cells in read_cells(path, ","):
        if len(cells) != len(LETTERS) + 2:
            raise EvalError(f"{where}: {len(cells)} cells instead of 6; fetch the file again")
        if cells[-1] not in tuple(LETTERS):
            raise EvalError(f"{where}: answer {cells[-1]!r} is no letter A to D; fetch the file again")
        items.append(Item(cells[0], cells[1:-1], cells[-1]))
    return items


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """Shares over questions: all of them, those of a category, those of a subject."""
    check_complete(BENCHMARK, questions, answers)
    letters = {question.id: read_letter(answers[question.id]) for question in questions}
    scores = report(
        [(question.facts["subject"], letters[question.id] == question.gold) for question in questions]
    )
    return Scored(
        scores,
        {
            question.id: Mark(letters[question.id], float(letters[question.id] == question.gold))
            for question in questions
        },
        {
            "average over subjects": unweighted(scores),
            "official": {name: f"{score.value or 0:.3f}" for name, score in scores.items()},
        },
    )


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """A folder with a table for each subject: its row, right or not, and a probability for each letter.

    Only the chosen letter is known, so its probability is 1.
    """
    head = [*range(len(LETTERS) + 2), "model_correct", *(f"model_choice{letter}_probs" for letter in LETTERS)]
    for subject in dict.fromkeys(question.facts["subject"] for question in questions):
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(head)
        for question in questions:
            if question.facts["subject"] == subject:
                letter = read_letter(answers.get(question.id, ""))
                row = [question.facts["question"], *question.facts["choices"], question.gold]
                chosen = [float(letter == one) for one in LETTERS]
                table.writerow([*row, letter == question.gold, *chosen])
        write_text(path / f"{subject}.csv", buffer.getvalue())


def read(path: Path) -> dict[str, str]:
    """The likeliest letters of such a folder; no answer where no letter is likelier than none."""
    files = [file for file in sorted(path.glob("*.csv")) if file.stem in SUBJECTS]
    if not files:
        raise EvalError(f"{path}: no table of a subject in it, such as {SUBJECTS[0]}.csv; name their folder")
    answers = {}
    for file in files:
        (_, head), *rows = read_cells(file, ",", ANEW) or [("", [])]
        places = [
            [place for place, name in enumerate(head) if name.endswith(f"_choice{letter}_probs")]
            for letter in LETTERS
        ]
        if not all(len(found) == 1 for found in places):
            raise EvalError(f"{file}: has no four columns such as model_choiceA_probs; write the file anew")
        for number, (where, cells) in enumerate(rows):
            try:
                chances = [float(cells[found[0]]) for found in places]
            except (IndexError, ValueError):
                raise EvalError(f"{where}: a probability is no number; write the file anew") from None
            likely = max(chances)
            answers[f"{file.stem}/{number}"] = OPTIONS[chances.index(likely)] if likely > 0 else ""
    refuse_none(path, answers)
    return answers


BENCHMARK = Benchmark(
    name="mmlu",
    title="MMLU (5-shot)",
    version=1,
    rule="hendrycks/test",
    splits=("test", "val"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix="",
    max_new_tokens=4,
    sizes={"test": 14042, "val": 1531},
    published=(Published("language model of LLaVA-1.5-7B", "Average", 51.7, "text-only language model"),),
    chosen=True,
)
