"""The main job on the embedded base: data, tuning, scores, report, and the swap.

    make demo

Writes runs/demo/: data/, run/ (adapter, curves, metrics), report.html, summary.json. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import train
from data.commands import print_error
from data.mini.generate import STAMP, generate
from data.picture_workers import Pictures
from data.pictures import picture_loader, slot_counter
from data.prompts import render
from data.scienceqa import Problem, load_split
from data.template import make_template
from eval.benchmark import find
from eval.choice import choose
from eval.report import Report, write_report
from eval.report_parts import Part
from eval.results import Result, write_result
from eval.runner import Asker
from eval.settings import Settings
from eval.task import evaluate
from models.build import System, current_digests, load

RECIPE = "recipes/mini-world.yaml"
FORMAT = "QCM-AE"
BASE_FILES = (Path("assets/mini/decoder"), Path("assets/mini/tower"))
SWAPPED = 8  # picture questions that show the swap


class Stopwatch:
    """Seconds by phase, each announced as it begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, says: str) -> Iterator[None]:
        """Times the block and prints what it does."""
        print(f"\n== {says}", flush=True)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)


def files_digest(folders: tuple[Path, ...]) -> str:
    """SHA-256 over the names and bytes of every file in the folders."""
    state = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        state.update(path.as_posix().encode())
        state.update(path.read_bytes())
    return state.hexdigest()


def show_swap(system: System, problems: list[Problem], root: Path) -> bool:
    """Answers with the adapter off, on and off again; true when the base came back exactly."""
    seen = [problem for problem in problems if problem.image is not None][:SWAPPED]
    samples = [render(problem, FORMAT, problem.picture(root)) for problem in seen]
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    asker = Asker(system, template, Pictures(picture_loader(system.preprocess)), progress=False)
    tuned = choose(asker, samples).predictions
    with system.model.adapters.disable_adapter():
        before = choose(asker, samples).predictions
    again = choose(asker, samples).predictions
    with system.model.adapters.disable_adapter():
        after = choose(asker, samples).predictions
    print(f"{'question':<52} {'right':<12} {'off':<12} {'on':<12} off")
    for problem in seen:
        said = [problem.choices[x[problem.pid].option or 0] for x in (before, tuned, after)]
        right = problem.choices[problem.answer]
        print(f"{problem.question[:50]:<52} {right:<12} {said[0]:<12} {said[1]:<12} {said[2]}")
    return before == after and tuned == again


def score(root: Path, adapter: Path, folder: Path) -> dict[str, Result]:
    """The tuned model on both splits, blind and bare on the test split; each result in a file."""
    test = Settings(data=root, split="test", adapters=(adapter,))
    wanted = {
        "val": replace(test, split="val"),
        "tuned": test,
        "blind": replace(test, blind=True),
        "base": replace(test, no_adapter=True),
    }
    results = {}
    for name, settings in wanted.items():
        results[name] = evaluate(settings)
        write_result(folder / f"{name}.json", results[name])
        print(f"\n{name} ({settings.split} split)\n{results[name].scores.table()}", flush=True)
    return results


def categories(result: Result) -> dict[str, Any]:
    """The nine categories with value, interval and count."""
    return {name: asdict(found) for name, found in result.scores.categories.items()}


def main(folder: Path, problems: int = 3000, overrides: Sequence[str] = ()) -> int:
    """Runs the whole demo into a folder; overrides are settings of the recipe, as on the command line."""
    watch, root, run = Stopwatch(), folder / "data", folder / "run"
    before = files_digest(BASE_FILES)
    with watch.phase("data", f"{problems:,} problems, half of them with a picture that must be read"):
        if (root / STAMP).is_file():  # of an earlier demo, perhaps of another version
            shutil.rmtree(root)
        generate(root, problems)
    shutil.rmtree(run, ignore_errors=True)  # a demo begins anew
    with watch.phase("tune", "adapters are trained; decoder and tower stay frozen"):
        status = train.main([RECIPE, "--run.folder", str(run), "--data.root", str(root), *overrides])
    if status:
        return status
    with watch.phase("score", "tuned, blind (pictures replaced by noise) and base (no adapter)"):
        results = score(root, run, folder)
    with watch.phase("swap", "adapter off, on, off: the base comes back"):
        system = load(run / "adapter")
        unchanged = show_swap(system, load_split(root, "test"), root)
        if not unchanged or current_digests(system.model).items() - system.digests.items():
            raise RuntimeError("the base is not what it was before the adapter")
    shown = {name: results[name] for name in ("tuned", "blind", "base")}
    routes = system.model.adapters.routes()
    benchmark = find("scienceqa")
    questions = {question.id: question for question in benchmark.load(root, "test", folder)}
    part = Part(benchmark, "test", shown, questions)
    report = Report([part], routes, run / "loss.png", "Demo on the mini world")
    write_report(folder / "report.html", report)
    tensors = system.model.adapters.trainable_parameters().values()
    summary = {
        "accuracy": categories(results["tuned"]),
        "accuracy_blind": categories(results["blind"]),
        "accuracy_base": categories(results["base"]),
        "adapter_bytes": sum(path.stat().st_size for path in (run / "adapter").iterdir()),
        "trained_parameters": sum(tensor.numel() for tensor in tensors),
        "seconds": {**watch.seconds, "total": round(sum(watch.seconds.values()), 1)},
        "base_digest_before": before,
        "base_digest_after": files_digest(BASE_FILES),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{summary['trained_parameters']:,} trained parameters, {summary['adapter_bytes']:,} bytes")
    print(f"report: {folder / 'report.html'}   adapter: {run / 'adapter'}   {summary['seconds']} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except train.USER_ERRORS as error:
        print_error(error)
        sys.exit(2)
