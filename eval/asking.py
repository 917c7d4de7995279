"""Puts the questions of an evaluation to a model, and writes every answer to disk as it comes.

Models, data and adapters meet here. Every process of several asks its share. Knows nothing of scores.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.packing import LoadPicture
from data.picture_workers import Pictures
from data.pictures import picture_loader, slot_counter
from data.sample import Sample
from data.template import make_template
from eval.benchmark import Benchmark, Question, texts_of_options
from eval.choice import choosing
from eval.columns import Column, Opened, adapter_folder, device_of, open_columns, prompting_of
from eval.errors import EvalError
from eval.results import versions
from eval.runner import Asked, Asker, answering, noise_instead
from eval.settings import Settings, Way
from eval.stream import Line, Part, read
from eval.unreadable import grey_instead, unreadable

SLICE = 4096  # questions whose tokens are held at once: those of a large set would fill the memory


def ask(
    settings: Settings,
    benchmark: Benchmark,
    questions: Sequence[Question],
    parts: Path,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Puts the questions of one share, i of n, and writes the answers into the folder of parts."""
    _check_prompts(settings, benchmark, questions)
    share = questions[shard[0] :: shard[1]]
    answered = Counter(line.id for line in read(parts))
    bad = _bad_pictures(
        settings, [q for q in share if answered[q.id] < settings.columns * len(settings.ways)]
    )
    opened = open_columns(
        settings.adapters,
        settings.base,
        device_of(settings.device),
        settings.format,
        with_adapters=not settings.no_adapter,
        with_base=settings.with_base,
    )
    part = Part(parts, _head(settings, benchmark, questions, opened), shard)
    asking = _Asking(settings, benchmark, opened, part, questions, bad)
    try:
        for way in settings.ways:
            for columns in _together(opened):
                asking.ask(columns, way, share)
    finally:
        part.close()


def label_of(settings: Settings, column: Column, way: Way) -> str:
    """The name of a column's answers."""
    return column.name if len(settings.ways) == 1 else f"{column.name}, {way}"


@dataclass(frozen=True)
class _Asking:
    """A model, who is asked on it, and where answers go."""

    settings: Settings
    benchmark: Benchmark
    opened: Opened
    part: Part
    questions: Sequence[Question]  # all of them, whoever asks which
    bad: Collection[Path]  # pictures that cannot be decoded

    def ask(self, columns: Sequence[Column], way: Way, share: Sequence[Question]) -> None:
        """Asks some columns, in one pass, what they have not answered yet."""
        wanted = [
            (column, question)
            for question in share
            for column in columns
            if (label_of(self.settings, column, way), question.id) not in self.part.done
        ]
        if not wanted:
            return
        asker = self._asker(columns[0])
        together = len(columns) > 1
        with nullcontext() if together else self.opened.asking(columns[0]), self._bar(len(wanted)) as bar:
            slices = [wanted[start : start + SLICE] for start in range(0, len(wanted), SLICE)]
            if self.settings.long == "error" and len(slices) > 1:
                for some in slices:  # what is too long must show before hours have gone
                    self._coming(asker, some, way, together)
            for some in slices:
                for own, coming in self._coming(asker, some, way, together):
                    self._write(own, coming, way, bar)

    def _coming(
        self, asker: Asker, wanted: Sequence[tuple[Column, Question]], way: Way, together: bool
    ) -> list[tuple[list[tuple[Column, Sample]], Asked]]:
        """The answers on their way: to choose where there are options, and in text where there are none."""
        asked = [(column, self._sample(question, column)) for column, question in wanted]
        choices = [each for each in asked if way.decode == "choice" and len(each[1].options) > 1]
        texts = [each for each in asked if way.decode != "choice" or len(each[1].options) < 2]
        found = []
        for own in (choices, texts):
            who = [column.held for column, _ in own] if together else None
            samples = [sample for _, sample in own]
            if own and own is choices:
                found.append((own, choosing(asker, samples, who, by_length=self.settings.by_length)))
            elif own:
                longest = self.settings.max_new_tokens or self.benchmark.max_new_tokens
                coming = answering(asker, samples, who, max_new_tokens=longest, beams=way.beams)
                found.append((own, coming))
        return found

    def _write(self, own: Sequence[tuple[Column, Sample]], coming: Asked, way: Way, bar: tqdm[Any]) -> None:
        for index, prediction in coming.coming:
            column, sample = own[index]
            label = label_of(self.settings, column, way)
            grey = any(image in self.bad for image in sample.images)
            self.part.add(Line(label, sample.id, prediction, index in coming.cut, grey))
            bar.update()

    def _sample(self, question: Question, column: Column) -> Sample:
        sample = self.benchmark.sample(question, column.prompting)
        texts = texts_of_options(question) if self.settings.options == "texts" else ()
        return replace(sample, options=texts) if texts else sample

    def _asker(self, column: Column) -> Asker:
        system, settings = self.opened.system, self.settings
        load: LoadPicture = picture_loader(system.preprocess)
        if settings.blind:  # of all questions, so that noise does not depend on who asks which
            load = noise_instead(system, self.questions)
        else:
            load = grey_instead(load, self.bad, system)
        slots_of = slot_counter(system.image_slots, system.model.slots)
        template = make_template(column.prompting.template, system.tokenizer, slots_of)
        # Neighbouring questions and columns share pictures.
        pictures = Pictures(load, kept=64)
        return Asker(system, template, pictures, settings.tokens_per_batch, settings.long, progress=False)

    def _bar(self, answers: int) -> tqdm[Any]:
        return tqdm(total=answers, unit="answer", delay=2, leave=False)


