"""What a quantised base costs: memory, speed of tuning an adapter on it, and right answers lost.

Twenty steps on random text with mixture-of-modality adapters, the decoder in full, in int8 and in NF4: on the
CPU one of 8 x 512, or on a GPU one of a published size with random weights. The embedded base then answers
its own questions in each form (share of right letters).

    python -m benchmarks.quantised [--json FILE]        about three minutes on two cores
    python -m benchmarks.quantised --shape llama-7b --kind nf4 [--json FILE]        on a GPU; also qwen1.5-7b
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from torch import nn

from assets.mini.pretrain_decoder import gate
from benchmarks.measure import CPU_SMALL, TINY_TOWER, main, table
from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import MMAConfig
from models.build import BaseSettings, layout_of
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.multimodal import MultimodalLM
from models.named import named
from models.quantise import KINDS, quantiser
from models.rope import Rotary
from models.tower import Features, Tower
from models.tower_spec import TowerSpec
from models.weights import load_decoder

STEPS = 20
EMBEDDED = Path("assets/mini/decoder")


def measure(quick: bool, shape: str = "", kind: str = "") -> tuple[str, dict[str, Any]]:
    """Memory and speed of every kind, or of one."""
    device = torch.device("cuda" if shape else "cpu")
    config = named(shape) if shape else DecoderConfig(64, 2, 4, 4, 96, 500) if quick else CPU_SMALL
    samples, length = (2, 16) if quick else (4, 512) if shape else (2, 128)
    found = {
        each: _tuned(config, each, device, 3 if quick else STEPS, _texts(samples, length, config.vocab_size))
        for each in ([kind] if kind else KINDS)
    }
    head = ("base", "decoder, MiB", "peak, MiB", "steps/s", "first loss", "last loss")
    text = table(head, [(name, *row.values()) for name, row in found.items()])
    numbers: dict[str, Any] = {
        "shape": shape or "8 x 512",
        "precision": "bf16" if shape else "fp32",
        "tokens": samples * length,
        "kinds": found,
    }
    if not shape and not quick:
        numbers["right"] = {each: _right(each) for each in KINDS}
        places = list(numbers["right"]["none"])
        text += "\n\n" + table(
            ("embedded base, right letters", *places),
            [(name, *row.values()) for name, row in numbers["right"].items()],
        )
    if device.type == "cuda":
        numbers["gpu"] = torch.cuda.get_device_name()
    return text, numbers


def _tuned(
    config: DecoderConfig, kind: str, device: torch.device, steps: int, batch: PackedBatch
) -> dict[str, float]:
    """Some steps of AdamW on the same batch; the first is not timed."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = _model(config, kind, device)
    clock = perf_counter if device.type == "cuda" else process_time  # see benchmarks/measure.py
    held = sum(p.numel() * p.itemsize for p in model.decoder.parameters())
    trained = list(model.adapters.trainable_parameters().values())
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    batch, seconds, losses = batch.to(device), [], []
    for _ in range(steps + 1):
        start = clock()
        optimizer.zero_grad()
        loss = model.loss(batch) / batch.targets.numel()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # waits for the GPU
        seconds.append(clock() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {
        "decoder_mib": round(held / 2**20, 1),
        "peak_mib": round(peak / 2**20, 1),
        "steps_per_second": round(1 / median(seconds[1:]), 3),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }


def _model(config: DecoderConfig, kind: str, device: torch.device) -> MultimodalLM:
    """A system with random weights, which are quantised one by one where they are to lie."""
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    make = quantiser(kind, dtype)
    with torch.device("meta"):
        decoder = Decoder(config)
    for path, module in list(decoder.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            shape = parameter.shape
            value = torch.ones(shape, dtype=dtype, device=device)
            if len(shape) == 2:
                value.normal_(std=config.dim**-0.5)
            if make is not None and isinstance(module, nn.Linear) and path != "head" and leaf == "weight":
                parent, _, child = path.rpartition(".")
                setattr(decoder.get_submodule(parent), child, make(module, value))
            else:
                setattr(decoder.get_submodule(path), leaf, nn.Parameter(value))
    decoder.rotary = Rotary(config.turning, config.rope_theta, config.rope_scaling).to(device)
    spec = TowerSpec(TINY_TOWER, {})
    seen = Tower(spec, Features(every=1)).to(device, dtype)
    model = MultimodalLM(decoder, seen, layout_of(BaseSettings(), spec, seen)).eval()
    model.adapters.add_adapter("default", MMAConfig())
    return model.train()


def _texts(count: int, length: int, vocabulary: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index in range(count):
        ids = tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())
        samples.append(Tokens(f"t{index}", ids, (False,) + (True,) * (length - 1), (), "text"))
    return collate(samples, lambda path: Prepared(torch.empty(0), (0, 0)))


def _right(kind: str) -> dict[str, float]:
    """The embedded base's share of right letters by the place of the facts."""
    decoder = load_decoder(EMBEDDED, dtype=torch.float32, quantise=quantiser(kind, torch.float32))
    found = gate(decoder, SentencePieceProcessor(model_file=str(EMBEDDED / "tokenizer.model")))
    return {name: round(value, 4) for name, value in found.items() if not name.endswith("_chance")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--shape", default="")
    parser.add_argument("--kind", default="")
    options, sys.argv[1:] = parser.parse_known_args()
    main("quantised", __doc__, partial(measure, shape=options.shape, kind=options.kind))
