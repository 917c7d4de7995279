"""LLaVA-Bench (in-the-wild): a judge that cannot see compares answers with ones made from descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.answer_files import check_present, llava_texts
from eval.benchmark import Benchmark, Needed, Published, Question
from eval.errors import EvalError
from eval.files import Row, read_lines
from eval.judge import Request
from eval.judged import fact, unjudged
from eval.reviews import Comparing, by_id, pair_request, rules_of, write_texts
from eval.scorers.pairs import Rule, read_llava

NAME = "llava_bench"
SOURCE = "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"


def needs(split: str) -> list[Needed]:
    """Questions, pictures, and what the judge is shown."""
    return [
        Needed("questions.jsonl", SOURCE),
        Needed("context.jsonl", SOURCE),
        Needed("answers_gpt4.jsonl", SOURCE),
        Needed("images", SOURCE),
        Needed("rule.json", "github.com/haotian-liu/LLaVA, llava/eval/table/rule.json", judging=True),
    ]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions with the picture's description and the reference answer."""
    contexts = {row.text("image"): _caption(row) for row in read_lines(folder / "context.jsonl")}
    references = by_id(folder / "answers_gpt4.jsonl")
    rules = rules_of(folder / "rule.json")
    questions = [
        _question(id_, row, contexts, references, rules, folder)
        for id_, row in by_id(folder / "questions.jsonl").items()
    ]
    check_present(NAME, (question.images[0] for question in questions))
    return questions


def _caption(row: Row) -> str:
    """A description is one text, or a list of lines."""
    caption = row.any("caption")
    return "\n".join(row.texts("caption")) if isinstance(caption, list) else row.text("caption")


def _question(
    id_: str,
    row: Row,
    contexts: Mapping[str, str],
    references: Mapping[str, Row],
    rules: Mapping[str, Rule],
    folder: Path,
) -> Question:
    image, category = row.text("image"), f"llava_bench_{row.text('category')}"
    if image not in contexts:
        raise EvalError(f"{row.where}: context.jsonl has no description of {image}; fetch both files again")
    if id_ not in references:
        raise EvalError(f"{row.where}: answers_gpt4.jsonl has no answer to {id_}; fetch both files again")
    if rules and category not in rules:
        raise EvalError(f"{row.where}: rule.json has no rule {category!r}; fetch both files again")
    reference = references[id_]
    facts: dict[str, Any] = {
        "question_id": row.any("question_id"),
        "category": category,
        "context": contexts[image],
        "reference": reference.text("text"),
        "reference_id": reference.text("answer_id", id_),
    }
    if rules:
        facts["rule"] = rules[category]
    return Question(id_, row.text("text"), (folder / "images" / image,), facts=facts)


def _request(question: Question, answer: str, swapped: bool, draw: int) -> Request:
    rule: Rule = fact(question, "rule", NAME, "rule.json")
    return pair_request(question, rule, answer, swapped, draw, question.facts["context"])


COMPARING = Comparing(
    benchmark=NAME,
    ask=_request,
    read=read_llava,
    category=lambda question: str(question.facts["category"]),
    columns=("all", "reference_x10", "candidate_x10"),
)

BENCHMARK = Benchmark(
    name=NAME,
    title="LLaVA-Bench (in-the-wild)",
    version=1,
    rule="LLaVA, eval_gpt_review_bench and summarize_gpt_review",
    splits=("test",),
    needs=needs,
    load=load,
    score=partial(unjudged, NAME),
    read=llava_texts,
    write=write_texts,
    suffix=".jsonl",
    max_new_tokens=1024,
    sizes={"test": 60},
    published=(
        Published("LLaVA-1.5-7B", "all", 65.4, "LLaVA MODEL_ZOO"),
        Published("LLaVA-1.5-13B", "all", 72.5, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "all", 81.6, "LLaVA MODEL_ZOO"),
    ),
)

JUDGED = COMPARING.judged("gpt-4-0314")
