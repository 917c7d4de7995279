"""COCO captions: one sentence for a picture, compared with the five or so that people wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.answer_files import add_answer, check_present, refuse_none
from eval.benchmark import Answers, Benchmark, Needed, Question
from eval.errors import EvalError
from eval.files import ANEW, Row, read_object, read_rows, row_of
from eval.resampling import score_of_kinds
from eval.results import write_text
from eval.scorers.captions import score_captions
from eval.scorers.ptb import tokenize_all
from eval.scores import Mark, Score, Scored

NAME = "coco_captions"
PROMPT = "Provide a one-sentence caption for the provided image."
KARPATHY = "dataset_coco.json"


@dataclass(frozen=True)
class _Picture:
    """One picture, its file below the data folder, and what people wrote of it."""

    id: int
    file: str
    references: list[str]


def needs(split: str) -> list[Needed]:
    """The references and the pictures."""
    if split == "karpathy":
        return [
            Needed(KARPATHY, "cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"),
            Needed("val2014", "http://images.cocodataset.org/zips/val2014.zip"),
        ]
    year = split.removeprefix("val")
    return [
        Needed(
            f"annotations/captions_{split}.json",
            f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip",
        ),
        Needed(split, f"http://images.cocodataset.org/zips/{split}.zip"),
    ]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """A question for each picture, in the order of the file, which the official scores follow too."""
    if split == "karpathy":
        pictures = _karpathy(folder / KARPATHY)
    else:
        pictures = _official(folder / f"annotations/captions_{split}.json", split)
    questions: dict[str, Question] = {}
    for one in pictures:
        id_ = str(one.id)
        if id_ in questions or not one.references:
            what = "is there twice" if id_ in questions else "has no caption"
            raise EvalError(f"{folder}: {split}: picture {id_} {what}; fetch the file again")
        questions[id_] = Question(
            id_, PROMPT, (folder / one.file,), gold=tuple(one.references), facts={"image_id": one.id}
        )
    if not questions:
        raise EvalError(f"{folder}: {split}: holds no pictures; fetch the files again")
    check_present(NAME, (question.images[0] for question in questions.values()))
    return list(questions.values())


def _official(path: Path, split: str) -> list[_Picture]:
    """The annotation file of COCO."""
    content = row_of(read_object(path), str(path))
    pictures = {
        row.whole("id"): _Picture(row.whole("id"), _file(row, split), []) for row in content.rows("images")
    }
    for row in content.rows("annotations"):
        id_ = row.whole("image_id")
        if id_ not in pictures:
            raise EvalError(f"{row.where}: picture {id_} is not in images; fetch the file again")
        pictures[id_].references.append(row.text("caption"))
    return list(pictures.values())


def _file(row: Row, split: str) -> str:
    prefix = "COCO_val2014_" if split == "val2014" else ""
    usual = f"{prefix}{row.whole('id'):012}.jpg"
    return f"{split}/{row.text('file_name', usual)}"


def _karpathy(path: Path) -> list[_Picture]:
    """Karpathy's file: the pictures of his test split."""
    rows = row_of(read_object(path), str(path)).rows("images")
    return [
        _Picture(
            row.whole("cocoid"),
            f"{row.text('filepath')}/{row.text('filename')}",
            [sentence.text("raw") for sentence in row.rows("sentences")],
        )
        for row in rows
        if row.text("split") == "test"
    ]


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The official scores of the pictures with a caption; rare words are counted over these alone."""
    known = {question.id for question in questions}
    if strange := [id_ for id_ in answers if id_ not in known]:
        raise EvalError(
            f"{NAME}: {len(strange)} captions belong to no picture (the first is {strange[0]!r}); name "
            "the data they were made on"
        )
    asked = [question for question in questions if question.id in answers]
    if not asked:
        raise EvalError(f"{NAME}: there are no captions to score; name the file of a finished run")
    captions = tokenize_all([answers[question.id] for question in asked])
    words = iter(tokenize_all([text for question in asked for text in question.gold]))
    references = {question.id: [next(words) for _ in question.gold] for question in asked}
    given = {question.id: caption for question, caption in zip(asked, captions, strict=True)}
    found = score_captions(references, given)
    scores = {"CIDEr": Score.mean(found.cider)}
    for n in (1, 2, 3, 4):
        scores[f"Bleu_{n}"] = score_of_kinds(partial(found.bleu, n), [1] * len(asked))
    scores["ROUGE_L"] = Score.mean(found.rouge)
    marks = {
        question.id: Mark(given[question.id] or None, min(1.0, value / 10))
        for question, value in zip(asked, found.cider, strict=True)
    }
    return Scored(
        scores=scores,
        marks=marks,
        notes={
            "official": {name: round(one.value or 0.0, 3) for name, one in scores.items()},
            "pictures": f"{len(asked)} of {len(questions)}",
            "tokenizer": "eval/scorers/ptb.py in the place of the Stanford PTB tokenizer (Java)",
        },
    )


def read(path: Path) -> dict[str, str]:
    """The official result file: a list of image_id and caption."""
    answers: dict[str, str] = {}
    for row in read_rows(path, ANEW):
        add_answer(answers, row.id("image_id"), row.text("caption"), row.where)
    refuse_none(path, answers)
    return answers


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The official result file."""
    found = [
        {"image_id": question.facts["image_id"], "caption": answers[question.id]}
        for question in questions
        if question.id in answers
    ]
    write_text(path, json.dumps(found, ensure_ascii=False) + "\n")


BENCHMARK = Benchmark(
    name=NAME,
    title="COCO captions",
    version=1,
    rule="coco-caption (pycocoevalcap), prompt of lmms-eval",
    splits=("karpathy", "val2014", "val2017"),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=64,
    sizes={"karpathy": 5000, "val2014": 40504, "val2017": 5000},
)
