"""All faults of a ScienceQA data set at once, and counts of what it holds.

Where the loaders stop at the first fault, this goes on and collects. It changes nothing and shows
nothing but a progress bar; `report.py` puts the result into words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.errors import DataError
from data.lengths import first_ids
from data.pictures import open_picture
from data.prompts import render
from data.scienceqa import Problem, load_captions, load_rows, load_splits, problem_of, row_faults
from data.template import Template

DISJOINT_SPLITS = ("train", "val", "test")

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, and what."""

    where: str
    what: str


@dataclass
class SplitCounts:
    """What one split holds."""

    problems: int = 0
    pictures: int = 0
    options: Counter[int] = field(default_factory=Counter)  # number of options -> problems
    lengths: list[int] = field(default_factory=list)  # tokens of each problem, when they were measured


@dataclass(frozen=True)
class LengthRule:
    """How the length of a problem in training is measured, and its limit if there is one."""

    template: Template
    format: str
    max_tokens: int | None = None

    def length(self, problem: Problem, root: Path) -> int:
        """Tokens of a problem, prompt and response."""
        return len(self.template.tokens(render(problem, self.format, problem.picture(root))))


@dataclass(frozen=True)
class CheckResult:
    """The faults of a data set and the counts of its splits."""

    faults: tuple[Fault, ...]
    splits: Mapping[str, SplitCounts]


def check(root: Path, rule: LengthRule | None = None) -> CheckResult:
    """Reads everything a data set holds, pictures included; measures lengths where a rule is given."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; name the one that holds problems.json")
    faults: list[Fault] = []
    splits = _read(load_splits, root, faults)
    captions = _read(load_captions, root, faults)
    rows = _read(load_rows, root, faults)
    problems: dict[str, Problem] = {}
    for pid, row in rows.items():
        wrong = row_faults(pid, row)
        faults.extend(Fault(f"problem {pid}", what) for what in wrong)
        if not wrong:
            problems[pid] = problem_of(pid, row, captions.get(pid))
    if rows:
        faults.extend(_unknown_ids(splits, rows))
    faults.extend(_shared_ids(splits))
    faults.extend(_misplaced_ids(splits, problems))
    faults.extend(_picture_faults(root, problems))
    lengths: dict[str, int] = {}
    if rule is not None:
        lengths = {p.pid: rule.length(p, root) for p in progress(problems.values(), "lengths", len(problems))}
        faults.extend(_long_problems(splits, lengths, rule))
    return CheckResult(
        tuple(faults), {name: _counts(pids, problems, lengths) for name, pids in splits.items()}
    )


def _read(read: Callable[[Path], dict[str, T]], root: Path, faults: list[Fault]) -> dict[str, T]:
    """What a file holds, or nothing and one more fault."""
    try:
        return read(root)
    except DataError as error:
        faults.append(Fault("files", str(error)))
        return {}


def _unknown_ids(splits: Mapping[str, list[str]], rows: Mapping[str, object]) -> Iterator[Fault]:
    for name, pids in splits.items():
        for pid in pids:
            if pid not in rows:
                yield Fault(f"split {name}", f"id {pid} has no problem in problems.json")


def _shared_ids(splits: Mapping[str, list[str]]) -> Iterator[Fault]:
    """Ids listed twice in one split, or in two of the splits that must not overlap."""
    owner: dict[str, str] = {}
    for name, pids in splits.items():
        for pid, times in Counter(pids).items():
            if times > 1:
                yield Fault(f"split {name}", f"id {pid} is listed {times} times")
            if name in DISJOINT_SPLITS and owner.setdefault(pid, name) != name:
                yield Fault(f"split {name}", f"id {pid} is also in split {owner[pid]}")


def _misplaced_ids(splits: Mapping[str, list[str]], problems: Mapping[str, Problem]) -> Iterator[Fault]:
    for name in DISJOINT_SPLITS:
        for pid in splits.get(name, []):
            if pid in problems and problems[pid].split != name:
                yield Fault(f"split {name}", f"problem {pid} says its split is {problems[pid].split}")


def _picture_faults(root: Path, problems: Mapping[str, Problem]) -> Iterator[Fault]:
    """Pictures that are missing or broken; a whole folder that is missing is one fault."""
    with_picture = [problem for problem in problems.values() if problem.image is not None]
    absent: set[str] = set()
    for name, count in Counter(problem.split for problem in with_picture).items():
        folder = root / "images" / name
        if not folder.is_dir():
            absent.add(name)
            yield Fault("pictures", f"there is no folder {folder}, {count} problems have their picture there")
    waiting = [problem for problem in with_picture if problem.split not in absent]
    # Decoding leaves the interpreter lock, so threads use every core.
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda problem: _picture_fault(root, problem), waiting)
        for fault in progress(found, "pictures", len(waiting)):
            if fault is not None:
                yield fault


def _picture_fault(root: Path, problem: Problem) -> Fault | None:
    path = problem.picture(root)
    try:
        if path is not None:
            open_picture(path)
    except DataError as error:
        return Fault(f"problem {problem.pid}", str(error))
    return None


def _long_problems(
    splits: Mapping[str, list[str]], lengths: Mapping[str, int], rule: LengthRule
) -> Iterator[Fault]:
    """One fault for every split with problems above the limit."""
    if rule.max_tokens is None:
        return
    for name, pids in splits.items():
        long = [pid for pid in pids if lengths.get(pid, 0) > rule.max_tokens]
        if long:
            share = f"{len(long)} of {len(pids)} problems"
            yield Fault(
                f"split {name}",
                f"{share} exceed {rule.max_tokens} tokens in {rule.format} ({first_ids(long)})",
            )


def _counts(pids: list[str], problems: Mapping[str, Problem], lengths: Mapping[str, int]) -> SplitCounts:
    counts = SplitCounts(problems=len(pids))
    for pid in pids:
        if pid in problems:
            counts.pictures += problems[pid].image is not None
            counts.options[len(problems[pid].choices)] += 1
            if pid in lengths:
                counts.lengths.append(lengths[pid])
    return counts


def progress(items: Iterable[T], name: str, total: int) -> Iterable[T]:
    """The same items, with a bar on stderr once they have taken two seconds."""
    bar: Iterable[T] = tqdm(items, desc=name, total=total, delay=2, leave=False)
    return bar
