"""`python -m eval NAME`: asks adapters the questions of a benchmark, in one process or in several.

Answers lie in OUT.parts/ while they come; a command that was stopped goes on with them when given again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

from tqdm import tqdm

from eval.benchmark import Benchmark, Question
from eval.errors import EvalError
from eval.results import check_writable, write_result
from eval.settings import Settings, load_questions
from eval.stream import answers_in
from mma.cli.base_options import NUMBERS, OPTIONS

BASE = {"decoder": "folder of the decoder", **OPTIONS}
PROJECT = Path(__file__).parents[1]
PARENT = "MMA_EVALUATION_PARENT"  # process that started this one, in its environment
POLL = 0.5  # seconds between two looks at what other processes have written


def add_arguments(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    """The options of a benchmark's command."""
    parser.set_defaults(run=run, benchmark=benchmark.name)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with the official files"
    )
    splits = ", ".join(benchmark.splits)
    parser.add_argument("--split", default=benchmark.splits[0], help=f"one of {splits} (default: the first)")
    parser.add_argument(
        "--adapter",
        dest="adapters",
        type=Path,
        required=True,
        nargs="+",
        metavar="RUN",
        help="adapter folders or run folders (of several stages the last counts); several are asked together",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="result file to write; a folder of them where more than one is asked",
    )
    parser.add_argument(
        "--official",
        action="store_true",
        help="write the answers in the official format too (done anyway where no right answers are public)",
    )
    _add_asking(parser, benchmark)
    _add_number(parser, "--tokens-per-batch", 4096, "tokens at once: memory and speed, not the result")
    _add_number(
        parser, "--processes", 1, "processes that share the questions, one for each GPU if there are any"
    )
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="ask only every N-th question, from I on")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_base(parser)


def add_base(parser: argparse.ArgumentParser) -> None:
    """The options that say where the base lies."""
    base = parser.add_argument_group("base", "where the base lies, if not where the adapter folder says")
    for name, meaning in BASE.items():
        kind = int if name in NUMBERS else str
        base.add_argument(f"--base.{name}", type=kind, metavar="VALUE", help=meaning)


