"""Spoils copies of real adapter folders by the thousand, loads each one, and checks what came of it.

    python -m tests.mma.mutations --count 20000 --seed 0 --workers 2

Every folder must be refused in one line that names it, with the model left as it was, or be loaded as exactly
what a strict reader of its own finds in the files; nothing may be executed, hang, or fill the memory. Prints
progress, a table by kind of mutation, and every violation with the seed that repeats it; 20,000 take
four to eight minutes on two cores. Exit code 1 on a violation. Shares no code with what it tests.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import active_children, get_context
from pathlib import Path
from random import Random
from typing import Any

import torch

from mma import AdapterError, BottleneckConfig, LoraConfig, MMAConfig
from models.build import build_new
from tests.conftest import write_base
from tests.mma.mutation_kinds import KINDS, LOADS, REFUSED
from tests.mma.strict_reader import Unreadable, difference

SMALL = {"dropout": 0.0, "projector_hidden": 8}
SAVED = {
    "token": MMAConfig(temperature=1.0, **SMALL),
    "modality": MMAConfig(r=4, routes=3, tower="modality", placement="both", tower_placement="both", **SMALL),
    "layer": MMAConfig(r=4, tower="none", layers=(1,), **SMALL),
    "bottleneck": BottleneckConfig(r=4, **SMALL),
    "lora": LoraConfig(r=4, bias=True, **SMALL),
    "peft": LoraConfig(r=2, modalities=("text",)),
}
SECONDS, MEGABYTES, LETTERS = 5.0, 128, 600  # what one load may take, and one message beside the path
BATCH, HANGING = 100, 600  # folders a worker takes at once, and the seconds after which it hangs
ENDINGS = ("refused", "loaded", "loaded wrongly", "broken")
Load = Callable[[Path, str], None]


class Slow(BaseException):
    """A load took too long; not an Exception, so that nothing swallows it."""


@dataclass(frozen=True)
class Outcome:
    """What came of one spoilt folder."""

    seed: int
    kind: str
    verdict: str  # one of ENDINGS; broken: something else was raised
    violations: tuple[str, ...]


class Lab:
    """A small model that holds an adapter, real adapter folders, and a place to spoil copies of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.case, self.sentinel = root, root / "case", root / "sentinel"
        (root / "base").mkdir(parents=True)
        settings = write_base(root / "base")
        self.adapters = build_new(settings, SAVED["token"]).model.adapters
        for number, (name, config) in enumerate(SAVED.items()):
            self.adapters.add_adapter(name, config)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in self.adapters.trainable_parameters().values():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            self.adapters.save_pretrained(root / "saved" / name, {"seed": number, "loss": 0.25})
            self.adapters.delete_adapter(name)
        for file in (root / "saved" / "peft").glob("mma_*"):  # PEFT itself writes no such files
            file.unlink()
        self.adapters.set_adapter("default")
        self.load: Load = self.adapters.load_adapter

    def run(self, seed: int) -> Outcome:
        """Spoils a folder in the way of the seed, loads it, and says what came of it."""
        rng, kind = Random(seed), KINDS[seed % len(KINDS)]
        shutil.rmtree(self.case, ignore_errors=True)
        folder = self.case / "adapter"
        shutil.copytree(self.root / "saved" / rng.choice(sorted(SAVED)), folder)
        path = kind(rng, folder, self.sentinel) or folder
        before, memory = self.state(), start_of_memory()
        verdict, violations = self.try_to_load(path)
        if (grown := peak_of_memory() - memory) > MEGABYTES:
            violations.append(f"took {grown} MB of memory")
        if self.sentinel.exists():
            violations.append("executed code in the folder")
            self.sentinel.rmdir()
        if verdict.startswith("loaded"):
            self.take_away()
        if self.state() != before:
            violations.append(f"{verdict}, and the model is not as it was")
            self.take_away()
        wanted = "loaded" if kind in LOADS else "refused" if kind in REFUSED else verdict
        if verdict != wanted:
            violations.append(f"{verdict}, but such a folder must be {wanted}")
        return Outcome(seed, kind.__name__.replace("_", " "), verdict, tuple(violations))

    def try_to_load(self, path: Path) -> tuple[str, list[str]]:
        """Whether the folder is loaded or refused, and what is wrong with that."""
        start = time.process_time()
        try:
            with at_most(4 * SECONDS):
                self.load(path, "tried")
        except AdapterError as error:
            verdict, violations = "refused", wrong_with_message(str(error), path)
        except (Exception, Slow) as error:  # anything at all is what is looked for
            return "broken", [f"{type(error).__name__}: {str(error)[:200]!r}"]
        else:
            found = self.difference(path)
            verdict, violations = ("loaded wrongly", [found]) if found else ("loaded", [])
        if (seconds := time.process_time() - start) > SECONDS:
            violations.append(f"took {seconds:.1f} s")
        return verdict, violations

    def difference(self, path: Path) -> str:
        """How the loaded adapter differs from what the files hold; empty: not at all."""
        if "tried" not in self.adapters.names:
            return "loaded nothing"
        names = {
            f"base_model.model.{self.adapters.exported_name(s.path)}": s.path for s in self.adapters.sites
        }
        held = self.adapters.trainable_parameters("tried")
        try:
            return difference(path, held, self.adapters.configs["tried"].to_dict(), names)
        except Unreadable as error:
            return f"loaded what should be refused: {error}"

    def take_away(self) -> None:
        """Removes the adapter that was tried, if it is there."""
        if "tried" in self.adapters.names:
            self.adapters.delete_adapter("tried")
        self.adapters.set_adapter("default")

    def state(self) -> tuple[Any, ...]:
        """What a refused folder must leave alone."""
        model = self.adapters.model
        tensors = {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()}
        return self.adapters.names, self.adapters.active, tensors, [name for name, _ in model.named_modules()]


