"""The result of `check.py` as readable tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from data.check import CheckResult, Fault, SplitCounts
from data.source_check import SourceCounts, SourcesResult

# Percentile of the lengths -> what stands over its column.
HEADINGS = {50: "tokens p50", 90: "p90", 95: "p95", 99: "p99", 100: "longest"}


def report(result: CheckResult) -> str:
    """Every fault, the counts of every split, and a last line that says whether all is well."""
    return _told(result.faults, _split_table(result.splits) if result.splits else "")


def report_sources(result: SourcesResult) -> str:
    """Every fault, the counts of every file, and a last line that says whether all is well."""
    return _told(result.faults, _source_table(result.sources))


def _told(faults: Sequence[Fault], table: str) -> str:
    parts = [_fault_table(faults)] if faults else []
    parts += [table] if table else []
    count = len(faults)
    parts.append(f"{count} problem{'s' * (count > 1)} found" if faults else "no problems found")
    return "\n\n".join(parts)


def percentile(lengths: Sequence[int], percent: int) -> int:
    """The smallest length that so many percent of the lengths do not exceed."""
    return sorted(lengths)[max(0, -(-percent * len(lengths) // 100) - 1)]


def _fault_table(faults: Sequence[Fault]) -> str:
    return _table([("where", "what is wrong"), *((fault.where, fault.what) for fault in faults)])


def _split_table(splits: Mapping[str, SplitCounts]) -> str:
    """Problems, pictures, how many have 2, 3, ... options, and length percentiles where measured."""
    numbers = sorted({number for counts in splits.values() for number in counts.options})
    measured = any(counts.lengths for counts in splits.values())
    header = ["split", "problems", "with picture", *(f"{number} options" for number in numbers)]
    if measured:
        header += HEADINGS.values()
    rows: list[Sequence[str]] = [header]
    for name, counts in splits.items():
        row = [name, f"{counts.problems:,}", f"{counts.pictures:,}"]
        row += [f"{counts.options[number]:,}" for number in numbers]
        if measured:
            row += [f"{percentile(counts.lengths, p):,}" if counts.lengths else "-" for p in HEADINGS]
        rows.append(row)
    return _table(rows, numeric=True)


def _source_table(sources: Mapping[str, SourceCounts]) -> str:
    """Rows, pictures, turns of every file, and what its lengths are where they were measured."""
    measured = any(counts.lengths for counts in sources.values())
    header = ["source", "rows", "pictures", "turns"]
    if measured:
        header += ["tokens mean", "median", "p95", "longest"]
    rows: list[Sequence[str]] = [header]
    for name, counts in sources.items():
        numbers: list[float] = [counts.rows, counts.pictures, counts.turns]
        if lengths := counts.lengths:
            numbers += [fmean(lengths), median(lengths), percentile(lengths, 95), max(lengths)]
        row = [name, *(f"{number:,.0f}" for number in numbers)]
        rows.append(row + ["-"] * (len(header) - len(row)))
    return _table(rows, numeric=True)


def _table(rows: Sequence[Sequence[str]], numeric: bool = False) -> str:
    """Columns of equal width; numbers stand at the right, under their heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if numeric and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
