"""`python -m eval prepare NAME DIR`: are the official files complete, and where is what is missing?"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError
from eval import benchmark as registry
from eval.benchmark import Benchmark, Needed
from eval.errors import EvalError
from eval.unreadable import unreadable

MOST = 20  # faulty pictures that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `prepare`."""
    parser.set_defaults(run=run)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(registry.names())}")
    parser.add_argument("data", type=Path, metavar="DIR", help="folder with the official files")
    parser.add_argument("--split", help="check this split alone (default: all)")


def run(options: argparse.Namespace) -> None:
    """Prints a line for each split; raises EvalError where none is complete, or one is broken."""
    benchmark = registry.find(options.name)
    if not options.data.is_dir():
        raise EvalError(f"{options.data}: is no folder; name the one with the official files")
    splits = benchmark.splits if options.split is None else (benchmark.known(options.split),)
    complete = broken = False
    for split in splits:
        found = list(faults_of(benchmark, options.data, split))
        complete = complete or not found
        broken = broken or any("is missing; it is published" not in fault for fault in found)
        found += [
            f"{needed.path} is missing, which only judging needs; it is published at {needed.source}"
            for needed in _absent(benchmark, options.data, split)
            if needed.judging
        ]
        print("\n  ".join([f"{benchmark.name}, {split}:{'' if found else ' complete'}", *found]))
    if broken or not complete:
        raise EvalError(f"{options.data}: not the whole official set, see above")


def _absent(benchmark: Benchmark, data: Path, split: str) -> list[Needed]:
    return [needed for needed in benchmark.needs(split) if not any(data.glob(needed.path))]


def faults_of(benchmark: Benchmark, data: Path, split: str) -> Iterator[str]:
    """Everything that is missing or broken, one line each."""
    absent = [needed for needed in _absent(benchmark, data, split) if not needed.judging]
    yield from (f"{needed.path} is missing; it is published at {needed.source}" for needed in absent[:MOST])
    if len(absent) > MOST:
        last = absent[-1]
        yield f"and {len(absent) - MOST} more; {last.path} is missing; it is published at {last.source}"
    if absent:
        return
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            questions = benchmark.load(data, split, Path(unpacked))
        except (EvalError, DataError) as error:
            yield " ".join(str(error).split())
            return
        bad = unreadable(image for question in questions for image in question.images)
        yield from (" ".join(fault.split()) for fault in list(bad.values())[:MOST])
        if len(bad) > MOST:
            yield f"and {len(bad) - MOST} more pictures that cannot be decoded"
    wanted = benchmark.sizes.get(split)
    if wanted is not None and len(questions) != wanted:
        yield f"{len(questions):,} questions, the official set has {wanted:,}"
