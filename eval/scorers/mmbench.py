"""MMBench's circular evaluation: a question counts only if every rotation of its options is answered right.

Knows inferred letters and labels, no answers' texts (`options.py` reads them) and no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval.scores import Score

BASE = 1_000_000
"""The rotations of a question have its index plus multiples of this."""

ABILITIES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
"""The short names that the official report gives to the values of `l2-category`."""


@dataclass(frozen=True)
class Rotation:
    """One row of the official table with what its answer was read as."""

    index: int
    gold: str
    read: str | None  # None: no option could be inferred
    split: str = "none"  # as the official report calls rows without a split
    ability: str | None = None  # l2-category
    category: str | None = None


def hits(rotations: Iterable[Rotation]) -> dict[int, bool]:
    """Whether each question was answered right in all its rotations, by the index of its first row.

    Rotations whose first row is not there are passed over, as the official code does.
    """
    groups: dict[int, list[Rotation]] = {}
    for rotation in rotations:
        groups.setdefault(rotation.index % BASE, []).append(rotation)
    return {
        index: all(rotation.read == rotation.gold for rotation in group)
        for index, group in groups.items()
        if any(rotation.index == index for rotation in group)
    }


def report(rotations: Sequence[Rotation], hit: Mapping[int, bool]) -> dict[str, dict[str, Score]]:
    """The official report: split -> name -> share of hits; a split without rows of a name has no value."""
    first = [rotation for rotation in rotations if rotation.index in hit]
    splits = list(dict.fromkeys(rotation.split for rotation in first))
    abilities = sorted({rotation.ability for rotation in first if rotation.ability is not None})
    categories = sorted({rotation.category for rotation in first if rotation.category is not None})
    table: dict[str, dict[str, Score]] = {}
    for split in splits:
        rows = [rotation for rotation in first if rotation.split == split]
        scores = {"Overall": _share(rows, hit)}
        for ability in abilities:
            of_ability = [row for row in rows if row.ability == ability]
            scores[ABILITIES.get(ability, ability)] = _share(of_ability, hit)
        for category in categories:
            scores[category] = _share([row for row in rows if row.category == category], hit)
        table[split] = scores
    return table


def first_pass(rotations: Iterable[Rotation]) -> Score:
    """The share of right answers to the first rows alone; it is not circular and always higher."""
    right = [rotation.read == rotation.gold for rotation in rotations if rotation.index < BASE]
    return Score.of(sum(right), len(right))


def _share(rows: Sequence[Rotation], hit: Mapping[int, bool]) -> Score:
    return Score.of(sum(hit[row.index] for row in rows), len(rows))
