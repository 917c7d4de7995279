"""Training: samples per second and peak memory of one optimizer step, beside three others in the same run.

Every contestant trains on the same samples: random tokens with the lengths of ScienceQA (`lengths.py`),
random pictures for those that have one, in two prompt formats (QCM-ALE: 77 prompt and 248 answer tokens on
average; QCM-A: 77 and 6).

    ours               as train.py does it: packed without padding, the tower on real pictures, logits where a
                       token is supervised
    length_bucketed    ours without packing: samples of like length padded to the longest of their batch
    paper_regime       the same adapters as the published code ran them (arXiv 2305.15023): four samples at a
                       time padded to 512 tokens behind their modality token, the tower on every sample,
                       logits everywhere
    transformers_peft  a LLaMA of the same shape in transformers with PEFT's LoRA (r = 8 on q and v): samples
                       grouped by length, padded to the longest; a picture is six ready embeddings
    matmul_bound       nothing but the matrix products that must be: real tokens, real pictures, supervised
                       logits, forward and for the activations' gradient (4 FLOPs per frozen parameter)

Ratios are of times: that of `paper_regime` and `transformers_peft` over ours (goals: 2 and 4; 1.2), and ours
over that of `matmul_bound` (goal: at most 1.3). Peak memory is what a step takes in a process of its own,
weights included, beyond what the libraries take.

    python -m benchmarks.train [--shape cpu-small|7b] [--json FILE]       under ten minutes on two cores
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.lengths import FORMATS
from benchmarks.measure import main, ratio, table, take_turns
from benchmarks.peft_peer import peer
from benchmarks.regimes import Step, length_bucketed, matmul_bound, ours, paper_regime
from benchmarks.samples import samples
from benchmarks.shapes import MEASURED, SHAPES, TrainShape, training_model

CONTESTANTS = ("ours", "length_bucketed", "paper_regime", "transformers_peft", "matmul_bound")


@dataclass(frozen=True)
class Case:
    """A shape, a prompt format and how many samples a step has."""

    shape: TrainShape
    form: str
    count: int


def make_step(name: str, case: Case) -> Step:
    """The step of a contestant, with a model of its own; `ours:full` is ours with that checkpointing."""
    shape = case.shape
    drawn = samples(case.form, case.count, shape.decoder.vocab_size, shape.longest)
    if name == "transformers_peft":
        return peer(shape.decoder, drawn, shape.device, shape.dtype)
    model = training_model(shape, shape.device)
    name, _, checkpointing = name.partition(":")
    model.checkpointing = checkpointing or "none"
    made: Mapping[str, Callable[[], Step]] = {
        "ours": lambda: ours(model, drawn, shape.budget),
        "length_bucketed": lambda: length_bucketed(model, drawn, shape.budget),
        "paper_regime": lambda: paper_regime(model, drawn),
        "matmul_bound": lambda: matmul_bound(model, drawn, shape.budget),
    }
    return made[name]()


def measure(quick: bool, name: str = "cpu-small") -> tuple[str, dict[str, Any]]:
    """Times in turns, then memory, one contestant after the other."""
    name = "tiny" if quick else name
    shape = SHAPES[name]
    contestants: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    spread: dict[str, Any] = {}
    for form in FORMATS:
        case = Case(shape, form, shape.samples[form])
        steps = {each: _synchronised(make_step(each, case), shape) for each in CONTESTANTS}
        times = take_turns(steps, shape.rounds, perf_counter)
        del steps
        for each in CONTESTANTS:
            contestants[f"{form}/{each}"] = {
                **_rates(case, median(times[each])),
                "peak_bytes": 0 if each == "matmul_bound" else peak_bytes(each, name, form),
            }
        found = {
            "length_bucketed": ratio(times, "length_bucketed", "ours"),
            "paper_regime": ratio(times, "paper_regime", "ours"),
            "transformers_peft": ratio(times, "transformers_peft", "ours"),
            "matmul_bound": ratio(times, "ours", "matmul_bound"),
        }
        ratios[form] = {each: found[each]["ratio"] for each in found}
        spread[form] = found
    return _told(contestants, ratios), {
        "shape": name,
        "contestants": contestants,
        "ratios": ratios,
        "spread": spread,
    }


def _synchronised(step: Step, shape: TrainShape) -> Step:
    """A step that ends when the device has ended."""
    if shape.device.type != "cuda":
        return step

    def whole() -> None:
        step()
        torch.cuda.synchronize()

    return whole


def _rates(case: Case, seconds: float) -> dict[str, float]:
    drawn = samples(case.form, case.count, case.shape.decoder.vocab_size, case.shape.longest)
    return {
        "samples_per_s": round(case.count / seconds, 4),
        "supervised_tokens_per_s": round(sum(sum(each.supervised) for each in drawn) / seconds, 2),
        "seconds_per_step": round(seconds, 4),
    }


def peak_bytes(name: str, shape: str, form: str, **environment: str) -> int:
    """What two steps of a contestant take at most, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peak", name, shape, form]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _told(contestants: Mapping[str, Mapping[str, float]], ratios: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        (
            name,
            f"{found['samples_per_s']:.2f}",
            f"{found['supervised_tokens_per_s']:.0f}",
            f"{found['peak_bytes'] / 2**20:.0f}" if found["peak_bytes"] else "",
        )
        for name, found in contestants.items()
    ]
    lines = [table(("", "samples/s", "supervised tokens/s", "peak MiB"), rows)]
    for form, each in ratios.items():
        less = contestants[f"{form}/ours"]["peak_bytes"] / contestants[f"{form}/paper_regime"]["peak_bytes"]
        lines.append(
            f"{form}: {each['length_bucketed']:.2f} times as fast as padded to like lengths, "
            f"{each['paper_regime']:.2f} times as fast as the paper's regime, "
            f"{each['transformers_peft']:.2f} times as fast as transformers with peft; "
            f"{each['matmul_bound']:.2f} of the time of its matrix products; {less:.2f} of the paper's memory"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main("train", __doc__, measure, MEASURED)
