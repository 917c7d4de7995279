"""VQAv2: open questions about COCO pictures with ten human answers each.

A model's texts go through M4C's normaliser first, as LLaVA does before it uploads: the official rule
compares them with identical human answers as they stand, and would count "Yes" as wrong there. The answers
of an official result file are scored as they stand. Answers to the test splits are not public; their
official file is uploaded.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import Final, add_answer, check_present, llava_texts, refuse_none
from eval.benchmark import SHORT, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import ANEW, Row, read_object, read_rows, row_of
from eval.results import write_text
from eval.scorers import vqa
from eval.scores import Mark, Score, Scored, unscored

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
PICTURES = {"val": "val2014", "test-dev": "test2015", "test": "test2015"}
TEST = "v2_OpenEnded_mscoco_test2015_questions.json"
QUESTIONS = {
    "val": "v2_OpenEnded_mscoco_val2014_questions.json",
    "test-dev": "v2_OpenEnded_mscoco_test-dev2015_questions.json",
    "test": TEST,
}
ANSWER_TYPES = ("yes/no", "number", "other")


def needs(split: str) -> list[Needed]:
    """Questions and pictures; annotations of val, and the list of all test questions for the upload."""
    files = dict.fromkeys([QUESTIONS[split], ANNOTATIONS if split == "val" else TEST])
    pictures = PICTURES[split]
    found = [Needed(name, "https://visualqa.org/download.html") for name in files]
    return [*found, Needed(pictures, f"http://images.cocodataset.org/zips/{pictures}.zip")]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions in the order of the file."""
    annotations = _annotations(folder / ANNOTATIONS) if split == "val" else None
    path = folder / QUESTIONS[split]
    found: dict[str, Question] = {}
    for row in _rows(path, "questions"):
        key = str(row.whole("question_id"))
        if key in found:
            raise EvalError(f"{row.where}: a second question {key}; fetch the file again")
        picture = f"COCO_{PICTURES[split]}_{row.whole('image_id'):012d}.jpg"
        gold, facts = None, {}
        if annotations is None:
            facts = {"all questions": str(folder / TEST)}
        elif key in annotations:
            gold, facts = annotations[key]
        else:
            raise EvalError(f"{folder / ANNOTATIONS}: has no answers to question {key}; fetch the file again")
        images = (folder / PICTURES[split] / picture,)
        found[key] = Question(key, f"{row.text('question')}\n{SHORT}", images, gold=gold, facts=facts)
    if not found:
        raise EvalError(f"{path}: holds no questions; fetch the file again")
    if annotations is not None and len(annotations) > len(found):
        raise EvalError(
            f"{path}: lacks {len(annotations) - len(found)} questions that are answered; fetch it again"
        )
    check_present("vqav2", (question.images[0] for question in found.values()))
    return list(found.values())


def _rows(path: Path, name: str) -> list[Row]:
    return row_of(read_object(path), str(path)).rows(name)


def _annotations(path: Path) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    """The human answers to every question, and its types."""
    found = {}
    for row in _rows(path, "annotations"):
        humans = row.rows("answers")
        # The official rule leaves out what equals the record it looks at, so records must differ.
        if len({human.id("answer_id") for human in humans}) != len(humans) or len(humans) < 2:
            raise EvalError(
                f"{row.where}: its answers are too few or share an answer_id; fetch the file again"
            )
        types = {name: row.text(name) for name in ("answer_type", "question_type")}
        found[str(row.whole("question_id"))] = (tuple(human.text("answer") for human in humans), types)
    return found


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The official accuracies of val, over all of it and by type; nothing where answers are not public."""
    if any(question.gold is None for question in questions):
        read = {one.id: _uploaded(answers[one.id]) for one in questions if one.id in answers}
        return unscored({key: text or None for key, text in read.items()})
    check_complete(BENCHMARK, questions, answers)
    found = {one.id: vqa.official(_uploaded(answers[one.id]), one.gold) for one in questions}
    values = [found[one.id].accuracy for one in questions]
    scores = {"Overall": Score.mean(values)}
    official: dict[str, Any] = {"overall": _percent(values)}
    for title, fact in (("perAnswerType", "answer_type"), ("perQuestionType", "question_type")):
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for question in questions:
            groups[question.facts[fact]].append(found[question.id].accuracy)
        prefix = "" if fact == "answer_type" else "question type: "
        scores |= {f"{prefix}{kind}": Score.mean(groups[kind]) for kind in _ordered(groups)}
        official[title] = {kind: _percent(groups[kind]) for kind in _ordered(groups)}
    notes: dict[str, Any] = {"official": official}
    if not all(isinstance(answers[one.id], Final) for one in questions):
        raw = [vqa.official(answers[one.id], one.gold).accuracy for one in questions]
        notes["overall of answers that M4C did not normalise"] = _percent(raw)
    marks = {key: Mark(soft.read or None, soft.accuracy) for key, soft in found.items()}
    return Scored(scores, marks, notes)


def _uploaded(text: str) -> str:
    """The answer as it stands in the official file; M4C's normaliser twice is not the same as once."""
    return text if isinstance(text, Final) else vqa.m4c(text)


def _ordered(kinds: Iterable[str]) -> list[str]:
    """Answer types as papers list them, whatever else by name."""
    order = {kind: place for place, kind in enumerate(ANSWER_TYPES)}
    return sorted(kinds, key=lambda kind: (order.get(kind, len(order)), kind))


def _percent(values: Sequence[float]) -> float:
    """As the official script rounds it."""
    return round(100 * sum(values) / len(values), 2)


def read(path: Path) -> dict[str, str]:
    """The answers of an official result file, or the texts in LLaVA's answer lines."""
    if path.suffix == ".jsonl":
        return llava_texts(path)
    answers: dict[str, str] = {}
    for row in read_rows(path, ANEW):
        add_answer(answers, row.id("question_id"), Final(row.text("answer")), row.where)
    refuse_none(path, answers)
    return answers


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The official result file; that of a test split has all test questions, empty where not asked."""
    lists = {question.facts["all questions"] for question in questions if question.gold is None}
    ids = [int(question.id) for question in questions]
    if lists:
        ids = [row.whole("question_id") for row in _rows(Path(lists.pop()), "questions")]
        if strange := {question.id for question in questions}.difference(map(str, ids)):
            raise EvalError(
                f"{path}: question {min(strange)} is not among the test questions; fetch {TEST} again"
            )
    rows = [{"question_id": number, "answer": _uploaded(answers.get(str(number), ""))} for number in ids]
    write_text(path, json.dumps(rows, ensure_ascii=False) + "\n")


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    version=1,
    rule="the official VQA evaluation; a model's texts go through M4C's normaliser, as LLaVA uploads them",
    splits=("val", "test-dev", "test"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=128,
    sizes={"val": 214_354, "test-dev": 107_394, "test": 447_793},
    published=(
        Published("LLaVA-1.5-7B", "Overall", 78.5, "LLaVA MODEL_ZOO, on test-dev"),
        Published("LLaVA-1.5-13B", "Overall", 80.0, "LLaVA MODEL_ZOO, on test-dev"),
        Published("LLaVA-NeXT-Vicuna-7B", "Overall", 81.8, "LLaVA MODEL_ZOO, on test-dev"),
        Published("TinyLLaVA-Phi-2-SigLIP-3.1B", "Overall", 80.1, "TinyLLaVA_Factory README, on test-dev"),
    ),
)
