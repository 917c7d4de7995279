"""All faults of files of rows at once, and counts of what they hold; one pass, a few rows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from data.check import Fault, progress
from data.errors import DataError
from data.lengths import first_ids
from data.pictures import open_picture
from data.sample import Sample
from data.source import RowSource
from data.template import Template

TOGETHER = 256  # rows whose pictures are decoded at the same time


@dataclass
class SourceCounts:
    """What one file holds; the rows with faults count as rows only."""

    rows: int = 0
    pictures: int = 0
    turns: int = 0
    lengths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class TokenRule:
    """How the length of a sample is measured, and its limit if there is one."""

    template: Template
    max_tokens: int | None = None


@dataclass(frozen=True)
class SourcesResult:
    """The faults of some files, and the counts of each by its name."""

    faults: tuple[Fault, ...]
    sources: dict[str, SourceCounts]


def check_sources(sources: Sequence[RowSource], rule: TokenRule | None = None) -> SourcesResult:
    """Reads every row and decodes every picture once; measures lengths where a rule is given."""
    faults: list[Fault] = []
    counts = {str(source.settings.path): SourceCounts() for source in sources}
    seen: set[Path] = set()
    with ThreadPoolExecutor() as pool:
        for source in sources:
            faults += _faults(source, counts[str(source.settings.path)], rule, seen, pool)
    return SourcesResult(tuple(faults), counts)


def _faults(
    source: RowSource, counts: SourceCounts, rule: TokenRule | None, seen: set[Path], pool: ThreadPoolExecutor
) -> Iterator[Fault]:
    # Ids may repeat: in LLaVA's own mixtures several rows have that of their picture.
    path = source.settings.path
    long: list[str] = []
    rows = progress(range(len(source)), path.name, len(source))
    for numbers in _groups(rows):
        good: list[tuple[str, Sample]] = []
        for number in numbers:
            counts.rows += 1
            where, read = f"{path}, row {number + 1}", source.read(number)
            if isinstance(read, Sample):
                good.append((f"{where} (id {read.id})", read))
            else:
                yield from (Fault(where, what) for what in read)
        yield from _broken_pictures(good, seen, pool)
        for where, sample in good:
            counts.pictures += len(sample.images)
            counts.turns += 1 + len(sample.earlier)
            if rule is not None:
                yield from _measure(where, sample, rule, counts, long)
    if long and rule is not None:
        share = f"{len(long)} of {len(source)} rows exceed {rule.max_tokens} tokens"
        yield Fault(str(path), f"{share} as {rule.template.name} ({first_ids(long)})")


def _groups(rows: Iterable[int]) -> Iterator[list[int]]:
    left = iter(rows)
    while group := list(islice(left, TOGETHER)):
        yield group


def _broken_pictures(
    samples: Sequence[tuple[str, Sample]], seen: set[Path], pool: ThreadPoolExecutor
) -> Iterator[Fault]:
    """Pictures of these samples that cannot be used; each file is decoded once."""
    waiting = []
    for where, sample in samples:
        for path in sample.images:
            if path not in seen:
                seen.add(path)
                waiting.append((where, path))
    # Decoding leaves the interpreter lock, so threads use every core.
    for (where, _), what in zip(
        waiting, pool.map(_picture_fault, [path for _, path in waiting]), strict=True
    ):
        if what is not None:
            yield Fault(where, what)


def _picture_fault(path: Path) -> str | None:
    try:
        open_picture(path).close()
    except DataError as error:
        return str(error)
    return None


def _measure(
    where: str, sample: Sample, rule: TokenRule, counts: SourceCounts, long: list[str]
) -> Iterator[Fault]:
    """Adds the length of a sample; a fault where the template has no place for it."""
    try:
        length = len(rule.template.tokens(sample))
    except DataError as error:
        yield Fault(where, str(error))
        return
    counts.lengths.append(length)
    if rule.max_tokens is not None and length > rule.max_tokens:
        long.append(sample.id)
