"""GQA: from an answer to the prediction, and the figures of the official script.

Knows no files and no models. Of the script's figures those are computed that need no further file.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_STEP = ("exist", "query: name", "choose name")


def prediction(text: str) -> str:
    """The prediction that LLaVA hands in for an answer: periods at its end go, and capitals; nothing else.

    Quirk: "light blue ." keeps the blank before its period, and so is wrong.
    """
    return text.rstrip(".").lower()


def lmms_match(text: str, gold: str) -> bool:
    """Whether an answer is right for lmms-eval, which passes over case and punctuation."""
    return text.translate(_NO_PUNCTUATION).lower() == gold.translate(_NO_PUNCTUATION).lower()


def steps(semantic: Iterable[tuple[str, str]]) -> int:
    """How many steps of reasoning a question takes, from the (operation, argument) of its program.

    Quirk: what is no step is looked for inside of "operation: argument", wherever it stands there.
    """
    return sum(
        not any(part in f"{operation}: {argument}" for part in _NO_STEP) for operation, argument in semantic
    )


def words(question: str) -> int:
    """How many words a question has."""
    return len(question.split())


class Spread:
    """Right and predicted answers of every global group, ready to be counted again and again.

    Args:
        answers: (global group, right answer, prediction) of every question that has a group.
    """

    def __init__(self, answers: Iterable[tuple[str, str, str]]) -> None:
        kinds = Counter(answers)
        cells: dict[tuple[str, str], int] = {}
        for group, gold, _ in kinds:
            cells.setdefault((group, gold), len(cells))
        groups = {group: code for code, group in enumerate(dict.fromkeys(group for group, _ in cells))}
        self.counts = list(kinds.values())  # of each kind of answer, in the order of `_gold`
        self._gold = [cells[group, gold] for group, gold, _ in kinds]
        # Quirk: a prediction that is never right in its group costs nothing by itself.
        self._predicted = [cells.get((group, answer), len(cells)) for group, _, answer in kinds]
        self._group = np.array([groups[group] for group, _ in cells], dtype=np.int64)

    def distribution(self, counts: NDArray[np.int64]) -> float:
        """How far predictions are spread unlike right answers, for such counts of the kinds of answers.

        Chi-square per group over its right answers, weighted by the size of the group, by the script's 100.
        """
        cells = len(self._group)
        gold = np.bincount(self._gold, counts, cells)
        predicted = np.bincount(self._predicted, counts, cells + 1)[:cells]
        # an answer that these counts leave out is no part of the sum
        chi_square = np.where(gold > 0, (predicted - gold) ** 2 / np.maximum(gold, 1), 0.0)
        size = np.bincount(self._group, gold)[self._group]
        return float(chi_square @ size) / int(counts.sum()) / 100
