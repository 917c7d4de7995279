"""ScienceQA (Lu et al. 2022, arXiv 2209.09513): multiple choice with hint, picture, both or neither.

An adapter that was trained on one of LaVIN's formats is asked in it; with the format `llava` the question is
put as LLaVA-1.5 puts it, and the letter alone is the answer. A file of LLaVA's answers is scored by
LLaVA's rule, over a whole split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.prompts import render
from data.sample import IMAGE, Sample
from data.scienceqa import LETTERS, Problem, load_split
from eval.answer_files import read_answers, refuse_none
from eval.benchmark import LETTER, Answers, Benchmark, Needed, Prompting, Published, Question, sample_of
from eval.errors import EvalError
from eval.files import ANEW, Row, read_json, read_object
from eval.results import write_text
from eval.scienceqa import extract, score
from eval.scorers import scienceqa as rules
from eval.scores import Mark, Scored

LLAVA = "llava"
SOURCE = "https://github.com/lupantech/ScienceQA (data/scienceqa; pictures by tools/download.sh)"


def load(root: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions of a split of `pid_splits.json`."""
    return [_question(problem, problem.picture(root)) for problem in load_split(root, split)]


def _question(problem: Problem, picture: Path | None) -> Question:
    letters = tuple(LETTERS[: len(problem.choices)])
    lines = [
        *([f"Context: {problem.hint}"] if problem.hint else []),
        problem.question,
        *(f"{letter}. {choice}" for letter, choice in zip(letters, problem.choices, strict=True)),
        LETTER,
    ]
    images = () if picture is None else (picture,)
    facts = {"problem": problem, "choices": problem.choices}
    return Question(problem.pid, "\n".join(lines), images, letters, problem.answer, facts)


def sample(question: Question, prompting: Prompting) -> Sample:
    """The question in the format of the adapter."""
    if prompting.format is None:
        raise EvalError(
            "does not say with which prompt format it was trained; give one, e.g. --format QCM-A, "
            f"or --format {LLAVA} for LLaVA's"
        )
    if prompting.format == LLAVA:
        return sample_of(question, prompting)
    picture = question.images[0] if question.images else None
    return render(question.facts["problem"], prompting.format, picture, prompting.captions)


def read_option(text: str, options: int) -> int | None:
    """The option an answer names.

    LaVIN's formats teach "The answer is B"; a text with these words is read for them. Any other is read as
    LLaVA does, which asks for the letter: "B" and "B. with its text" count, "B." and "b" do not.
    """
    if "The answer is" in text:
        return extract(text, options)
    return rules.option(rules.llava(text.strip()), options)


def score_answers(questions: Sequence[Question], answers: Answers) -> Scored:
    """The nine categories over exactly the questions that were answered."""
    asked = [question for question in questions if question.id in answers]
    problems = {question.id: question.facts["problem"] for question in asked}
    options = {
        question.id: read_option(answers[question.id], len(question.facts["choices"])) for question in asked
    }
    found = score(problems, options)
    marks = {pid: Mark(option, float(option == problems[pid].answer)) for pid, option in options.items()}
    return Scored(found.categories, marks)


class Given(NamedTuple):
    """What LLaVA read in an answer, and whether its prompt had the mark of a picture."""

    letter: str | None
    pictured: bool


def read_llava(path: Path) -> dict[str, Given] | None:
    """LLaVA's answer lines, or the analysis file it writes from them; None where it is neither."""
    if path.suffix == ".jsonl":
        # Quirk: of two lines to one question the last counts.
        return {row.id("question_id"): _given(row) for row in read_answers(path)}
    content = read_object(path, ANEW)
    if not all(isinstance(content.get(name), list) for name in ("correct", "incorrect")):
        return None
    whole = Row(str(path), content, ANEW)
    rows = [row for name in ("correct", "incorrect") for row in whole.rows(name)]
    refuse_none(path, rows)
    return {row.id("question_id"): _analysed(row) for row in rows}


def _given(row: Row) -> Given:
    return Given(rules.llava(row.text("text")), IMAGE in row.text("prompt", ""))


