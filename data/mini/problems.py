"""Problems of the mini world in the form of ScienceQA rows, drawn from one random generator.

The same family asks its questions about a picture or about sentences in the hint. Knows nothing of
pixels (`drawing.py`) or of files (`generate.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.mini.families import FAMILIES, PAPERS, Ask, Facts, Family
from data.mini.language import TABLES, WordTable

Pool = Literal["training", "evaluation"]

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Max", "Eva", "Sam", "Ida", "Leo")
INTRODUCTIONS = ("{name} looks at {noun}.", "{name} writes about {noun}.", "This text is about {noun}.")


@dataclass(frozen=True)
class MiniProblem:
    """One ScienceQA row, with the family and facts of its picture when it has one."""

    row: dict[str, Any]
    family: Family | None = None
    facts: Facts | None = None


def draw_facts(family: Family, rng: random.Random, pool: Pool, *, pictured: bool = False) -> Facts:
    """A combination of values that belongs to the pool; of a picture, the paper it is drawn on too."""
    while True:
        facts = {name: rng.choice(values) for name, values in family.attributes.items()}
        if pictured:
            facts["paper"] = rng.choice(PAPERS)
        if family.reserved(facts) == (pool == "evaluation"):
            return facts


def fact_sentences(family: Family, facts: Facts, rng: random.Random) -> list[str]:
    """One sentence per attribute, in random order."""
    sentences = [rng.choice(family.sentences[name]).format(facts[name]) for name in family.attributes]
    rng.shuffle(sentences)
    return sentences


def caption(family: Family, facts: Facts, rng: random.Random) -> str:
    """What the picture shows, in words: a sentence for every fact."""
    paper = [f"The paper is {facts['paper']}."] if "paper" in facts else []
    return " ".join([f"A picture of {family.noun}.", *fact_sentences(family, facts, rng), *paper])


def ask_about(family: Family, facts: Facts, rng: random.Random) -> tuple[str, list[str], int, str]:
    """Question, options, index of the right one, and the sentence that explains it."""
    ask = rng.choice(family.asks)
    right = ask.answer(facts[ask.attribute])
    wrong = [text for text in _option_texts(ask, family) if text != right]
    options, index = _shuffled(right, wrong, rng)
    sentence = rng.choice(family.sentences[ask.attribute]).format(facts[ask.attribute])
    return rng.choice(ask.wordings), options, index, sentence


def picture_problem(family: Family, rng: random.Random, pool: Pool) -> MiniProblem:
    """A question that only the picture answers; the solution tells what the picture shows."""
    facts = draw_facts(family, rng, pool, pictured=True)
    question, options, index, _ = ask_about(family, facts, rng)
    shown = caption(family, {name: facts[name] for name in family.attributes}, rng)
    hint = ""
    if rng.random() < 0.4:
        hint = f"{rng.choice(NAMES)} looks at {family.noun}."
    row = _row(family, rng, question=question, choices=options, answer=index, hint=hint, solution=shown)
    return MiniProblem({**row, "image": "image.png"}, family, facts)


def hint_problem(family: Family, rng: random.Random, pool: Pool) -> MiniProblem:
    """The same kind of question with the facts in the words of the hint."""
    facts = draw_facts(family, rng, pool)
    question, options, index, sentence = ask_about(family, facts, rng)
    introduction = rng.choice(INTRODUCTIONS).format(name=rng.choice(NAMES), noun=family.noun)
    hint = " ".join([introduction, *fact_sentences(family, facts, rng)])
    row = _row(family, rng, question=question, choices=options, answer=index, hint=hint, solution=sentence)
    return MiniProblem(row)


def word_problem(table: WordTable, rng: random.Random, pool: Pool) -> MiniProblem:
    """A question about one pair of a word table; the answer is knowledge, not in the text."""
    while True:
        key = rng.choice(sorted(table.pairs))
        right = table.pairs[key]
        options, index = _shuffled(right, list(table.distractors(key)), rng)
        if table.reserved(key, tuple(options)) == (pool == "evaluation"):
            break
    row = _row(
        table,
        rng,
        question=rng.choice(table.wordings).format(key),
        choices=options,
        answer=index,
        hint="",
        solution=rng.choice(table.statements).format(key, right),
    )
    return MiniProblem(row)


def any_text_problem(rng: random.Random, pool: Pool) -> MiniProblem:
    """A text-only problem: half with the facts in the hint, half from a word table."""
    if rng.random() < 0.5:
        return hint_problem(rng.choice(FAMILIES), rng, pool)
    return word_problem(rng.choice(TABLES), rng, pool)


def _option_texts(ask: Ask, family: Family) -> list[str]:
    return list(dict.fromkeys(ask.answer(value) for value in family.attributes[ask.attribute]))


def _shuffled(right: str, wrong: Sequence[str], rng: random.Random) -> tuple[list[str], int]:
    """Two to five options in random order with the right one at a uniformly random place."""
    count = rng.randint(2, min(5, len(wrong) + 1))
    options = rng.sample(list(wrong), count - 1)
    index = rng.randrange(count)
    options.insert(index, right)
    return options, index


def _row(
    source: Family | WordTable,
    rng: random.Random,
    *,
    question: str,
    choices: list[str],
    answer: int,
    hint: str,
    solution: str,
) -> dict[str, Any]:
    return {
        "question": question,
        "choices": choices,
        "answer": answer,
        "hint": hint,
        "image": None,
        "task": "closed choice",
        "grade": f"grade{rng.randint(1, 12)}",
        "subject": source.subject,
        "topic": source.topic,
        "category": source.name.replace("_", " "),
        "skill": f"Answer questions about {source.name.replace('_', ' ')}",
        "lecture": source.lecture,
        "solution": solution,
    }
