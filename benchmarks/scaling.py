"""How the cost of a training step grows: with length, micro-batch, rank and decoder, and adapters resident.

Text alone, on decoders of random weights. Each curve changes one thing: milliseconds per 1,000 tokens of a
step (loss and backward pass); for adapters resident in a bank, of a batch that they answer. What should
stay level: micro-batch, rank, adapters resident. In proportion: the decoder's parameters. Longer samples
pay for their attention.

    python -m benchmarks.scaling [--json FILE] [--plot FILE]       about four minutes on two cores
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import matplotlib as mpl
import torch

from benchmarks.measure import CPU_SMALL, TINY_TOWER, add_random, main, table, take_turns
from benchmarks.shapes import SHAPES, TrainShape, training_model
from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import MMAConfig
from mma.bank import AdapterBank
from models.decoder_config import DecoderConfig
from models.multimodal import MultimodalLM, inference
from models.tower_spec import TowerSpec

mpl.use("Agg")
Runs = Mapping[int, Callable[[], object]]
LENGTHS, BUDGETS, RANKS, RESIDENT = (
    (32, 64, 128, 256, 512, 1024),
    (128, 256, 512, 1024, 2048),
    (2, 8, 32, 128),
    (1, 4, 16, 64),
)
WIDTHS = (128, 256, 512, 768)
TOKENS, SAMPLE = 1024, 128


def measure(quick: bool, plot: Path | None = None) -> tuple[str, dict[str, Any]]:
    """Milliseconds per 1,000 tokens along every curve."""
    shape = _shape(CPU_SMALL if not quick else DecoderConfig(32, 2, 2, 2, 64, vocab_size=100))
    tokens, rounds = (128, 1) if quick else (TOKENS, 2)
    model = training_model(shape, torch.device("cpu")).train()
    curves: dict[str, tuple[str, Runs, Mapping[int, int]]] = {
        "length": _curve("tokens of a sample", {n: (model, tokens, n) for n in LENGTHS if n <= tokens}),
        "batch": _curve("tokens of a micro-batch", {n: (model, n, 64) for n in BUDGETS if n <= 2 * tokens}),
        "rank": _curve("rank of the adapters", {r: (_ranked(shape, r), tokens, SAMPLE) for r in RANKS}),
        "decoder": _curve("million parameters in blocks", dict(_decoders(quick, tokens))),
        "resident": _resident(shape, tokens),
    }
    found = {}
    for name, (_, runs, counts) in curves.items():
        times = take_turns({str(x): run for x, run in runs.items()}, rounds, perf_counter)
        found[name] = {str(x): round(1e6 * median(times[str(x)]) / counts[x], 2) for x in runs}
    if plot is not None:
        _draw(plot, found, {name: label for name, (label, _, _) in curves.items()})
    rows = [
        (name, "  ".join(f"{x}: {each:.0f}" for x, each in curve.items())) for name, curve in found.items()
    ]
    return table(("", "ms per 1,000 tokens"), rows), {"curves": found}


def _shape(decoder: DecoderConfig) -> TrainShape:
    tower = TowerSpec({**TINY_TOWER, "vision_cfg": {**TINY_TOWER["vision_cfg"], "layers": 6}}, {})
    return replace(SHAPES["tiny"], decoder=decoder, tower=tower)


def _curve(
    label: str, cases: Mapping[int, tuple[MultimodalLM, int, int]]
) -> tuple[str, Runs, Mapping[int, int]]:
    """Steps of some models on so many tokens in samples of a length."""
    runs, counts = {}, {}
    for x, (model, tokens, length) in cases.items():
        batch = _texts(tokens // length, length, model.decoder.config.vocab_size)
        runs[x], counts[x] = partial(_step, model, batch), tokens // length * length
    return label, runs, counts


def _step(model: MultimodalLM, batch: PackedBatch) -> None:
    model.zero_grad(set_to_none=True)
    model.loss(batch).backward()


def _ranked(shape: TrainShape, rank: int) -> MultimodalLM:
    model = training_model(shape, torch.device("cpu"))
    model.adapters.delete_adapter("default")
    add_random(model.adapters, "default", MMAConfig(r=rank), seed=rank)
    return model.train()


def _decoders(quick: bool, tokens: int) -> Mapping[int, tuple[MultimodalLM, int, int]]:
    """Decoders of growing width, by their parameters in millions."""
    made = {}
    for width in (32, 64) if quick else WIDTHS:
        config = DecoderConfig(width, 8, 4, 4, width * 43 // 16, vocab_size=1000)
        model = training_model(_shape(config), torch.device("cpu")).train()
        millions = sum(p.numel() for p in model.decoder.blocks.parameters()) // 10**6
        made[max(1, millions)] = (model, tokens, SAMPLE if tokens >= SAMPLE else tokens)
    return made


def _resident(shape: TrainShape, tokens: int) -> tuple[str, Runs, Mapping[int, int]]:
    """Batches whose samples are answered by adapters of banks of several sizes."""
    runs: dict[int, Callable[[], object]] = {}
    length = min(SAMPLE, tokens)
    for slots in RESIDENT:
        model = training_model(shape, torch.device("cpu")).eval()
        bank = AdapterBank(model.adapters, slots)
        for index in range(slots):
            add_random(model.adapters, f"a{index}", MMAConfig(), seed=index)
            bank.put(f"a{index}")
            model.adapters.delete_adapter(f"a{index}")
        batch = _texts(tokens // length, length, shape.decoder.vocab_size)
        names = tuple(f"a{index % slots}" for index in range(len(batch.lengths)))
        runs[slots] = partial(_answer, model, replace(batch, adapters=names))
    return "adapters resident (answering)", runs, dict.fromkeys(runs, tokens // length * length)


def _answer(model: MultimodalLM, batch: PackedBatch) -> None:
    with inference(model):
        model(batch)


def _texts(count: int, length: int, vocabulary: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index in range(max(1, count)):
        ids = tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())
        supervised = (False,) * (length // 2) + (True,) * (length - length // 2)
        samples.append(Tokens(f"t{index}", ids, supervised, (), "text"))
    return collate(samples, lambda path: Prepared(torch.empty(0), (0, 0)))


def _draw(file: Path, curves: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> None:
    """One panel for each curve."""
    from matplotlib import pyplot  # noqa: PLC0415, slow, and only asked for with --plot

    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(3.2 * len(curves), 2.8), constrained_layout=True
    )
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        panel.plot([int(x) for x in curve], list(curve.values()), marker="o")
        panel.set_xscale("log", base=2)
        panel.set_xticks([int(x) for x in curve], labels=list(curve))
        panel.set(xlabel=labels[name], ylim=(0, 1.15 * max(curve.values())))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms per 1,000 tokens")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--plot", type=Path)
    options, sys.argv[1:] = parser.parse_known_args()
    main("scaling", __doc__, partial(measure, plot=options.plot))