def _analysed(row: Row) -> Given:
    letter = row.text("parsed_ans")
    return Given(letter if letter in tuple(LETTERS) else None, row.any("is_multimodal") is True)


def score_llava(path: Path, given: Mapping[str, Given], problems: Sequence[Problem]) -> Scored:
    """The nine categories over a whole split; as in LLaVA's script, what has no answer is wrong."""
    missing = [problem.pid for problem in problems if problem.pid not in given]
    if len(missing) == len(problems):
        raise EvalError(f"{path}: holds no answer to any question of this split; name the split it is of")
    asked = {problem.pid: problem for problem in problems}
    nothing = Given(None, False)
    options = {
        pid: rules.option(given.get(pid, nothing).letter, len(problem.choices))
        for pid, problem in asked.items()
    }
    found = score(asked, options)
    right = {pid: option == asked[pid].answer for pid, option in options.items()}
    # Quirk: a question is one with a picture where the prompt of its answer says so, whatever the data say.
    pictured = [right[pid] for pid in asked if given.get(pid, nothing).pictured]
    notes = {
        "rule": "LLaVA's eval_science_qa.py",
        "official": {
            "Total": len(right),
            "Correct": sum(right.values()),
            "Accuracy": round(100 * sum(right.values()) / len(right), 2),
            "IMG-Accuracy": round(100 * sum(pictured) / len(pictured), 2) if pictured else None,
        },
        "without an answer, counted as wrong": len(missing),
    }
    marks = {pid: Mark(option, float(right[pid])) for pid, option in options.items()}
    return Scored(found.categories, marks, notes)


def read(path: Path) -> dict[str, str]:
    """An official result file (id -> index of the option, -1 for none), or one of LLaVA's."""
    if (given := read_llava(path)) is not None:
        return {pid: one.letter or "" for pid, one in given.items()}
    content = read_json(path, ANEW)
    results: Any = content.get("results", content)
    if not isinstance(results, Mapping) or not all(_is_index(index) for index in results.values()):
        raise EvalError(f"{path}: not a result file of ScienceQA (question id -> index of the option)")
    refuse_none(path, results)
    return {pid: LETTERS[index] if index >= 0 else "" for pid, index in results.items()}


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < len(LETTERS)


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The official result file."""
    asked = [question for question in questions if question.id in answers]
    found = {q.id: read_option(answers[q.id], len(q.facts["choices"])) for q in asked}
    right = sum(found[question.id] == question.gold for question in asked)
    content = {
        "acc": 100 * right / max(1, len(asked)),
        "correct": right,
        "count": len(asked),
        "results": {pid: -1 if option is None else option for pid, option in found.items()},
        "outputs": {question.id: answers[question.id] for question in asked},
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def needs(split: str) -> list[Needed]:
    """The files of a split."""
    return [
        Needed("problems.json", SOURCE), Needed("pid_splits.json", SOURCE), Needed("images", SOURCE),
    ]  # fmt: skip


_COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
_TABLE = {
    "LaVIN-7B": (89.25, 94.94, 85.24, 88.51, 87.46, 88.08, 90.16, 88.07, 89.41),
    "LaVIN-13B": (89.88, 94.49, 89.82, 88.95, 87.61, 91.85, 91.45, 89.72, 90.83),
    "LLaVA-13B": (90.36, 95.95, 88.00, 89.49, 88.00, 90.66, 90.93, 90.90, 90.92),
    "GPT-3 CoT": (75.44, 70.87, 78.09, 74.68, 67.43, 79.93, 78.23, 69.68, 75.17),
}

BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    version=2,
    rule="LaVIN eval.py; letters alone as LLaVA reads them; an answer without an option is wrong, not random",
    splits=("test", "val", "train", "minitest", "minival", "minitrain", "trainval"),
    needs=needs,
    load=load,
    score=score_answers,
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=64,
    sizes={"train": 12726, "val": 4241, "test": 4241},
    published=tuple(
        Published(system, column, value, "table of the LaVIN and LLaVA papers")
        for system, values in _TABLE.items()
        for column, value in zip(_COLUMNS, values, strict=True)
    ),
    sample=sample,
    chosen=True,
    headline="Avg",
    open_splits=True,
)
