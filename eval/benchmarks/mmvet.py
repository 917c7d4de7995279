"""MM-Vet: open questions that need several capabilities at once; a judge grades each answer from 0 to 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.answer_files import check_own, check_present, llava_texts, refuse_none
from eval.benchmark import Answers, Benchmark, Needed, Published, Question
from eval.errors import EvalError
from eval.files import ANEW, Row, read_json, read_object, read_text, row_of
from eval.judge import Judge, Request
from eval.judged import Judged, Review, Reviews, Setting, check_reviews, fact, text_digest, unjudged
from eval.results import write_text
from eval.scorers.mmvet import (
    MAX_TOKENS,
    TEMPERATURES,
    grade_all,
    message,
    read_true_grade,
    tables,
)
from eval.scores import Mark, Score, Scored

DATA, SUBSET, PREAMBLE = "mm-vet.json", "bard_set.json", "preamble.txt"
ID = "v1_"  # begins every official id
SOURCE = "github.com/yuweihao/MM-Vet, releases, mm-vet.zip"


def needs(split: str) -> list[Needed]:
    """The questions, their pictures, and the worked examples for the judge."""
    subset = [Needed(SUBSET, "github.com/yuweihao/MM-Vet, bard_set.json")] if split == "bard_set" else []
    return [
        Needed(DATA, SOURCE),
        Needed("images", SOURCE),
        *subset,
        Needed(
            PREAMBLE, "github.com/yuweihao/MM-Vet, mm-vet_evaluator.ipynb: the text of `prompt`", judging=True
        ),
    ]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions in the order of the file."""
    path = folder / DATA
    every = {id_: row_of(value, f"{path}: {id_}") for id_, value in read_object(path).items()}
    rows = _subset(every, folder / SUBSET) if split == "bard_set" else every
    if not rows:
        raise EvalError(f"{path}: holds no questions; fetch the file again")
    preamble = folder / PREAMBLE
    shared: dict[str, Any] = {"preamble": read_text(preamble)} if preamble.exists() else {}
    shared["whole set"] = frozenset(every)
    questions = [_question(id_, row, folder, shared) for id_, row in rows.items()]
    check_present("mmvet", (question.images[0] for question in questions))
    return questions


def _subset(rows: Mapping[str, Row], path: Path) -> dict[str, Row]:
    ids = read_json(path)
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise EvalError(f"{path}: is not a list of ids; fetch the file again")
    if strange := [id_ for id_ in ids if id_ not in rows]:
        raise EvalError(f"{path}: {strange[0]!r} is not in {DATA}; fetch both files again")
    return {id_: row for id_, row in rows.items() if id_ in ids}


def _question(id_: str, row: Row, folder: Path, shared: Mapping[str, Any]) -> Question:
    capabilities = row.texts("capability")
    if not capabilities:
        raise EvalError(f"{row.where}: capability is empty; fetch the file again")
    return Question(
        id=id_,
        prompt=row.text("question"),
        images=(folder / "images" / row.text("imagename"),),
        gold=row.text("answer"),
        facts={"capability": capabilities, **shared},
    )


def read(path: Path) -> dict[str, str]:
    """The official prediction file, id -> text; or LLaVA's answer lines, whose ids are the bare numbers."""
    if path.suffix == ".jsonl":
        return {id_ if id_.startswith(ID) else ID + id_: text for id_, text in llava_texts(path).items()}
    row = row_of(read_json(path, ANEW), str(path), ANEW)
    refuse_none(path, row.values)
    return {id_: row.text(id_) for id_ in row.values}


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """The official prediction file."""
    found = {question.id: answers[question.id] for question in questions if question.id in answers}
    write_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def requests(questions: Sequence[Question], answers: Answers, setting: Setting) -> list[Request]:
    """What the judge is asked first; grades that cannot be read are asked for again."""
    asked = _asked(questions, answers)
    texts = _messages(asked, answers)
    return [
        _request(question, text, TEMPERATURES[0], run)
        for run in range(setting.runs)
        for question, text in zip(asked, texts, strict=True)
    ]


def _asked(questions: Sequence[Question], answers: Answers) -> list[Question]:
    check_own("mmvet", questions, answers)
    return [question for question in questions if question.id in answers]


def _messages(asked: Sequence[Question], answers: Answers) -> list[str]:
    return [
        message(
            fact(question, "preamble", "mmvet", PREAMBLE),
            question.prompt,
            question.gold,
            answers[question.id],
        )
        for question in asked
    ]


def _request(question: Question, text: str, temperature: float, run: int) -> Request:
    return Request(({"role": "user", "content": text},), temperature, MAX_TOKENS, run, question.id)


