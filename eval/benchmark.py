"""What a benchmark is: questions from official files, a prompt, a scorer, and the official answer file.

Each is one short file in `eval/benchmarks/`, which ends in `BENCHMARK = Benchmark(...)`; the runner, the
commands and the report know no more of it than this file says. Knows nothing of models.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import eval.benchmarks
from data.sample import IMAGE, Sample
from eval.errors import EvalError
from eval.scores import Scored

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""The two answer-format suffixes of the LLaVA family, behind one newline; scores depend on their bytes."""


@dataclass(frozen=True)
class Question:
    """One question: what the model is shown, and what its answer is compared with.

    Args:
        id: The official id, as text.
        prompt: All that the user says, the suffix included, without picture marks (they go in front), or
            with one `<image>` for each picture where the benchmark places them.
        images: Picture files in order.
        options: What choice decoding compares, as the model would say it (letters, or whole texts).
        gold: The right answer as the scorer wants it; None where it is not published.
        facts: Further columns of its row that the scorer, the answer file or the report needs.
    """

    id: str
    prompt: str
    images: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    gold: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def texts_of_options(question: Question) -> tuple[str, ...]:
    """What the options say, where they are known by letters; nothing where there are none."""
    choices = question.facts.get("choices")
    if isinstance(choices, Mapping):
        return tuple(str(choices[letter]) for letter in question.options)
    return tuple(map(str, choices or ()))


@dataclass(frozen=True)
class Needed:
    """A file or folder that a split needs, and where it is published.

    Args:
        path: Below the data folder.
        source: Web address, or repository and path, where people get it.
        judging: Whether it is needed for judging alone.
    """

    path: str
    source: str
    judging: bool = False


@dataclass(frozen=True)
class Published:
    """A published score to stand beside ours."""

    system: str
    score: str  # its name in `Scored.scores`
    value: float  # in the unit of the table, e.g. 85.9
    source: str


Answers = Mapping[str, str]
"""Question id -> the model's text."""


@dataclass(frozen=True)
class Prompting:
    """How an adapter was trained to be asked.

    Args:
        template: Its chat template.
        format: Its format of ScienceQA's questions, where it has one.
        captions: Whether the captions of ScienceQA's pictures stand in its prompts.
        modalities: What it knows; one that knows no several pictures is shown the first.
    """

    template: str
    format: str | None = None
    captions: bool = False
    modalities: tuple[str, ...] = ("text", "image", "images")


def sample_of(question: Question, prompting: Prompting) -> Sample:
    """What the model is shown. LaVIN's template has no place of its own for an instruction."""
    prompt = question.prompt
    if prompting.template == "lavin":
        prompt = f"Instruction: {prompt}\nResponse: ".replace("  ", " ").strip()
    images = question.images
    if len(images) > 1 and "images" not in prompting.modalities:
        images, prompt = images[:1], prompt.replace(IMAGE, "")
    return Sample(question.id, prompt, "", images, question.options)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        name: As in `python -m eval NAME`.
        title: As people write it.
        version: Of prompt and rule; counted up when either changes, and written into every result.
        rule: The evaluator whose scoring is followed.
        splits: Those that can be asked; the first is the default.
        needs: The files of a split.
        load: (data folder, split, a folder for unpacked pictures) -> its questions.
        score: (questions, answers) -> scores; answers to some of the questions score those alone where the
            official rule allows it. Reads answers as text, whether generated or chosen.
        read: The answers in an official answer file or folder, by question id.
        write: (path, questions, answers) writes the official answer file, e.g. for a server.
        suffix: Of the official answer file's name; empty where it is a folder.
        max_new_tokens: Longest generated answer of the published setting.
        sizes: Published number of questions of each split.
        published: Scores of others.
        sample: What the model is shown for a question.
        chosen: Whether the published way to answer is the likeliest option, not a text.
        headline: The score that stands for the whole, where that is not the first.
        open_splits: Whether the data may have other splits than those named.
    """

    name: str
    title: str
    version: int
    rule: str
    splits: tuple[str, ...]
    needs: Callable[[str], Sequence[Needed]]
    load: Callable[[Path, str, Path], list[Question]]
    score: Callable[[Sequence[Question], Answers], Scored]
    read: Callable[[Path], dict[str, str]]
    write: Callable[[Path, Sequence[Question], Answers], None]
    suffix: str
    max_new_tokens: int
    sizes: Mapping[str, int]
    published: tuple[Published, ...] = ()
    sample: Callable[[Question, Prompting], Sample] = sample_of
    chosen: bool = False
    headline: str | None = None
    open_splits: bool = False

    def known(self, split: str) -> str:
        """The split, which must be one of the benchmark's."""
        if split not in self.splits and not self.open_splits:
            raise EvalError(f"there is no split {split!r}; {self.name} has {', '.join(self.splits)}")
        return split


def names() -> tuple[str, ...]:
    """The benchmarks there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(eval.benchmarks.__path__)))


def find(name: str) -> Benchmark:
    """The benchmark of a name."""
    if name not in names():
        raise EvalError(f"there is no benchmark {name!r}; choose one of {', '.join(names())}")
    module = importlib.import_module(f"eval.benchmarks.{name}")
    benchmark: Benchmark = module.BENCHMARK
    return benchmark


def check_complete(benchmark: Benchmark, questions: Sequence[Question], answers: Answers) -> None:
    """Refuse answers that leave a question out or belong to another set."""
    known = {question.id for question in questions}
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise EvalError(
            f"{benchmark.name}: {len(missing)} of {len(questions)} questions have no answer (the first is "
            f"{missing[0]}); the official score is over all of them"
        )
    if strange := [key for key in answers if key not in known]:
        raise EvalError(
            f"{benchmark.name}: {len(strange)} answers belong to no question (the first is {strange[0]!r}); "
            "name the data they were made on"
        )
