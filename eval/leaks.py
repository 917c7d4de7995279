"""How many questions of an evaluation also stand in the data that an adapter was trained on.

The training data is read again from where the adapter's recipe says it lies, row by row: only eight bytes
for each question asked are kept, and nothing of the training data. A question counts when it asks the same
(`bare.py`) with the same options in any order, about a picture with the same bytes. A question without a
picture counts by its text, unless it is too short to mean anything; where it is about a text of its own
(a ScienceQA hint), that text must stand in the training prompt too. Whatever cannot be read is told, and is
never an error. Knows nothing of models or answers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.errors import DataError
from data.mixture import Mixture
from data.sample import Sample
from data.scienceqa import Problem
from data.source import SCIENCEQA, RowSource, Source, SourceSettings, open_source
from eval.bare import Bare, bare, plain, with_options
from eval.benchmark import Question, texts_of_options
from mma.errors import AdapterError
from mma.storage import describe

SHOWN = 10
NO_PICTURE, GONE = -1, -2  # stand where the length of a picture's file would
PATHS = ("path", "images")

Stage = tuple[list[SourceSettings], int]
"""The sources of one recipe, and the seed that chose their rows."""


@dataclass(frozen=True)
class Trained:
    """What an adapter was trained on, stage by stage, and what is not known about it."""

    stages: tuple[Stage, ...]
    unknown: tuple[str, ...]


class LeakCheck:
    """Finds the questions of one evaluation in the training data of adapters."""

    def __init__(self, questions: Sequence[Question], *, progress: bool = True) -> None:
        self._questions = questions
        self._progress = progress
        self._by_text: dict[int, list[int]] = defaultdict(list)
        # Of a text that has been met: its questions by the size in bytes of their first picture.
        self._by_size: dict[int, dict[int, list[int]]] = {}
        self._known: dict[str, dict[str, Any]] = {}  # adapters of one recipe were trained on the same
        self._digest_of_asked: dict[Path, bytes | None] = {}
        self._digest_of_trained = lru_cache(maxsize=4096)(_digest)  # neighbouring turns share pictures
        for place, question in enumerate(questions):
            asked = bare_of(question)
            if asked.lines and (question.images or not asked.trivial):
                self._by_text[_short(asked.whole)].append(place)

    def of(self, folder: Path | None) -> dict[str, Any]:
        """What is found for an adapter folder; for the base nothing is known."""
        if folder is None:
            return _report(unknown=["what the base was trained on is not recorded"])
        trained = trained_on(folder)
        key = repr(trained)
        if key not in self._known:
            self._known[key] = self._search(trained)
        return dict(self._known[key])

    def _search(self, trained: Trained) -> dict[str, Any]:
        unknown = list(trained.unknown)
        found: set[int] = set()
        read: list[str] = []
        for stage in trained.stages:
            for source, rows in _opened(stage, unknown):
                wrong = 0
                for row in tqdm(
                    rows, desc=f"leaks, {source.settings.path.name}", delay=2, disable=not self._progress
                ):
                    sample = _sample(source, int(row))
                    if sample is None:
                        wrong += 1
                    else:
                        self._look_up(sample, found)
                if wrong:
                    unknown.append(f"{source.settings.path}: {wrong} rows cannot be read")
                read.append(str(source.settings.path))
        if not read:
            return _report(unknown=unknown or ["the recipe names no data"])
        own = [self._questions[place] for place in sorted(found)]
        return _report(own, list(dict.fromkeys(read)), unknown)

    def _look_up(self, sample: Sample, found: set[int]) -> None:
        """Adds the questions that a training sample asks too."""
        for text in (*(turn.question for turn in sample.earlier), sample.prompt):
            for possible in bare(text).possible:
                key = _short(possible)
                if key in self._by_text:
                    found.update(self._same(key, sample, text, found))

    def _same(self, key: int, sample: Sample, text: str, found: set[int]) -> Iterator[int]:
        sizes = self._by_size.get(key)
        if sizes is None:
            sizes = self._by_size[key] = self._sizes(key)
        for place in sizes.get(NO_PICTURE, ()):
            problem = self._questions[place].facts.get("problem")
            # Many questions have the same words and each a text of its own, as others have a picture.
            if not isinstance(problem, Problem) or plain(problem.hint) in plain(text):
                yield place
        # Reading a picture costs more than anything else: only one of the same length is read.
        for image in dict.fromkeys(sample.images):
            for place in sizes.get(_size(image), ()):
                if place not in found and self._shows(sample, self._questions[place]):
                    yield place

    def _shows(self, sample: Sample, question: Question) -> bool:
        """Whether all pictures of a question are among those of a sample."""
        wanted = {self._asked_digest(path) for path in question.images}
        lengths = {_size(path) for path in question.images}
        alike = [path for path in dict.fromkeys(sample.images) if _size(path) in lengths]
        return None not in wanted and wanted <= {self._digest_of_trained(path) for path in alike}

    def _asked_digest(self, path: Path) -> bytes | None:
        if path not in self._digest_of_asked:
            self._digest_of_asked[path] = _digest(path)
        return self._digest_of_asked[path]

    def _sizes(self, key: int) -> dict[int, list[int]]:
        """The questions of a text by the length of their first picture's file."""
        sizes: dict[int, list[int]] = defaultdict(list)
        for place in self._by_text[key]:
            images = self._questions[place].images
            size = _size(images[0]) if images else NO_PICTURE
            if size != GONE:
                sizes[size].append(place)
        return dict(sizes)


