"""What guessing would score, where the options of the questions tell. Knows nothing of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from eval.benchmark import Question
from eval.compare import earned
from eval.report_parts import Part
from eval.scienceqa import CATEGORIES


def guessing(part: Part) -> dict[str, float]:
    """What guessing gives in percent, by score, where the score is a plain share of right answers.

    That it is one is seen from the answers: over questions that have options, what was earned on average has
    to be the score, in every column.
    """
    asked = [part.questions[pid] for pid in part.ids if pid in part.questions]
    if not any(one.options for one in asked):
        return {}
    by_fact: dict[str, list[Question]] = {}
    for one in asked:
        for fact in {value for value in one.facts.values() if isinstance(value, str)}:
            by_fact.setdefault(fact, []).append(one)
    found = {}
    for name in part.names:
        for group in _groups(name, asked, by_fact):
            if all(len(one.options) > 1 for one in group) and _is_share(part, name, group):
                found[name] = 100 * math.fsum(1 / len(one.options) for one in group) / len(group)
                break
    return found


def _groups(
    name: str, asked: Sequence[Question], by_fact: Mapping[str, Sequence[Question]]
) -> Iterator[Sequence[Question]]:
    """The questions that a score may be over, by what its name says."""
    belongs = CATEGORIES.get(name)
    if belongs is not None and all("problem" in one.facts for one in asked):
        yield [one for one in asked if belongs(one.facts["problem"])]
    if name in by_fact:
        yield by_fact[name]
    yield asked


def _is_share(part: Part, name: str, group: Sequence[Question]) -> bool:
    for result in part.columns.values():
        score = result.scores.categories.get(name)
        if score is None or score.value is None or score.scale != 100:
            return False
        made = [result.predictions[one.id] for one in group if one.id in result.predictions]
        if len(made) != score.count:
            return False
        # where questions are scored in groups, one of each group has a mark, and guessing gives less
        marks = [mark for mark in map(earned, made) if mark is not None]
        if len(marks) != len(made) or abs(math.fsum(marks) / len(marks) - score.value) > 1e-9:
            return False
    return True
