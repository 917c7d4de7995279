"""Two systems on the same questions: who was right where, and whether the difference may be chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eval.errors import EvalError
from eval.results import Prediction
from eval.scores import percent
from eval.statistics import Interval, Paired, mcnemar, paired_difference


@dataclass(frozen=True)
class Comparison:
    """System A against system B over the questions that both answered."""

    pairs: Paired
    difference: float  # accuracy of A minus accuracy of B
    interval: Interval  # of the difference, 95 %
    p: float  # exact McNemar test, two-sided
    left_out: int  # questions that only one of them answered

    def table(self) -> str:
        """What to print."""
        pairs, count = self.pairs, self.pairs.total
        low, high = (f"{100 * end:+.2f}" for end in self.interval)
        lines = [
            f"questions     {count}" + (f" ({self.left_out} answered by one alone)" if self.left_out else ""),
            f"A right       {percent((pairs.both + pairs.only_a) / count)} %",
            f"B right       {percent((pairs.both + pairs.only_b) / count)} %",
            f"both right    {pairs.both}",
            f"only A right  {pairs.only_a}",
            f"only B right  {pairs.only_b}",
            f"both wrong    {pairs.neither}",
            f"A - B         {100 * self.difference:+.2f} points, 95 % interval {low} to {high}",
            f"McNemar       p = {self.p:.4g} (exact, two-sided)",
        ]
        return "\n".join(lines)


def compare(a: Mapping[str, Prediction], b: Mapping[str, Prediction]) -> Comparison:
    """Paired comparison of two sets of predictions, each with its right answers."""
    shared = [pid for pid in a if pid in b]
    if not shared:
        raise EvalError("compare: A and B share no question; they come from different splits or data sets")
    for pid in shared:
        if a[pid].gold != b[pid].gold:
            raise EvalError(
                f"compare: question {pid} has the right answer {a[pid].gold} in A but {b[pid].gold} in B; "
                "they were scored on different data"
            )
    pairs = _count([(_right(a[pid]), _right(b[pid])) for pid in shared])
    difference, interval = paired_difference(pairs)
    return Comparison(
        pairs=pairs,
        difference=difference,
        interval=interval,
        p=mcnemar(pairs.only_a, pairs.only_b),
        left_out=len(a.keys() ^ b.keys()),
    )


def _count(right: list[tuple[bool, bool]]) -> Paired:
    return Paired(
        both=right.count((True, True)),
        only_a=right.count((True, False)),
        only_b=right.count((False, True)),
        neither=right.count((False, False)),
    )


def _right(prediction: Prediction) -> bool:
    return prediction.option is not None and prediction.option == prediction.gold