def leaks(questions: Sequence[Question], folder: Path | None, *, progress: bool = True) -> dict[str, Any]:
    """How many of the questions stand in the training data of the adapter in a folder."""
    return LeakCheck(questions, progress=progress).of(folder)


def bare_of(question: Question) -> Bare:
    """What a question of a benchmark asks: by its raw row where it is known, else by its prompt."""
    problem = question.facts.get("problem")
    if isinstance(problem, Problem):
        return with_options(problem.question, problem.choices)
    row = question.facts.get("row")
    told = question.facts.get("question", row.get("question") if isinstance(row, Mapping) else None)
    asked = bare(question.prompt)
    if not isinstance(told, str):
        return asked
    # Choices that the prompt does not show, as yes and no, are none.
    options = texts_of_options(question) if asked.options else ()
    return with_options(told, options) if options else Bare(bare(told).lines, asked.options, labelled=True)


def trained_on(folder: Path) -> Trained:
    """The data of the recipe in an adapter folder, and of the adapters it began with."""
    stages: list[Stage] = []
    seen: set[Path] = set()
    at: Path | None = folder
    while at is not None and at.resolve() not in seen:
        seen.add(at.resolve())
        recipe = _recipe_of(at)
        if isinstance(recipe, str):
            return Trained(tuple(stages), (recipe,))
        try:
            stages.append(_stage_of(recipe))
        except (DataError, TypeError, ValueError, KeyError, AttributeError) as error:
            return Trained(tuple(stages), (f"{at}: the recorded recipe is not understood ({error})",))
        start = recipe.get("start")
        at = Path(start) if isinstance(start, str) else None
    return Trained(tuple(stages), ())


def _recipe_of(folder: Path) -> Mapping[str, Any] | str:
    """The recipe in an adapter folder, or why there is none."""
    try:
        told = describe(folder)
    except (AdapterError, OSError, json.JSONDecodeError) as error:
        return f"{folder}: cannot be read ({str(error).splitlines()[0]})"
    provenance = told.get("provenance")
    recipe = provenance.get("recipe") if isinstance(provenance, Mapping) else None
    if not isinstance(recipe, Mapping):
        return f"{folder}: does not record with which recipe it was trained"
    return recipe


def _stage_of(recipe: Mapping[str, Any]) -> Stage:
    data = recipe["data"]
    if data.get("mix"):
        names = {field.name for field in fields(SourceSettings)}
        sources = []
        for told in data["mix"]:
            # What a later version may record besides is of no matter to reading.
            given: dict[str, Any] = {name: value for name, value in told.items() if name in names}
            given |= {name: Path(given[name]) for name in PATHS if given.get(name)}
            sources.append(SourceSettings(**given))
    elif data.get("root"):
        sources = [SourceSettings(Path(data["root"]), kind=SCIENCEQA, split=data.get("train", "train"))]
    else:
        sources = []
    return sources, int(recipe.get("optim", {}).get("seed", 0))


def _opened(stage: Stage, unknown: list[str]) -> Iterator[tuple[Source, Sequence[int]]]:
    """The sources that can be read with the rows that were trained on; what is wrong with the others."""
    settings, seed = stage
    opened: list[Source] = []
    for each in settings:
        try:
            opened.append(open_source(each))
        except (DataError, OSError) as error:
            unknown.append(str(error))
    rows: dict[int, list[int]] = {}
    if any(each.take is not None or each.weight is not None for each in settings):
        try:
            if len(opened) == len(settings):
                rows = _taken(Mixture(opened, seed))
            else:
                unknown.append("of the other sources every row was read, not those taken alone")
        except DataError as error:
            unknown.append(str(error))
    for place, source in enumerate(opened):
        yield source, rows.get(place) or range(len(source))


def _taken(mixture: Mixture) -> dict[int, list[int]]:
    """The rows of every source that an epoch holds, each once."""
    rows: dict[int, dict[int, None]] = defaultdict(dict)
    for index in range(len(mixture)):
        place, row = mixture.origin(index)
        rows[place][row] = None
    return {place: list(own) for place, own in rows.items()}


def _sample(source: Source, row: int) -> Sample | None:
    """The sample of a row; None where it cannot be read."""
    if isinstance(source, RowSource):
        read = source.read(row)
        return read if isinstance(read, Sample) else None
    try:
        return source[row]
    except DataError:
        return None


def _report(
    found: Sequence[Question] | None = None, sources: Sequence[str] = (), unknown: Sequence[str] = ()
) -> dict[str, Any]:
    pictured = None if found is None else sum(bool(question.images) for question in found)
    return {
        "in_training": None if found is None else len(found),
        "with_same_picture": pictured,
        "text_only": None if found is None or pictured is None else len(found) - pictured,
        "first": [question.id for question in (found or ())[:SHOWN]],
        "sources": list(sources),
        "why_unknown": "; ".join(dict.fromkeys(unknown)) or None,
    }


def _short(text: str) -> int:
    """Eight bytes that stand for a text."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return GONE


def _digest(path: Path) -> bytes | None:
    """SHA-256 of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            state = sha256()
            while content := file.read(1 << 20):
                state.update(content)
    except OSError:
        return None
    return state.digest()