def review(
    questions: Sequence[Question], answers: Answers, judge: Judge, setting: Setting
) -> dict[str, list[Review]]:
    """The grades of every run."""
    asked = _asked(questions, answers)
    texts = _messages(asked, answers)
    count = len(asked)

    def ask(places: Sequence[int], messages: Sequence[str], temperature: float) -> list[str]:
        return judge.ask(
            [
                _request(asked[place % count], text, temperature, place // count)
                for place, text in zip(places, messages, strict=True)
            ]
        )

    grades = grade_all(texts * setting.runs, ask)
    found: dict[str, list[Review]] = {question.id: [] for question in asked}
    for place, grade in enumerate(grades):
        found[asked[place % count].id].append(Review(judge.name, grade.content, (grade.score,)))
    return found


def score_reviews(questions: Sequence[Question], answers: Answers, reviews: Reviews) -> Scored:
    """The official tables: mean over runs, in all and by capability."""
    del answers  # the grades say all
    # As in the official evaluator, grades of the rest of the set are passed over where a subset is scored.
    known, whole = {question.id for question in questions}, questions[0].facts["whole set"]
    check_own("mmvet", questions, reviews)
    reviews = {id_: some for id_, some in reviews.items() if id_ in known or id_ not in whole}
    check_reviews("mmvet", questions, reviews)
    needed = {question.id: question.facts["capability"] for question in questions}
    grades = {id_: [review.values[0] for review in reviews[id_]] for id_ in reviews}
    official = tables(needed, grades)
    means = {id_: sum(some) / len(some) for id_, some in grades.items()}
    scores = {"total": Score.mean(list(means.values()))}
    for name in _capabilities(needed):
        scores[name] = Score.mean([mean for id_, mean in means.items() if name in needed[id_]])
    marks = {id_: _mark(reviews[id_], means[id_]) for id_ in means}
    unread = sum(_unread(review) for some in reviews.values() for review in some)
    return Scored(
        scores=scores,
        marks=marks,
        notes={
            **_warning(unread, sum(map(len, reviews.values()))),
            "official": official,
            "unread grades": unread,
            "judges": sorted({review.model for some in reviews.values() for review in some}),
            "preamble_sha256": _digest(questions[0]),
        },
    )


def _capabilities(needed: Mapping[str, Sequence[str]]) -> list[str]:
    """The capabilities, those that most questions need first, as in the official table."""
    counts: dict[str, int] = {}
    for names in needed.values():
        for name in dict.fromkeys(names):
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])


def _unread(review: Review) -> bool:
    """Whether a grade is the 0 that stands for replies without one; the last reply may be a grade, unread."""
    return bool(review.content) and review.values[0] == 0.0 and read_true_grade(review.content) != 0.0


def _warning(unread: int, count: int) -> dict[str, str]:
    """What a reader of the table must know where some replies of the judge hold no grade."""
    if not unread:
        return {}
    return {"warning": f"{unread} of {count} replies hold no grade and count as 0, as in the official tables"}


def _mark(reviews: Sequence[Review], mean: float) -> Mark:
    if all(_unread(review) for review in reviews):
        return Mark(None, mean)
    return Mark("; ".join(f"{review.values[0]:g}" for review in reviews), mean)


def _digest(question: Question) -> str | None:
    return text_digest(question.facts["preamble"]) if "preamble" in question.facts else None


def read_grades(path: Path) -> dict[str, list[Review]]:
    """The official grade file: id -> lists of model, content and score."""
    found = {}
    for id_, value in read_object(path, ANEW).items():
        row = row_of(value, f"{path}: {id_}", ANEW)
        scores = row.any("score")
        models, contents = row.texts("model"), row.texts("content")
        if not isinstance(scores, list) or not len(scores) == len(models) == len(contents) > 0:
            raise EvalError(f"{row.where}: model, content and score are not equally long lists; judge again")
        if not all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1 for one in scores
        ):
            raise EvalError(f"{row.where}: a score is no number from 0 to 1; judge this question again")
        found[id_] = [
            Review(model, content, (float(one),))
            for model, content, one in zip(models, contents, scores, strict=True)
        ]
    return found


def write_grades(path: Path, questions: Sequence[Question], reviews: Reviews) -> None:
    """The official grade file, from which its evaluator can go on."""
    content = {
        question.id: {
            "model": [review.model for review in reviews[question.id]],
            "content": [review.content for review in reviews[question.id]],
            "score": [review.values[0] for review in reviews[question.id]],
        }
        for question in questions
        if question.id in reviews
    }
    write_text(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    version=1,
    rule="MM-Vet, mm-vet_evaluator: a judge's grades",
    splits=("test", "bard_set"),
    needs=needs,
    load=load,
    score=partial(unjudged, "mmvet"),
    read=read,
    write=write,
    suffix=".json",
    max_new_tokens=1024,
    sizes={"test": 218, "bard_set": 168},
    published=(
        Published("LLaVA-1.5-7B", "total", 31.1, "LLaVA MODEL_ZOO"),
        Published("LLaVA-1.5-13B", "total", 36.1, "LLaVA MODEL_ZOO"),
        Published("TinyLLaVA-Phi-2-SigLIP-3.1B", "total", 37.5, "TinyLLaVA_Factory README"),
        Published("LLaVA-NeXT-Vicuna-7B", "total", 43.9, "LLaVA MODEL_ZOO"),
    ),
)

JUDGED = Judged(
    judge="gpt-4-0613",
    pairs=False,
    requests=requests,
    review=review,
    score=score_reviews,
    read=read_grades,
    write=write_grades,
    swaps=False,
)
