"""Generates a data set of the mini world in the layout of ScienceQA, the same bytes for the same seed.

    python -m data mini DIR

Half of every split asks about a picture, a quarter about the hint, a quarter about a pair of words.
`facts.json` keeps what every picture shows, for tests and reports; models never see it.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.errors import DataError
from data.mini.drawing import draw
from data.mini.families import FAMILIES
from data.mini.language import TABLES
from data.mini.problems import MiniProblem, Pool, caption, hint_problem, picture_problem, word_problem

Source = TypeVar("Source")
VERSION = 5  # raise when the same seed no longer gives the same bytes
SMALLEST = 180  # twelve pictures in the smallest split
STAMP = "generated.json"
POOLS: dict[str, Pool] = {"train": "training", "val": "evaluation", "test": "evaluation"}


def generate(root: Path, problems: int = 3000, seed: int = 0) -> None:
    """Writes the data set to a new or empty folder; does nothing where the very same one already is.

    Raises DataError if the folder holds anything else, or if too few problems are wanted.
    """
    stamp = {"problems": problems, "seed": seed, "version": VERSION}
    if problems < SMALLEST:
        raise DataError(
            f"{problems} problems are too few for every family in every split: {SMALLEST} or more"
        )
    if root.exists() and _holds(root, stamp):
        return
    try:
        _put_in_place(root, problems, seed, stamp)
    except OSError as error:
        raise DataError(
            f"{root} cannot be written ({error.strerror}): make room or name another folder"
        ) from error


def _put_in_place(root: Path, problems: int, seed: int, stamp: dict[str, int]) -> None:
    """Writes the data set under another name first, so that it is there whole or not at all."""
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(partial, problems, seed)
        _write_json(partial / STAMP, stamp)
        partial.chmod(0o755)  # temporary folders are private
        if root.exists():
            root.rmdir()
        partial.rename(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _holds(root: Path, stamp: dict[str, int]) -> bool:
    """Whether the folder already holds this data set; False for an empty one."""
    if not root.is_dir():
        raise DataError(f"{root} is a file: name a new or empty folder for the mini data set")
    if not any(root.iterdir()):
        return False
    if not (root / STAMP).is_file():
        raise DataError(f"{root} is not empty and holds no mini data set: name a new or empty folder")
    try:
        found = json.loads((root / STAMP).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{root / STAMP} is not readable as JSON ({error}): name a new or empty folder"
        ) from error
    if found != stamp:
        raise DataError(
            f"{root} holds another mini data set ({found}, not {stamp}): name a new or empty folder"
        )
    return True


def _write(folder: Path, problems: int, seed: int) -> None:
    rows: dict[str, dict[str, Any]] = {}
    captions: dict[str, str] = {}
    facts: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    seen: set[tuple[object, ...]] = set()
    for split, size in _sizes(problems).items():
        rng = random.Random(f"mini {seed} {split}")
        splits[split] = []
        for problem in _problems(size, rng, POOLS[split], seen):
            pid = str(len(rows) + 1)
            rows[pid] = {**problem.row, "split": split}
            splits[split].append(pid)
            if problem.family is None or problem.facts is None:
                continue
            captions[pid] = caption(problem.family, problem.facts, rng)
            facts[pid] = {"family": problem.family.name, "facts": dict(problem.facts)}
            picture = folder / "images" / split / pid / "image.png"
            picture.parent.mkdir(parents=True)
            draw(problem.family, problem.facts, rng).save(picture)
    tenths = {f"mini{split}": pids[: max(1, len(pids) // 10)] for split, pids in splits.items()}
    splits = {**splits, "trainval": splits["train"] + splits["val"], **tenths}
    _write_json(folder / "problems.json", rows)
    _write_json(folder / "pid_splits.json", splits)
    _write_json(folder / "captions.json", {"captions": captions})
    _write_json(folder / "captions.llava.json", _conversations(captions, splits["train"]))
    _write_json(folder / "facts.json", facts)


def _conversations(captions: dict[str, str], pids: Sequence[str]) -> list[dict[str, Any]]:
    """The captions of these problems in LLaVA's layout, to train a projector on; pictures below `images/`."""
    return [
        {
            "id": pid,
            "image": f"train/{pid}/image.png",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the picture."},
                {"from": "gpt", "value": captions[pid]},
            ],
        }
        for pid in pids
        if pid in captions
    ]


def _sizes(problems: int) -> dict[str, int]:
    val, test = round(problems * 2 / 15), round(problems / 5)
    return {"train": problems - val - test, "val": val, "test": test}


def _problems(size: int, rng: random.Random, pool: Pool, seen: set[tuple[object, ...]]) -> list[MiniProblem]:
    """The problems of one split in random order; kinds, families and tables in equal shares."""
    pictures, hints = size // 2, size // 4
    result = [
        *_fresh(pictures, FAMILIES, lambda family: picture_problem(family, rng, pool), seen),
        *_fresh(hints, FAMILIES, lambda family: hint_problem(family, rng, pool), seen),
        *_fresh(size - pictures - hints, TABLES, lambda table: word_problem(table, rng, pool), seen),
    ]
    rng.shuffle(result)
    return result


def _fresh(
    count: int,
    sources: Sequence[Source],
    make: Callable[[Source], MiniProblem],
    seen: set[tuple[object, ...]],
) -> list[MiniProblem]:
    """Problems that ask something new, from every source in turn; a repeat where one has run dry."""
    result = []
    for index in range(count):
        for _ in range(50):
            problem = make(sources[index % len(sources)])
            if (key := _key(problem)) not in seen:
                break
        seen.add(key)
        result.append(problem)
    return result


def _key(problem: MiniProblem) -> tuple[object, ...]:
    """What makes two problems the same: question, set of options, hint, and what the picture shows."""
    facts = tuple(problem.facts.items()) if problem.facts else ()
    return (problem.row["question"], frozenset(problem.row["choices"]), problem.row["hint"], facts)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
