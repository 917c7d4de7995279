"""What a report is made of: results of one benchmark side by side, and what became of their answers.

Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.benchmark import Benchmark, Question
from eval.compare import earned
from eval.errors import EvalError
from eval.results import Prediction, Result
from eval.scores import Score, Scores

COLOURS = 6  # the style sheet has so many

RIGHT, WRONG, PARTLY, UNPARSABLE, UNSCORED, ABSENT = "rwpun-"
"""What became of an answer, in a letter each; the page's filters read them."""


@dataclass(frozen=True)
class Part:
    """The results of one split of a benchmark.

    Args:
        columns: By the name of who answered; the first is the one the others are compared with.
        questions: By id; empty where the official files are not at hand.
    """

    benchmark: Benchmark
    split: str
    columns: Mapping[str, Result]
    questions: Mapping[str, Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < len(self.columns) <= COLOURS:
            raise EvalError(
                f"report: {len(self.columns)} results of {self.title}; it shows 1 to {COLOURS} side by side, "
                "so name fewer"
            )
        for name, result in self.columns.items() if self.questions else ():
            unknown = [pid for pid in result.predictions if pid not in self.questions]
            if unknown:
                raise EvalError(
                    f"report: question {unknown[0]} of {name!r} is not in the data given for "
                    f"{self.benchmark.name}; name the data it was made on"
                )

    @property
    def title(self) -> str:
        """The benchmark as people write it, with the split where there are several."""
        several = len(self.benchmark.splits) > 1
        return f"{self.benchmark.title}, {self.split}" if several else self.benchmark.title

    @property
    def anchor(self) -> str:
        """Its name in the page."""
        return f"{self.benchmark.name}-{self.split}"

    @property
    def first(self) -> tuple[str, Result]:
        """The column the others are compared with."""
        return next(iter(self.columns.items()))

    @property
    def names(self) -> list[str]:
        """The scores that any column has, in their order."""
        found = [name for result in self.columns.values() for name in result.scores.categories]
        return list(dict.fromkeys(found))

    @property
    def ids(self) -> list[str]:
        """The questions that any column answered, in their order."""
        return list(dict.fromkeys(pid for result in self.columns.values() for pid in result.predictions))

    @property
    def headline(self) -> str | None:
        """The score that stands for the whole; None where nothing is scored."""
        usual = self.benchmark.headline
        return usual if usual in self.names else next(iter(self.names), None)


def head_of(part: Part, scores: Scores) -> Score | None:
    """A column's headline score; None where it has none or there was nothing to score."""
    found = scores.categories.get(part.headline or "")
    return None if found is None or found.value is None else found


def state(made: Prediction | None) -> str:
    """What became of an answer, as one of the letters above."""
    if made is None:
        return ABSENT
    if made.option is None and made.read is None:
        return UNPARSABLE
    mark = earned(made)
    if mark is None:
        return UNSCORED
    return RIGHT if mark == 1 else WRONG if mark == 0 else PARTLY


def changed(one: Prediction | None, other: Prediction | None) -> bool:
    """Whether two answers to a question earned differently; where nothing is scored, whether they differ."""
    if one is None or other is None:
        return False
    marks = earned(one), earned(other)
    if None in marks:
        return (one.option, one.read) != (other.option, other.read)
    return marks[0] != marks[1]