def wrong_with_message(message: str, path: Path) -> list[str]:
    """What a user could not use in a refusal."""
    found = []
    shown = str(path)
    if len(shown) > 200 or not shown.isprintable():  # such a one may be cut and escaped
        shown = repr(shown)[1:100]
    if shown not in message:
        found.append(f"the message does not name the folder: {message[:300]!r}")
    rest = message.replace(str(path), "")
    if not rest.isprintable():
        found.append(f"the message is not one printable line: {rest[:300]!r}")
    if len(rest) > LETTERS:
        found.append(f"the message has {len(rest)} letters: {rest[:300]!r}")
    return found


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupts what takes longer."""

    def interrupt(*_: object) -> None:
        raise Slow(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def megabytes(field: str) -> int:
    """A memory count of this process, as Linux keeps it; 0 where it does not."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{field}:"))


def start_of_memory() -> int:
    """Resident megabytes now; the peak is counted from here."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return megabytes("VmRSS")


def peak_of_memory() -> int:
    """The most that was resident since `start_of_memory`, in megabytes."""
    return megabytes("VmHWM")


@cache
def lab_in(root: Path) -> Lab:
    """This process's laboratory."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (6 * 2**30, 6 * 2**30))  # a defect must not fill the machine
    return Lab(root / str(os.getpid()))


def run_batch(root: Path, seeds: range) -> tuple[list[Outcome], int, int]:
    """A worker's part: outcomes, its process, and its resident megabytes afterwards."""
    lab = lab_in(root)
    outcomes = []
    for seed in seeds:
        (lab.root / "seed").write_text(str(seed))  # to be found if it takes the process down
        outcomes.append(lab.run(seed))
    return outcomes, os.getpid(), megabytes("VmRSS")


def campaign(seeds: range, workers: int, root: Path) -> Iterator[Outcome]:
    """The outcomes of all seeds as they come; a worker that dies, hangs or grows is an outcome too."""
    memory: dict[int, list[int]] = {}
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    batches = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
    pending = {pool.submit(run_batch, root, batch) for batch in batches}
    try:
        while pending:
            done, pending = wait(pending, timeout=HANGING, return_when=FIRST_COMPLETED)
            if not done:
                raise BrokenProcessPool(f"nothing came for {HANGING} s")
            for future in done:
                outcomes, process, resident = future.result()
                memory.setdefault(process, []).append(resident)
                yield from outcomes
    except BrokenProcessPool as error:
        last = [file.read_text() for file in sorted(root.glob("*/seed"))]
        yield Outcome(
            seeds[0], "the campaign", "broken", (f"{error} One of the seeds {', '.join(last)} did it.",)
        )
        for worker in active_children():
            worker.terminate()
    finally:
        pool.shutdown(cancel_futures=True)
    for process, resident in memory.items():
        if (grown := resident[-1] - resident[0]) > MEGABYTES:
            told = f"process {process} grew by {grown} MB in {len(resident)} batches"
            yield Outcome(seeds[0], "the campaign", "broken", (told,))


def table(outcomes: Sequence[Outcome]) -> str:
    """How many of each kind came to which end."""
    count = Counter((outcome.kind, outcome.verdict) for outcome in outcomes)
    count.update((outcome.kind, "violations") for outcome in outcomes if outcome.violations)
    names, columns = sorted({outcome.kind for outcome in outcomes}), (*ENDINGS, "violations")
    rows = [(name, [count[name, column] for column in columns]) for name in names]
    rows.append(("all", [sum(count[name, column] for name in names) for column in columns]))
    head = f"{'mutation':28}{''.join(f'{column:>16}' for column in columns)}"
    return "\n".join([head, *(f"{name:28}{''.join(f'{n:16,}' for n in counts)}" for name, counts in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a campaign and prints what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mma.mutations", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=20_000, help="how many folders")
    parser.add_argument("--seed", type=int, default=0, help="of the first folder; the next has the next")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args(arguments)
    outcomes: list[Outcome] = []
    start = told = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations") as root:
        seeds = range(options.seed, options.seed + options.count)
        for outcome in campaign(seeds, options.workers, Path(root)):
            outcomes.append(outcome)
            for violation in outcome.violations:
                print(f"seed {outcome.seed} ({outcome.kind}): {violation}", flush=True)
            if len(outcomes) % BATCH == 0 and time.monotonic() - told > 10:
                told = time.monotonic()
                left = (told - start) / len(outcomes) * (options.count - len(outcomes))
                print(f"{len(outcomes):,} of {options.count:,}, {left:.0f} s left", flush=True)
    violations = sum(bool(outcome.violations) for outcome in outcomes)
    print(table(outcomes))
    print(f"{len(outcomes):,} folders in {time.monotonic() - start:.0f} s, {violations:,} with a violation")
    if violations:
        print("a violation is repeated by: python -m tests.mma.mutations --count 1 --seed SEED")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