def _check_prompts(settings: Settings, benchmark: Benchmark, questions: Sequence[Question]) -> None:
    """Refuse an adapter that cannot be asked, before a model is read."""
    for path in settings.adapters:
        prompting = prompting_of(adapter_folder(path), settings.format)
        try:
            benchmark.sample(questions[0], prompting)
        except EvalError as error:
            raise EvalError(f"{path}: {error}") from None


def _bad_pictures(settings: Settings, questions: Sequence[Question]) -> dict[Path, str]:
    """The pictures that cannot be decoded, with the reasons; none where they are not looked at."""
    if settings.blind:
        return {}
    bad = unreadable(image for question in questions for image in question.images)
    if bad and settings.unreadable == "error":
        more = f" ({len(bad) - 1} more cannot be decoded)" if len(bad) > 1 else ""
        raise EvalError(f"{next(iter(bad.values()))}{more}; --unreadable grey shows grey instead")
    return bad


def _together(opened: Opened) -> Iterator[tuple[Column, ...]]:
    """Columns that answer in one pass: those of the bank with the same template, or each by itself."""
    if opened.bank is None:
        yield from ((column,) for column in opened.columns)
        return
    for template in dict.fromkeys(column.prompting.template for column in opened.columns):
        yield tuple(column for column in opened.columns if column.prompting.template == template)


def _head(
    settings: Settings, benchmark: Benchmark, questions: Sequence[Question], opened: Opened
) -> dict[str, Any]:
    """What the answers depend on: where it is the same, answers of an earlier run are."""
    told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    for name in ("adapters", "tokens_per_batch"):  # told by column; of no matter to the answers
        told.pop(name)
    columns = {
        label_of(settings, column, way): {
            "adapter": None if column.folder is None else str(column.folder),
            "format": column.prompting.format,
            "captions": column.prompting.captions,
            "template": column.prompting.template,
            "modalities": list(column.prompting.modalities),
            "decode": way.decode,
            "beams": way.beams,
            "digests": {**column.digests, "prompts": _prompts(benchmark, questions, column)},
        }
        for column in opened.columns
        for way in settings.ways
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


def _prompts(benchmark: Benchmark, questions: Sequence[Question], column: Column) -> str:
    """SHA-256 of what a column is shown, which may hold more than the question (lectures, captions)."""
    state = hashlib.sha256()
    for question in questions:
        state.update(json.dumps(benchmark.sample(question, column.prompting).prompt).encode())
    return state.hexdigest()


def digest_of(questions: Sequence[Question]) -> str:
    """SHA-256 of what is asked and compared, and of the size of every picture's file."""
    state = hashlib.sha256()
    for question in questions:
        sizes = [image.stat().st_size for image in question.images if image.exists()]
        told = [question.id, question.prompt, question.options, question.gold, sizes]
        state.update(json.dumps(told, default=str).encode())
    return state.hexdigest()
