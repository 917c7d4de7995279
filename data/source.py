"""A source of samples: a file of rows in one of the kinds of `conversations.py`, or a ScienceQA folder.

A file is read row by row on access (`rows.py`), so it may be larger than memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from data.conversations import KINDS, Reading, kind_of, sample_of
from data.errors import DataError
from data.prompts import render, require_format
from data.rows import index_rows
from data.sample import Sample
from data.scienceqa import digest, load_split

SCIENCEQA = "scienceqa"


@dataclass(frozen=True)
class SourceSettings:
    """Where samples come from, and how many of them are taken"""

    path: Path
    """file of rows (JSONL or a JSON array), or a folder in ScienceQA's layout"""
    images: Path | None = None
    """folder that the rows' picture names start from; where there is none, that of the file"""
    kind: str = ""
    """conversations, messages, alpaca or scienceqa; empty to tell it by the content"""
    take: int | None = None
    """use so many of its rows, chosen by the seed"""
    weight: float | None = None
    """its share of an epoch relative to the other sources, which then have weights too"""
    split: str = "train"
    """of a ScienceQA folder: the split"""
    format: str = "QCM-ALE"
    """of a ScienceQA folder: the prompt format"""
    captions: bool = False
    """of a ScienceQA folder: add the picture's caption to the context"""
    frames: int = 8
    """most frames of a video"""

    def __post_init__(self) -> None:
        require_format(self.format)
        if self.kind and self.kind not in (*KINDS, SCIENCEQA):
            raise DataError(f"kind {self.kind!r} is unknown; choose one of {', '.join((*KINDS, SCIENCEQA))}")
        for name in ("take", "frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} of the source {self.path} is {value}; it must be at least 1")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise DataError(f"weight of the source {self.path} is {self.weight}; it must be above 0")


class Source(Protocol):
    """Samples that are read when they are asked for."""

    settings: SourceSettings

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def digest(self) -> str:
        """SHA-256 of its content and of the settings that decide what a sample is."""
        ...


def open_source(settings: SourceSettings) -> Source:
    """The source of some settings; a DataError where there is none."""
    is_folder = settings.path.is_dir()
    if settings.kind == SCIENCEQA or (is_folder and not settings.kind):
        return ProblemSource(settings)
    if is_folder:
        raise DataError(f"{settings.path} is a folder, and kind {settings.kind} is of files; name the file")
    return RowSource(settings)


class RowSource:
    """The samples of a file of rows."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.rows = index_rows(settings.path)
        kind = settings.kind or kind_of(self.rows[0])
        if kind is None:
            raise DataError(
                f"{settings.path}, row 1 has none of the fields conversations, messages, instruction; "
                "correct it or name the kind"
            )
        self.reading = Reading(kind, settings.images or settings.path.parent, settings.frames)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a row; a DataError that names the row and its first fault."""
        read = self.read(index)
        if isinstance(read, Sample):
            return read
        raise DataError(
            f"{self.settings.path}, row {index % len(self) + 1} {read[0]} "
            f"(python -m data check {self.settings.path} lists every fault)"
        )

    def read(self, index: int) -> Sample | list[str]:
        """The sample of a row, or all its faults."""
        name = f"{self.settings.path.name}:{index % len(self) + 1}"
        try:
            row = self.rows[index]
        except DataError as error:
            return [str(error).partition(f"row {index % len(self) + 1} ")[2]]
        return sample_of(row, name, self.reading)

    def digest(self) -> str:
        """Over the file's bytes, the kind, and where pictures lie relative to it; not over the pictures."""
        state = sha256()
        path = self.settings.path
        with (
            path.open("rb") as file,
            tqdm(
                total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, delay=2, leave=False
            ) as bar,
        ):
            while content := file.read(1 << 20):
                state.update(content)
                bar.update(len(content))
        state.update(f"{self.reading.kind} {self.reading.frames} {_chosen(self.settings)}".encode())
        return state.hexdigest()


class ProblemSource:
    """The samples of one split of a ScienceQA folder, as they are asked in training."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self._problems = load_split(settings.path, settings.split)
        if not self._problems:
            raise DataError(f"split {settings.split!r} of {settings.path} is empty; choose another")

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: int) -> Sample:
        problem, settings = self._problems[index], self.settings
        return render(problem, settings.format, problem.picture(settings.path), settings.captions)

    def digest(self) -> str:
        """That of the split, with the settings."""
        settings = self.settings
        how = f"{settings.split} {settings.format} {settings.captions} {_chosen(settings)}"
        return sha256(f"{digest(settings.path, settings.split)} {how}".encode()).hexdigest()


def _chosen(settings: SourceSettings) -> str:
    return f"{settings.take} {settings.weight}"
