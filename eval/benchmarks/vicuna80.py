"""Vicuna-80: eighty questions without pictures; a judge compares each answer with a baseline's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.answer_files import llava_texts
from eval.benchmark import Benchmark, Needed, Question
from eval.errors import EvalError
from eval.files import Row
from eval.judge import Request
from eval.judged import fact, unjudged
from eval.reviews import Comparing, by_id, pair_request, rules_of, write_texts
from eval.scorers.pairs import Rule, read_llava

NAME = "vicuna80"
TABLE = "github.com/haotian-liu/LLaVA, llava/eval/table"
BASELINE = "answer_gpt35.jsonl"


def needs(split: str) -> list[Needed]:
    """Questions, the answers they are compared with, and the rules for the judge."""
    return [
        Needed("question.jsonl", f"{TABLE}/question.jsonl"),
        Needed(BASELINE, f"{TABLE}/answer/{BASELINE}"),
        Needed("rule.json", f"{TABLE}/rule.json", judging=True),
    ]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions with the baseline's answers."""
    references = by_id(folder / BASELINE)
    rules = rules_of(folder / "rule.json")
    rows = by_id(folder / "question.jsonl")
    return [_question(id_, row, references, rules) for id_, row in rows.items()]


def _question(id_: str, row: Row, references: Mapping[str, Row], rules: Mapping[str, Rule]) -> Question:
    if id_ not in references:
        raise EvalError(f"{row.where}: {BASELINE} has no answer to {id_}; fetch both files again")
    category = row.text("category")
    facts: dict[str, Any] = {
        "question_id": row.any("question_id"),
        "category": category,
        "reference": references[id_].text("text"),
        "reference_id": references[id_].text("answer_id", id_),
    }
    if rules:
        name = category if category in rules else "default"
        if name not in rules:
            raise EvalError(f"{row.where}: rule.json has no rule {name!r}; fetch the file again")
        facts["rule"] = rules[name]
    return Question(id_, _text(row), facts=facts)


def _text(row: Row) -> str:
    """FastChat's later files have a list of turns, of which these questions have one."""
    if "turns" not in row.values:
        return row.text("text")
    turns = row.texts("turns")
    if len(turns) != 1:
        raise EvalError(f"{row.where}: has {len(turns)} turns, not one; fetch the file of 80 questions")
    return turns[0]


def _request(question: Question, answer: str, swapped: bool, draw: int) -> Request:
    rule: Rule = fact(question, "rule", NAME, "rule.json")
    return pair_request(question, rule, answer, swapped, draw)


COMPARING = Comparing(
    benchmark=NAME,
    ask=_request,
    read=read_llava,
    category=lambda question: None,  # the summary script knows none for these files
    columns=("all", "first_x10", "second_x10"),
)

BENCHMARK = Benchmark(
    name=NAME,
    title="Vicuna-80",
    version=1,
    rule="LLaVA, eval_gpt_review and summarize_gpt_review",
    splits=("test",),
    needs=needs,
    load=load,
    score=partial(unjudged, NAME),
    read=llava_texts,
    write=write_texts,
    suffix=".jsonl",
    max_new_tokens=1024,
    sizes={"test": 80},
)

JUDGED = COMPARING.judged("gpt-4")
