"""One evaluation, from adapter folders and official files to results.

This is where models, data and adapters meet: `ask` puts the questions and streams the answers to disk,
`assemble` scores what lies there, without a model. Every process of several asks its own share.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from data.packing import LoadPicture
from data.picture_workers import Pictures
from data.pictures import check_pictures, picture_loader, slot_counter
from data.sample import Sample
from data.template import make_template
from eval import benchmark as registry
from eval.benchmark import Benchmark, Question, texts_of_options
from eval.choice import choosing
from eval.columns import Column, Opened, adapter_folder, open_columns, prompting_of
from eval.errors import EvalError
from eval.results import Prediction, Result, versions
from eval.runner import Asked, Asker, answering, noise_instead
from eval.stream import Line, Part, head_of, read

Decode = Literal["choice", "generate"]


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
    max_new_tokens: int | None = None  # None: the benchmark's own
    beams: int = 1  # of what is written; 1: greedy
    tokens_per_batch: int = 4096
    device: str = "auto"
    base: dict[str, Any] = field(default_factory=dict)  # settings of the base that differ from the adapter's

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "tokens_per_batch", "beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EvalError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")

    @property
    def decodes(self) -> tuple[Decode, ...]:
        """The ways in which every column answers."""
        return ("choice", "generate") if self.decode == "both" else (self.decode,)


def evaluate(settings: Settings) -> Result:
    """The result of one adapter, or of the untouched base."""
    (result,) = evaluate_all(settings).values()
    return result


def evaluate_all(settings: Settings, parts: Path | None = None) -> dict[str, Result]:
    """Asks every question of a split of every column; the results by column.

    Args:
        parts: Folder for the answers as they come; what is there is not asked again.
    """
    with tempfile.TemporaryDirectory() if parts is None else nullcontext(parts) as folder:
        ask(settings, Path(folder))
        return assemble(settings, Path(folder))


def ask(settings: Settings, parts: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """Puts the questions of one share, i of n, and writes the answers into the folder of parts."""
    benchmark, questions = load_questions(settings, parts)  # first: wrong data shows before a model is loaded
    check_prompts(settings, benchmark, questions)
    if not settings.blind:
        check_pictures(dict.fromkeys(image for question in questions for image in question.images))
    opened = open_columns(
        settings.adapters,
        settings.base,
        device_of(settings.device),
        settings.format,
        with_adapters=not settings.no_adapter,
        with_base=settings.with_base,
    )
    head = _head(settings, benchmark, questions, opened)
    part = Part(parts, head, shard)
    try:
        for decode in settings.decodes:
            for columns in _together(opened):
                share = questions[shard[0] :: shard[1]]
                _ask(settings, benchmark, opened, columns, decode, share, part)
    finally:
        part.close()


def assemble(settings: Settings, parts: Path) -> dict[str, Result]:
    """The results by column, from the answers of all processes."""
    benchmark, questions = load_questions(settings, parts)
    head = head_of(parts)
    lines = {(line.column, line.id): line for line in read(parts)}
    results = {}
    for label, told in head["columns"].items():
        missing = [question.id for question in questions if (label, question.id) not in lines]
        if missing:
            raise EvalError(
                f"{parts}: {len(missing)} of {len(questions)} answers of {label} are missing (the first is "
                f"{missing[0]}); run the same command again to ask for the rest"
            )
        own = {question.id: lines[label, question.id] for question in questions}
        results[label] = _result(settings, benchmark, questions, own, {**head, "column": told})
    return results


def load_questions(settings: Settings, parts: Path) -> tuple[Benchmark, list[Question]]:
    """The benchmark and the questions of the split."""
    benchmark = registry.find(settings.benchmark)
    split = settings.split or benchmark.splits[0]
    questions = benchmark.load(settings.data, split, parts / "pictures")
    if not questions:
        raise EvalError(f"{settings.data}: split {split!r} is empty; name another")
    twice = [key for key, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise EvalError(f"{settings.data}: {len(twice)} ids stand there twice (the first is {twice[0]})")
    return benchmark, questions


def check_prompts(settings: Settings, benchmark: Benchmark, questions: Sequence[Question]) -> None:
    """Refuse an adapter that cannot be asked, before a model is read."""
    for path in settings.adapters:
        prompting = prompting_of(adapter_folder(path), settings.format)
        try:
            benchmark.sample(questions[0], prompting)
        except EvalError as error:
            raise EvalError(f"{path}: {error}") from None


def device_of(name: str) -> str:
    """The device of a name; `auto` takes CUDA where there is one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise EvalError("--device cuda: PyTorch finds no CUDA device here; take --device cpu")
    return name if name != "auto" else "cuda" if available else "cpu"


def _together(opened: Opened) -> Iterator[tuple[Column, ...]]:
    """Columns that answer in one pass: those of the bank with the same template, or each by itself."""
    if opened.bank is None:
        yield from ((column,) for column in opened.columns)
        return
    for template in dict.fromkeys(column.prompting.template for column in opened.columns):
        yield tuple(column for column in opened.columns if column.prompting.template == template)


def _ask(
    settings: Settings,
    benchmark: Benchmark,
    opened: Opened,
    columns: Sequence[Column],
    decode: Decode,
    questions: Sequence[Question],
    part: Part,
) -> None:
    """Asks some columns what they have not answered yet, in one pass."""
    wanted = [
        (column, _sample(settings, benchmark, question, column))
        for question in questions
        for column in columns
        if (_label(settings, column, decode), question.id) not in part.done
    ]
    for way in ("choice", "generate"):
        # Where there is nothing to choose from, the answer is written.
        own = [each for each in wanted if _chosen(decode, each[1]) == (way == "choice")]
        if not own:
            continue
        samples = [sample for _, sample in own]
        asker = _asker(settings, opened, columns[0], samples)
        with nullcontext() if len(columns) > 1 else opened.asking(columns[0]):
            who = [column.held for column, _ in own] if len(columns) > 1 else None
            asked = _asked(settings, benchmark, asker, samples, who, way)
            cut = set(asked.truncated)
            for index, prediction in asked.coming:
                column, sample = own[index]
                part.add(Line(_label(settings, column, decode), sample.id, prediction, sample.id in cut))


