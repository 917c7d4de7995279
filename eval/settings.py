"""What is evaluated, and the questions of it. Knows nothing of models."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval import benchmark as registry
from eval.benchmark import Benchmark, Question
from eval.errors import EvalError


@dataclass(frozen=True)
class Way:
    """How questions are answered: by the likeliest option, or in text by so many beams (1: greedy)."""

    decode: Literal["choice", "generate"]
    beams: int = 1

    def __str__(self) -> str:
        return self.decode if self.beams == 1 else f"{self.decode}, {self.beams} beams"


@dataclass(frozen=True)
class Settings:
    """What is evaluated, and how."""

    data: Path
    adapters: tuple[Path, ...]  # adapter folders, or run folders that hold one
    benchmark: str = "scienceqa"
    split: str | None = None  # None: the benchmark's first
    decode: Literal["choice", "generate", "both"] = "choice"
    options: Literal["letters", "texts"] = "letters"  # what is compared
    by_length: bool = False  # likelihoods of options are divided by their tokens
    blind: bool = False  # every picture replaced by noise
    no_adapter: bool = False  # only the untouched base
    with_base: bool = False  # the untouched base too
    format: str | None = None  # of ScienceQA's prompts; None: the one the adapter was trained with
    long: Literal["error", "truncate"] = "error"
    unreadable: Literal["error", "grey"] = "error"  # what becomes of a picture that cannot be decoded
    max_new_tokens: int | None = None  # None: the benchmark's own
    beams: tuple[int, ...] = (1,)  # of what is written; 1: greedy; several: side by side
    tokens_per_batch: int = 4096
    device: str = "auto"
    base: dict[str, Any] = field(default_factory=dict)  # settings of the base that differ from the adapter's

    def __post_init__(self) -> None:
        numbers = (("max-new-tokens", self.max_new_tokens), ("tokens-per-batch", self.tokens_per_batch))
        for name, value in (*numbers, *(("beams", beams) for beams in self.beams)):
            if value is not None and value < 1:
                raise EvalError(f"--{name} is {value}; it must be at least 1")

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways in which every column answers."""
        chosen = (Way("choice"),) if self.decode != "generate" else ()
        written = tuple(Way("generate", beams) for beams in dict.fromkeys(self.beams))
        return chosen if self.decode == "choice" else (*chosen, *written)

    @property
    def columns(self) -> int:
        """How many are asked, each in every way."""
        return 1 if self.no_adapter else len(self.adapters) + self.with_base


def load_questions(settings: Settings, parts: Path) -> tuple[Benchmark, list[Question]]:
    """The benchmark and the questions of the split; pictures are unpacked into the folder of parts."""
    benchmark = registry.find(settings.benchmark)
    split = settings.split or benchmark.splits[0]
    questions = benchmark.load(settings.data, benchmark.known(split), parts / "pictures")
    if not questions:
        raise EvalError(f"{settings.data}: split {split!r} is empty; name another")
    twice = [key for key, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise EvalError(f"{settings.data}: {len(twice)} ids stand there twice (the first is {twice[0]})")
    if settings.decode != "generate" and not any(len(question.options) > 1 for question in questions):
        raise EvalError(f"{benchmark.name} has no options to choose from; take --decode generate")
    return benchmark, questions
