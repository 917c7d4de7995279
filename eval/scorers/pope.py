"""POPE: from a text to yes or no, and the five figures of a split. Knows no files and no models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from eval.scorers.vqa import without_punctuation

_NO = frozenset({"No", "no", "not"})


def read(text: str) -> str:
    """The answer in the first sentence: "no" where one of its words says so, else "yes".

    Quirks: whatever does not say no is a yes; case counts, so "NO" and "Not" are a yes; only blanks part
    words, so a "no" beside a line break or a sign other than a comma is a yes.
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if _NO.intersection(words) else "yes"


def vlmevalkit(text: str) -> str:
    """The answer as VLMEvalKit reads it: whichever of the two words occurs, "Unknown" if both or none do."""
    words = without_punctuation(text.lower()).split()
    yes, no = "yes" in words, "no" in words
    if yes == no:
        return "Unknown"
    return "Yes" if yes else "No"


def lmms(text: str) -> str:
    """The answer as lmms-eval reads it: the whole text has to be yes or no."""
    whole = text.lower().strip()
    return whole if whole in ("yes", "no") else "other"


class Counts(NamedTuple):
    """The four cells of a split, yes being positive; a share of nothing is 0, where the script fails."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Counts:
        """Of (what was read, label) pairs; quirk: a label other than "no" counts as yes."""
        cells = [0, 0, 0, 0]
        for answer, label in pairs:
            cells[(2 if label == "no" else 3) if answer == "no" else (1 if label == "no" else 0)] += 1
        return cls(*cells)

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def yes(self) -> int:
        """How often yes was answered."""
        return self.tp + self.fp

    @property
    def accuracy(self) -> float:
        return _share(self.tp + self.tn, self.total)

    @property
    def precision(self) -> float:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return _share(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        return _share(self.yes, self.total)

    @property
    def empty(self) -> list[str]:
        """The figures whose denominator is zero."""
        denominators = {
            "Precision": self.tp + self.fp,
            "Recall": self.tp + self.fn,
            "F1 score": self.precision + self.recall,
        }
        return [name for name, denominator in denominators.items() if denominator == 0]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
