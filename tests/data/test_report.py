from __future__ import annotations

from collections import Counter

import pytest

from data.check import CheckResult, Fault, SplitCounts
from data.report import percentile, report


def test_a_clean_report_is_a_table_and_a_last_line() -> None:
    counts = SplitCounts(1200, 5, Counter({2: 1000, 4: 200}), list(range(1, 101)))
    assert report(CheckResult((), {"train": counts, "val": SplitCounts()})).splitlines() == [
        "split  problems  with picture  2 options  4 options  tokens p50  p90  p95  p99  longest",
        "train     1,200             5      1,000        200          50   90   95   99      100",
        "val           0             0          0          0           -    -    -    -        -",
        "",
        "no problems found",
    ]


def test_faults_come_first_and_are_counted() -> None:
    one, two = Fault("split val", "bad"), Fault("x", "worse")
    assert report(CheckResult((one, two), {})).splitlines() == [
        "where      what is wrong",
        "split val  bad",
        "x          worse",
        "",
        "2 problems found",
    ]
    assert report(CheckResult((one,), {})).endswith("\n1 problem found")


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (76, 9), (100, 9)])
def test_percentiles_are_lengths_that_occur(percent: int, expected: int) -> None:
    assert percentile([9, 1, 3, 2], percent) == expected
