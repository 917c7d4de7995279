"""LLaVA-Bench Wilder: a judge that sees the picture compares each answer with a reference by GPT-4V."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from eval.answer_files import llava_texts
from eval.benchmark import Benchmark, Needed, Question
from eval.errors import EvalError
from eval.files import Row, read_text
from eval.judge import Request
from eval.judged import fact, unjudged
from eval.reviews import Comparing, write_texts
from eval.scorers.pairs import Rule, message, read_wilder
from eval.unpack import picture, read_parquet, shards, unpack

NAME = "llava_bench_wilder"
RULE = "rule.txt"
# The large set is called medium where it is published.
FOLDERS = {"small": ("small", "Small", "data"), "large": ("medium", "Medium")}
SOURCES = {
    "small": "huggingface.co/datasets/lmms-lab/LLaVA-Bench-Wilder",
    "large": "huggingface.co/datasets/lmms-lab/llava-wilder, Medium",
}


def needs(split: str) -> list[Needed]:
    """A folder of Parquet files, pictures included, and the rule for the judge."""
    code = "github.com/EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/llava_wilder/utils.py"
    rule = f"{code}: the text of `judge_rules`"
    return [Needed(FOLDERS[split][0], SOURCES[split]), Needed(RULE, rule, judging=True)]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """One question for each row; the set has no ids, so their places count."""
    if split not in FOLDERS:
        raise EvalError(f"{NAME}: there is no split {split!r}; choose one of {', '.join(FOLDERS)}")
    names = FOLDERS[split]
    part = next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])
    rule = folder / RULE
    # a line break at the end of the file is no part of the rule
    facts = {"rule": Rule("Assistant", read_text(rule).rstrip("\n"))} if rule.exists() else {}
    questions: list[Question] = []
    for path in shards(part, "test"):
        for row in read_parquet(path):
            questions.append(_question(row, len(questions), unpacked / split, facts))
    if not questions:
        raise EvalError(f"{part}: holds no questions; fetch the files again")
    return questions


def _question(row: Row, place: int, unpacked: Path, facts: dict[str, Rule]) -> Question:
    content = picture(row, "image")
    if content is None:
        raise EvalError(f"{row.where}: has no picture; fetch the file again")
    image = unpack(unpacked, f"{place:05}", content)
    return Question(
        str(place),
        row.text("Question"),
        (image,),
        facts={"question_id": place, "reference": row.text("Answer"), **facts},
    )


def _request(question: Question, answer: str, swapped: bool, draw: int) -> Request:
    """One user message with the picture."""
    rule: Rule = fact(question, "rule", NAME, RULE)
    pair = (answer, question.facts["reference"]) if swapped else (question.facts["reference"], answer)
    user = {"role": "user", "content": message(rule, question.prompt, *pair)}
    return Request((user,), 0.0, 1024, draw, question.id, question.images)


COMPARING = Comparing(
    benchmark=NAME,
    ask=_request,
    read=read_wilder,
    category=lambda question: None,
    columns=("gpt_eval_llava_all", "reference_x10", "candidate_x10"),
    swaps=False,
)

BENCHMARK = Benchmark(
    name=NAME,
    title="LLaVA-Bench Wilder",
    version=1,
    rule="lmms-eval, llava_wilder",
    splits=("small", "large"),
    needs=needs,
    load=load,
    score=partial(unjudged, NAME),
    read=llava_texts,
    write=write_texts,
    suffix=".jsonl",
    max_new_tokens=4096,
    sizes={"small": 120, "large": 1020},
)

JUDGED = COMPARING.judged("gpt-4-vision-preview")
