"""How true the memory is that `train.py --plan` foretells, and what checkpointing saves.

A step of `ours` at the training benchmark's shape, by the kind of checkpointing: the peak that is foretold
from shapes alone (weights, trained parameters, what is kept for the backward pass, what is at work) over the
one that is measured in a process of its own. Goal: 0.9 to 1.1. On the CPU glibc is told to give large tensors
back when they are freed; left alone it keeps up to a third more, in pieces.

    python -m benchmarks.memory [--shape cpu-small|7b] [--json FILE]       about two minutes on two cores
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.lengths import FORMATS
from benchmarks.measure import main, table
from benchmarks.samples import packed, samples
from benchmarks.shapes import MEASURED, SHAPES, TrainShape, training_model
from benchmarks.train import peak_bytes
from data.packing import PackedBatch
from finetune.memory import Shape, traced
from finetune.plan import TRAINED
from models.multimodal import MultimodalLM

KINDS = ("none", "selective", "full")


def measure(quick: bool, name: str = "cpu-small") -> tuple[str, dict[str, Any]]:
    """Foretold and measured peaks of both prompt formats."""
    name = "tiny" if quick else name
    shape = SHAPES[name]
    model = training_model(shape, torch.device("meta"))
    found: dict[str, dict[str, float]] = {}
    for form in FORMATS:
        batches = packed(
            samples(form, shape.samples[form], shape.decoder.vocab_size, shape.longest),
            shape.budget,
            model.tower.image_size,
        )
        for kind in KINDS:
            model.checkpointing = kind
            foretold = _weights(model, shape) + max(_batch(model, batch) for batch in batches)
            measured = peak_bytes(f"ours:{kind}", name, form, MALLOC_MMAP_THRESHOLD_=str(2**20))
            found[f"{form}/{kind}"] = {
                "foretold": foretold,
                "measured": measured,
                "ratio": round(foretold / measured, 3),
            }
    rows = [
        (key, f"{each['foretold'] / 2**20:.0f}", f"{each['measured'] / 2**20:.0f}", f"{each['ratio']:.2f}")
        for key, each in found.items()
    ]
    return table(("", "foretold MiB", "measured MiB", "ratio"), rows), {"shape": name, "peaks": found}


def _weights(model: MultimodalLM, shape: TrainShape) -> int:
    """Bytes of the base, and of what is trained with its gradient and averages."""
    base = sum(p.numel() for p in model.adapters.base.values()) * shape.dtype.itemsize
    trained = sum(p.numel() for p in model.adapters.trainable_parameters().values())
    return base + TRAINED * trained


def _batch(model: MultimodalLM, batch: PackedBatch) -> int:
    """Bytes that a micro-batch takes at its worst moment."""
    supervised = (len(batch.targets),) + (0,) * (len(batch.lengths) - 1)
    sizes = iter(batch.sizes)
    pictures = tuple(next(sizes) if kind == "image" else None for kind in batch.modalities)
    needs = traced(model, Shape(batch.lengths, supervised, pictures))
    return needs.activations + needs.working


if __name__ == "__main__":
    main("memory", __doc__, measure, MEASURED)