def _sample(settings: Settings, benchmark: Benchmark, question: Question, column: Column) -> Sample:
    sample = benchmark.sample(question, column.prompting)
    texts = texts_of_options(question) if settings.options == "texts" else ()
    return replace(sample, options=texts) if texts else sample


def _chosen(decode: Decode, sample: Sample) -> bool:
    return decode == "choice" and len(sample.options) > 1


def _asked(
    settings: Settings,
    benchmark: Benchmark,
    asker: Asker,
    samples: Sequence[Sample],
    who: Sequence[str | None] | None,
    way: str,
) -> Asked:
    if way == "choice":
        return choosing(asker, samples, who, by_length=settings.by_length)
    longest = settings.max_new_tokens or benchmark.max_new_tokens
    return answering(asker, samples, who, max_new_tokens=longest, beams=settings.beams)


def _asker(settings: Settings, opened: Opened, column: Column, samples: Sequence[Sample]) -> Asker:
    system = opened.system
    load: LoadPicture = picture_loader(system.preprocess)
    if settings.blind:
        load = noise_instead(system, samples)
    slots_of = slot_counter(system.image_slots, system.model.slots)
    template = make_template(column.prompting.template, system.tokenizer, slots_of)
    # Neighbouring questions and columns share pictures.
    pictures = Pictures(load, kept=64)
    return Asker(system, template, pictures, settings.tokens_per_batch, settings.long)


def _label(settings: Settings, column: Column, decode: Decode) -> str:
    """The name of a column's answers."""
    return column.name if len(settings.decodes) == 1 else f"{column.name}, {decode}"


def _head(
    settings: Settings, benchmark: Benchmark, questions: Sequence[Question], opened: Opened
) -> dict[str, Any]:
    """What the answers depend on: where it is the same, answers of an earlier run are."""
    told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    for name in ("adapters", "tokens_per_batch"):  # told by column; of no matter to the answers
        told.pop(name)
    columns = {
        _label(settings, column, decode): {
            "adapter": None if column.folder is None else str(column.folder),
            "format": column.prompting.format,
            "captions": column.prompting.captions,
            "template": column.prompting.template,
            "modalities": list(column.prompting.modalities),
            "decode": decode,
            "digests": dict(column.digests),
        }
        for column in opened.columns
        for decode in settings.decodes
    }
    return {
        "settings": {
            **told,
            "benchmark_version": benchmark.version,
            "rule": benchmark.rule,
            "split": settings.split or benchmark.splits[0],
            "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
            "base": asdict(opened.system.settings),
            "device": opened.system.model.device.type,
        },
        "columns": columns,
        "digests": {**opened.system.digests, "data": digest_of(questions)},
        "versions": versions(),
    }


def digest_of(questions: Sequence[Question]) -> str:
    """SHA-256 of what is asked and compared, and of the bytes of every picture."""
    state = hashlib.sha256()
    for question in questions:
        told = [question.id, question.prompt, question.options, question.gold, len(question.images)]
        state.update(json.dumps(told, default=str).encode())
    for path in dict.fromkeys(image for question in questions for image in question.images):
        state.update(hashlib.sha256(path.read_bytes()).digest() if path.exists() else b"none")
    return state.hexdigest()


def _result(
    settings: Settings,
    benchmark: Benchmark,
    questions: Sequence[Question],
    lines: Mapping[str, Line],
    head: Mapping[str, Any],
) -> Result:
    """Scores the answers of one column."""
    options = {question.id: question.options for question in questions}
    texts = {key: said(line.prediction, options[key]) for key, line in lines.items()}
    scored = benchmark.score(questions, texts)
    predictions = {}
    for question in questions:
        mark, made = scored.marks.get(question.id), lines[question.id].prediction
        predictions[question.id] = replace(
            made,
            gold=question.gold,
            option=mark.read if mark is not None and isinstance(mark.read, int) else made.option,
            read=None if mark is None or isinstance(mark.read, int) else mark.read,
            score=None if mark is None else mark.score,
        )
    own = head["column"]
    checks = {
        "truncated": sum(line.cut for line in lines.values()),
        "unreadable_pictures": sum(line.unreadable for line in lines.values()),
        "pictures_left_out": sum(
            len(question.images) > 1 and "images" not in own["modalities"] for question in questions
        ),
    }
    told = {**head["settings"], **{key: value for key, value in own.items() if key != "digests"}}
    return Result(
        scores=scored.figures,
        predictions=predictions,
        settings={**told, "benchmark": benchmark.name, "truncated": checks["truncated"]},
        versions=head["versions"],
        digests={**head["digests"], **own["digests"]},
        checks=checks,
    )


def texts_of(result: Result, questions: Sequence[Question]) -> dict[str, str]:
    """The answers of a result as texts."""
    return {
        question.id: said(result.predictions[question.id], question.options)
        for question in questions
        if question.id in result.predictions
    }


def said(prediction: Prediction, options: Sequence[str]) -> str:
    """An answer as text: what was written, or the option that was likeliest."""
    if prediction.text is not None or prediction.option is None:
        return prediction.text or ""
    return options[prediction.option]
