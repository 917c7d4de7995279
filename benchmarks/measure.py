"""What every benchmark needs: times taken in turns, ratios of pairs, a table, a JSON file, and small models.

Cases that are compared run one after the other in rounds, so that what else the machine does hits all of
them, and a ratio is the median over the rounds. Computation is timed by the processor's clock, which stands
still while other programs run; on one thread and a quiet machine it is the time on the wall. Knows nothing
of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from time import process_time
from typing import Any

import torch

from mma import Adapters, MMAConfig
from models.build import BaseSettings, layout_of
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.multimodal import MultimodalLM
from models.tower import Features, Tower
from models.tower_files import read_spec
from models.tower_spec import TowerSpec

CPU_SMALL = DecoderConfig(512, 8, 8, 8, 1376, vocab_size=32_000)
TINY_TOWER = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
}
COMPARED = ("torch", "transformers", "peft", "bitsandbytes")
Times = Mapping[str, Sequence[float]]


def take_turns(
    cases: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = process_time
) -> dict[str, list[float]]:
    """Seconds of every case in every round, after one round that does not count; the order rotates.

    Of the processor where nothing else is said: what else the machine does counts less then. With several
    threads that is their sum, so use one (OMP_NUM_THREADS=1) on a machine that others use too.
    """
    for run in cases.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            cases[name]()
            found[name].append(clock() - start)
    return found


def ratio(times: Times, case: str, peer: str) -> dict[str, float]:
    """The time of a case over its peer's in the same round: the median and the middle half of the rounds."""
    each = [a / b for a, b in zip(times[case], times[peer], strict=True)]
    low, middle, high = quantiles(each, n=4, method="inclusive")
    return {"ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def milliseconds(times: Times) -> dict[str, float]:
    """The median of every case."""
    return {name: round(1000 * median(each), 3) for name, each in times.items()}


def against(quotient: Mapping[str, float]) -> str:
    """A ratio for a table: the median, and the middle half of the rounds."""
    return f"{quotient['ratio']:.3f} ({quotient['low']:.3f} to {quotient['high']:.3f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lines of columns for a terminal; the first column is text, the others stand right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def main(
    name: str,
    about: str | None,
    measure: Callable[..., tuple[str, dict[str, Any]]],
    shapes: Sequence[str] = (),
) -> None:
    """Runs one benchmark from the command line: prints its text, and writes its numbers where asked.

    `measure` is told whether to be quick: small shapes that show that it runs, and no more; and which shape,
    where there are several.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not how fast")
    if shapes:
        parser.add_argument("--shape", default=shapes[0], choices=shapes)
    options = parser.parse_args()
    where = environment()
    text, numbers = measure(options.quick, *([options.shape] if shapes else []))
    threads, torch_version = where["machine"]["threads"], where["versions"]["torch"]
    print(f"{where['device']}, {threads} threads, torch {torch_version}, commit {where['commit']}")
    print(text)
    if options.json is not None:
        content = {"benchmark": name, "quick": options.quick, **where, **numbers}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """The device, the versions and the commit a number belongs to, and what else the machine did."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in COMPARED},
        "commit": _commit(),
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2),  # before the benchmark: what else ran
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def small_model(quick: bool = False, tower: TowerSpec | None = None) -> MultimodalLM:
    """The CPU shape, bare: decoder 8 x 512, vocabulary 32,000, tower ViT-B/32 at 224; random weights.

    A quick one has two blocks of width 64. Two of them have the same weights. Another tower can be named
    where no picture is looked at.
    """
    torch.manual_seed(0)
    if quick:
        decoder = Decoder(DecoderConfig(64, 2, 4, 4, 96, vocab_size=500))
        spec, features = TowerSpec(TINY_TOWER, {}), Features(every=1)
    else:
        decoder, spec, features = Decoder(CPU_SMALL), tower or read_spec("ViT-B-32"), Features()
    seen = Tower(spec, features)
    return MultimodalLM(decoder, seen, layout_of(BaseSettings(), spec, seen)).eval()


def add_random(adapters: Adapters, name: str, config: MMAConfig, seed: int) -> None:
    """Adds an adapter with random values: a fresh one adds nothing."""
    adapters.add_adapter(name, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.trainable_parameters().values():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit that is checked out, with a plus where files differ from it; unknown without git."""
    asked = (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain"])
    try:
        head, changed = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")
