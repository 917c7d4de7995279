"""`python -m eval report`: result files, the official data and an adapter, in one page to look at."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.errors import DataError
from eval import benchmark as registry
from eval.errors import EvalError
from eval.report import QUESTIONS, Report, write_report
from eval.report_parts import Part
from eval.results import FORMAT, Result, check_writable, read_result
from eval.score_command import FIRST
from mma.folder import read_description
from mma.run_folder import adapter_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    parser.set_defaults(run=run)
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="result files, or folders of them; the first of a benchmark is compared with its others",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="folder with the official files of a benchmark, for questions and pictures (default: the one "
        "that the result names, where it is still there)",
    )
    parser.add_argument("--adapter", type=Path, metavar="RUN", help="adapter or run folder, for its routing")
    parser.add_argument("--loss", type=Path, metavar="PNG", help="picture of the loss")
    parser.add_argument("--title", default="Evaluation report", help="heading (default: %(default)s)")
    parser.add_argument(
        "--questions",
        type=int,
        default=QUESTIONS,
        metavar="N",
        help="questions to show of each benchmark (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="page to write (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Writes the report."""
    if options.questions < 0:
        raise EvalError(f"--questions is {options.questions}; it must be at least 0")
    check_writable(options.out)
    if options.loss is not None and not options.loss.is_file():
        raise EvalError(f"--loss {options.loss}: no such file; a run folder holds it as loss.png")
    groups = grouped(find_results(options.results))
    data = data_folders(options.data, {name for name, _ in groups})
    routes = None if options.adapter is None else routes_of(options.adapter)
    with tempfile.TemporaryDirectory() as unpacked:
        parts = [
            part_of(name, split, columns, data.get(name), Path(unpacked) / f"{name}-{split}")
            for (name, split), columns in groups.items()
        ]
        report = Report(parts, routes, options.loss, options.title, options.questions)
        write_report(options.out, report)
    for part in parts:
        if not part.questions:
            name = part.benchmark.name
            print(f"{part.title}: without its questions, which --data {name}=DIR would show")
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


def find_results(paths: Sequence[Path]) -> dict[Path, Result]:
    """The result files named, and those in the folders named: adapters before what is blind or the base."""
    found: dict[Path, Result] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = read_result(path)
            continue
        inside = {file: read_result(file) for file in sorted(path.glob("*.json")) if _is_result(file)}
        if not inside:
            raise EvalError(f"{path}: holds no results of `python -m eval`; name the folder given as --out")
        found |= sorted(inside.items(), key=lambda item: _rank(item[1]))
    return found


def _is_result(path: Path) -> bool:
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(200)


def _rank(result: Result) -> int:
    """Its place in a folder, where nobody has said which is to be first."""
    told = result.settings
    base = bool(told.get("no_adapter")) or ("adapter" in told and told["adapter"] is None)
    return 2 * base + bool(told.get("blind"))


def grouped(results: Mapping[Path, Result]) -> dict[tuple[str, str], dict[str, Result]]:
    """The results by benchmark and split, each by its column's name."""
    groups: dict[tuple[str, str], dict[Path, Result]] = {}
    for path, result in results.items():
        name = str(result.settings.get("benchmark") or FIRST)
        split = str(result.settings.get("split") or registry.find(name).splits[0])
        groups.setdefault((name, split), {})[path] = result
    return {key: _named(key[0], some) for key, some in groups.items()}


def _named(benchmark: str, results: Mapping[Path, Result]) -> dict[str, Result]:
    """Columns are called like their files without the benchmark, behind their folder where need be."""
    stems = {path: path.stem.removeprefix(benchmark).lstrip("-_. ") for path in results}
    if len(set(stems.values())) < len(stems) or "" in stems.values():
        stems = {path: "/".join(filter(None, (path.parent.name, stem))) for path, stem in stems.items()}
    columns: dict[str, Result] = {}
    for path, result in results.items():
        name = stems[path] or path.stem
        if name in columns:
            raise EvalError(f"{path}: a second result called {name!r}; give one of the files another name")
        columns[name] = result
    return columns


def data_folders(given: Sequence[str], names: set[str]) -> dict[str, Path]:
    """What `--data` says, by benchmark."""
    folders: dict[str, Path] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign or name not in registry.names():
            if len(names) > 1:
                raise EvalError(
                    f"--data {text}: the results are of {', '.join(sorted(names))}; say whose data it is, "
                    "as NAME=DIR"
                )
            name, folder = next(iter(names)), text
        if name not in names:
            raise EvalError(f"--data {text}: there is no result of {name}; leave it out")
        folders[name] = Path(folder)
    return folders


def part_of(name: str, split: str, columns: Mapping[str, Result], data: Path | None, unpacked: Path) -> Part:
    """The results of one split with its questions, from the folder named or the one they came from."""
    benchmark = registry.find(name)
    told = next(iter(columns.values())).settings.get("data")
    folder = data or (Path(told) if isinstance(told, str) and Path(told).is_dir() else None)
    if folder is None:
        return Part(benchmark, split, columns)
    try:
        questions = {question.id: question for question in benchmark.load(folder, split, unpacked)}
        return Part(benchmark, split, columns, questions)
    except (EvalError, DataError):
        if data is not None:  # that the data has moved on since the evaluation is no reason to show nothing
            raise
        return Part(benchmark, split, columns)


def routes_of(path: Path) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """The routing table in an adapter folder, or in that of a run's last stage."""
    table = read_description(adapter_of(path)).get("routing_table")
    if not isinstance(table, dict) or not table:
        raise EvalError(f"--adapter {path}: its adapter has no routing table; leave the option out")
    return table
