"""MMLU: the few-shot prompt in its two published forms, the letter, and the weighted averages.

Knows no files and no models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval.scores import Score

LETTERS = "ABCD"
CATEGORIES = {
    "STEM": [
        "abstract_algebra",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ],
    "humanities": [
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ],
    "social sciences": [
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ],
    "other (business, health, misc.)": [
        "anatomy",
        "business_ethics",
        "clinical_knowledge",
        "college_medicine",
        "global_facts",
        "human_aging",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "professional_accounting",
        "professional_medicine",
        "virology",
    ],
}
"""The subjects of each category, named as the official tables name them."""

SUBJECTS = tuple(sorted(subject for subjects in CATEGORIES.values() for subject in subjects))


class Item(NamedTuple):
    """One row of a subject's file."""

    question: str
    choices: Sequence[str]
    answer: str  # a letter


def prompt(subject: str, shots: Sequence[Item], item: Item) -> str:
    """The original prompt: solved examples, then the question, up to "Answer:".

    Quirk: two blanks stand before the subject, because its words are joined with a blank in front.
    """
    head = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}."
    solved = [f"{_asked(shot)} {shot.answer}" for shot in shots]
    return "\n\n".join([head, *solved, _asked(item)])


def _asked(item: Item) -> str:
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=True)]
    return "\n".join([item.question, *options, "Answer:"])


MISSING = -100.0  # the log-probability of a letter that was not reported


def letter_of(logprobs: Mapping[str, float]) -> str:
    """The likeliest letter, from log-probabilities by " A" to " D"; the earlier of equals.

    Quirk: a letter that is not reported beats one reported below -100.
    """
    return max(LETTERS, key=lambda letter: logprobs.get(f" {letter}", MISSING))


def read_letter(text: str) -> str | None:
    """The letter that a text starts with, as a word of its own."""
    text = text.strip()
    return text[0] if text[:1] in tuple(LETTERS) and not text[1:2].isalnum() else None


def report(judged: Sequence[tuple[str, bool]]) -> dict[str, Score]:
    """Average, categories and subjects from (subject, right), each pooled over questions."""
    scores = {"Average": _share(judged, SUBJECTS)}
    scores |= {category: _share(judged, subjects) for category, subjects in CATEGORIES.items()}
    scores |= {subject: _share(judged, (subject,)) for subject in SUBJECTS}
    return {name: score for name, score in scores.items() if score.count or name == "Average"}


def unweighted(scores: Mapping[str, Score]) -> float | None:
    """The mean of the subjects' scores, which some papers print; subjects differ in size."""
    values = [value for name in SUBJECTS if name in scores and (value := scores[name].value) is not None]
    return sum(values) / len(values) if values else None


def _share(judged: Sequence[tuple[str, bool]], subjects: Sequence[str]) -> Score:
    right = [is_right for subject, is_right in judged if subject in subjects]
    return Score.of(sum(right), len(right))