def given_base(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the base."""
    given = vars(options)
    return {name: given[f"base.{name}"] for name in BASE if given[f"base.{name}"] is not None}


def _add_asking(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    """Those that the answers depend on."""
    parser.add_argument(
        "--decode",
        choices=("choice", "generate", "both"),
        default="choice" if benchmark.chosen else "generate",
        help="choice: the likeliest option, in one pass; generate: what the generated text names; "
        "both, side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--options",
        choices=("letters", "texts"),
        default="letters",
        help="what a choice compares: the letters of options, or what the options say (default: letters)",
    )
    parser.add_argument(
        "--by-length", action="store_true", help="divide an option's likelihood by its number of tokens"
    )
    parser.add_argument("--blind", action="store_true", help="show noise in place of every picture")
    parser.add_argument("--no-adapter", action="store_true", help="ask the base without the adapter alone")
    parser.add_argument("--with-base", action="store_true", help="ask the base without the adapter too")
    parser.add_argument(
        "--format", metavar="NAME", help="prompt format of ScienceQA (default: the adapter's)"
    )
    parser.add_argument(
        "--long",
        choices=("error", "truncate"),
        default="error",
        help="what to do with a question that the decoder cannot hold (default: error)",
    )
    parser.add_argument(
        "--unreadable",
        choices=("error", "grey"),
        default="error",
        help="what to do with a picture that cannot be decoded: stop, or show grey instead (default: error)",
    )
    parser.add_argument(
        "--beams",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="beams of the search for a written answer, 1 is greedy; several stand side by side (default: 1)",
    )
    _add_number(parser, "--max-new-tokens", None, f"longest answer (default: {benchmark.max_new_tokens})")


def run(options: argparse.Namespace) -> None:
    """Asks a model every question of a split, writes the result files, prints the scores."""
    _check(options)
    settings = settings_of(options)
    several = settings.columns * len(settings.ways) > 1
    check_writable(options.out / "x" if several else options.out)
    parts = options.out.with_name(options.out.name + ".parts")
    fresh = not parts.exists()
    try:
        benchmark, questions = load_questions(settings, parts)
        _ask(options, settings, benchmark, questions, parts)
        if options.shard is None:
            _write(options, benchmark, questions, parts, several)
    except BaseException as error:
        if answers_in(parts):
            if isinstance(error, KeyboardInterrupt) and not is_child():
                print("the answers so far are kept; the same command goes on", file=sys.stderr)
        elif fresh and options.shard is None:  # without an answer nothing is left behind
            shutil.rmtree(parts, ignore_errors=True)
        raise


def _check(options: argparse.Namespace) -> None:
    """Refuse settings that say nothing together."""
    if options.processes < 1:
        raise EvalError(f"--processes is {options.processes}; it must be at least 1")
    if options.processes > 1 and options.shard is not None and not is_child():
        raise EvalError("--processes shares the questions itself; leave --shard out")
    if max(options.beams) > 1 and options.decode == "choice":
        raise EvalError("--beams is for answers that are written; take --decode generate or both")


def _ask(
    options: argparse.Namespace,
    settings: Settings,
    benchmark: Benchmark,
    questions: Sequence[Question],
    parts: Path,
) -> None:
    from eval.asking import ask  # noqa: PLC0415

    if options.shard is not None:
        if is_child():
            Thread(target=_end_with_parent, daemon=True).start()
        ask(settings, benchmark, questions, parts, options.shard)
        if not is_child():
            print(f"{answers_in(parts)} answers in {parts}; the command without --shard scores all of them")
    elif options.processes > 1:
        share(options, parts, len(questions) * settings.columns * len(settings.ways))
    else:
        ask(settings, benchmark, questions, parts)


def _write(
    options: argparse.Namespace,
    benchmark: Benchmark,
    questions: Sequence[Question],
    parts: Path,
    several: bool,
) -> None:
    """The results of all columns, once all answers are there."""
    from eval.task import assemble, texts_of  # noqa: PLC0415

    results = assemble(benchmark, questions, parts)
    hidden = all(question.gold is None for question in questions)
    for path, (label, result) in zip(_paths(options.out, results, several), results.items(), strict=True):
        write_result(path, result)
        print(f"{label}\n{result.scores.table()}" if several else result.scores.table())
        print(f"wrote {path}")
        if options.official or hidden:
            answers = path.with_name(f"{path.stem}-answers{benchmark.suffix}")
            benchmark.write(answers, questions, texts_of(result, questions))
            print(f"wrote {answers}, the answers in the official format")
    shutil.rmtree(parts)


def _paths(out: Path, labels: Iterable[str], several: bool) -> list[Path]:
    """A file for each column; two whose names look alike as files get numbers."""
    if not several:
        return [out]
    found: list[Path] = []
    for label in labels:
        name = re.sub(r"[^\w.-]+", "-", label)
        path, count = out / f"{name}.json", 2
        while path in found:
            path, count = out / f"{name}-{count}.json", count + 1
        found.append(path)
    return found


def settings_of(options: argparse.Namespace) -> Settings:
    """What the command line asks for."""
    given = vars(options)
    names = {field.name for field in fields(Settings)} - {"base", "adapters", "beams"}
    told = {name: given[name] for name in names}
    lists = {"adapters": tuple(options.adapters), "beams": tuple(options.beams)}
    return Settings(base=given_base(options), **lists, **told)


def share(options: argparse.Namespace, parts: Path, answers: int) -> None:
    """Runs the command in several processes, each with its share of the questions."""
    count = options.processes
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), environment.get("PYTHONPATH", "")])
    environment |= {PARENT: str(os.getpid()), "TQDM_DISABLE": "1"}
    cards, children = _cards(), []
    try:
        for index in range(count):
            own = environment | ({"CUDA_VISIBLE_DEVICES": cards[index % len(cards)]} if cards else {})
            command = [sys.executable, "-m", "eval", *options.arguments, "--shard", f"{index}/{count}"]
            children.append(subprocess.Popen(command, env=own))
        _wait(children, parts, answers)
    finally:
        for child in children:
            child.kill()
            child.wait()
    if any(child.returncode for child in children):
        raise EvalError("one of the processes has failed, see above; the answers of the others are kept")


def is_child() -> bool:
    """Whether another evaluation started this one."""
    return PARENT in os.environ


def _end_with_parent() -> None:
    """Without this a process would ask on when the one that started it was killed."""
    while os.getppid() == int(os.environ[PARENT]):
        time.sleep(POLL)
    os._exit(1)


def _wait(children: list[subprocess.Popen[bytes]], parts: Path, answers: int) -> None:
    """Shows how many answers there are until all have ended, or one has failed."""
    read: dict[Path, int] = {}  # bytes of each file
    with tqdm(total=answers, unit="answer", delay=2, leave=False) as bar:
        while any(child.poll() is None for child in children):
            if any(child.returncode for child in children):
                return
            time.sleep(POLL)
            for path in sorted(parts.glob("part-*.jsonl")):
                with path.open("rb") as file:
                    file.seek(read.get(path, 0))
                    new = file.read()
                bar.update(new.count(b"\n") - (path not in read and b"\n" in new))  # the first is no answer
                read[path] = read.get(path, 0) + len(new)


def _cards() -> list[str]:
    """What names each GPU of this process to its children."""
    import torch  # noqa: PLC0415

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(index) for index in range(torch.cuda.device_count())]


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])


def _add_number(parser: argparse.ArgumentParser, name: str, default: int | None, meaning: str) -> None:
    told = meaning if default is None else f"{meaning} (default: {default})"
    parser.add_argument(name, type=int, default=default, metavar="N", help=told)
