"""Two systems on the same questions: who was better where, and whether the difference may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.errors import EvalError
from eval.results import Prediction
from eval.scores import percent
from eval.statistics import Interval, Paired, bootstrap_mean, mcnemar, paired_difference, sign_flips


@dataclass(frozen=True)
class Comparison:
    """System A against system B over the questions that both answered."""

    count: int
    mean_a: float  # what A earned on average, in [0, 1]; its accuracy where answers are right or wrong
    mean_b: float
    difference: float  # A minus B
    interval: Interval  # of the difference, 95 %
    p: float  # two-sided
    test: str  # which test p is of
    left_out: int  # questions that only one of them answered
    pairs: Paired | None  # where every answer is right or wrong

    def table(self) -> str:
        """What to print."""
        low, high = (f"{100 * end:+.2f}" for end in self.interval)
        alone = f" ({self.left_out} answered by one alone)" if self.left_out else ""
        right = "right  " if self.pairs is not None else "earned "
        lines = [
            f"questions     {self.count}{alone}",
            f"A {right}     {percent(self.mean_a)} %",
            f"B {right}     {percent(self.mean_b)} %",
        ]
        if self.pairs is not None:
            lines += [
                f"both right    {self.pairs.both}",
                f"only A right  {self.pairs.only_a}",
                f"only B right  {self.pairs.only_b}",
                f"both wrong    {self.pairs.neither}",
            ]
        return "\n".join(
            [
                *lines,
                f"A - B         {100 * self.difference:+.2f} points, 95 % interval {low} to {high}",
                f"{self.test:<13} p = {self.p:.4g} ({'exact, ' if self.pairs is not None else ''}two-sided)",
            ]
        )


def compare(a: Mapping[str, Prediction], b: Mapping[str, Prediction]) -> Comparison:
    """Paired comparison of two sets of predictions, each with its right answers or with marks.

    Right and wrong by McNemar's exact test, marks between them by random signs.
    """
    shared = [pid for pid in a if pid in b]
    if not shared:
        raise EvalError("compare: A and B share no question; they come from different splits or data sets")
    for pid in shared:
        if a[pid].gold != b[pid].gold:
            raise EvalError(
                f"compare: question {pid} has the right answer {a[pid].gold} in A but {b[pid].gold} in B; "
                "they were scored on different data"
            )
    both = [(earned(a[pid]), earned(b[pid])) for pid in shared]
    marks = [(one, other) for one, other in both if one is not None and other is not None]
    if not marks:
        raise EvalError(
            "compare: no answer has a mark: the right ones are not public, or a judge has not seen them; "
            "compare a scored split"
        )
    left_out = len(a.keys() ^ b.keys())
    if all(mark in (0.0, 1.0) for pair in marks for mark in pair):
        return _right_or_wrong(marks, left_out)
    return _graded(marks, left_out)


def _right_or_wrong(marks: Sequence[tuple[float, float]], left_out: int) -> Comparison:
    pairs = Paired(
        both=marks.count((1.0, 1.0)),
        only_a=marks.count((1.0, 0.0)),
        only_b=marks.count((0.0, 1.0)),
        neither=marks.count((0.0, 0.0)),
    )
    difference, interval = paired_difference(pairs)
    return Comparison(
        count=pairs.total,
        mean_a=(pairs.both + pairs.only_a) / pairs.total,
        mean_b=(pairs.both + pairs.only_b) / pairs.total,
        difference=difference,
        interval=interval,
        p=mcnemar(pairs.only_a, pairs.only_b),
        test="McNemar",
        left_out=left_out,
        pairs=pairs,
    )


def _graded(marks: Sequence[tuple[float, float]], left_out: int) -> Comparison:
    count = len(marks)
    differences = [one - other for one, other in marks]
    return Comparison(
        count=count,
        mean_a=sum(one for one, _ in marks) / count,
        mean_b=sum(other for _, other in marks) / count,
        difference=sum(differences) / count,
        interval=bootstrap_mean(differences),
        p=sign_flips(differences),
        test="random signs",
        left_out=left_out,
        pairs=None,
    )


def earned(prediction: Prediction) -> float | None:
    """What an answer earned: its mark, or whether its option is the right one; None where nobody knows.

    Benchmarks with questions in groups mark one of each group.
    """
    if prediction.score is not None:
        return prediction.score
    if not isinstance(prediction.gold, int):
        return None
    return float(prediction.option == prediction.gold)
