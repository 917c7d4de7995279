"""What it costs that every sample of a batch names its own adapter (`mma/bank.py`).

A batch of 32 samples, half with a picture, goes through decoder 8 x 512 and tower ViT-B/32 on the CPU:
with one shared adapter, with a bank, and in one run per adapter, which is how a mixed batch is run without
a bank. Goals: the bank with 8 different adapters takes under 1.15 of the time of one shared adapter, and
64 resident adapters instead of 8 change that by less than 5 %.

    python -m benchmarks.bank [--json FILE]          about two minutes on two cores
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import add_random, against, main, milliseconds, ratio, small_model, table, take_turns
from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import MMAConfig
from mma.bank import AdapterBank
from models.multimodal import MultimodalLM, inference

SAMPLES, LENGTH, ANSWER = 32, 94, 4
ADAPTERS, ROUNDS = 64, 4
USED = (1, 8, 32)


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Times of all cases; the bank holds 64 adapters where nothing else is said."""
    model, few = _with_bank(ADAPTERS, quick), _with_bank(8, quick)
    rounds = 2 if quick else ROUNDS
    samples = [_sample(index, model) for index in range(SAMPLES)]
    cases = {
        "bare base": _run(model, _batch(samples, 0)),
        "one shared adapter": _run(model, _batch(samples, None)),
        **{f"bank, {used} used": _run(model, _batch(samples, used)) for used in USED},
        "bank, 8 used of 8": _run(few, _batch(samples, 8)),
        "8 runs, one per adapter": _one_by_one(model, samples, 8),
    }
    times = take_turns(cases, rounds)
    shared = {name: ratio(times, name, "one shared adapter") for name in cases}
    resident = ratio(times, "bank, 8 used", "bank, 8 used of 8")
    runs = ratio(times, "bank, 8 used", "8 runs, one per adapter")
    spent = milliseconds(times)
    rows = [(name, f"{spent[name]:.0f}", against(shared[name])) for name in cases]
    text = "\n".join(
        [
            table(("", "ms", "over one shared adapter"), rows),
            f"64 resident over 8 resident, 8 used: {against(resident)}, goal 0.95 to 1.05",
            f"bank over one run per adapter, 8 used: {against(runs)}",
            f"bank over one shared adapter, 8 used: {against(shared['bank, 8 used'])}, goal under 1.15",
        ]
    )
    numbers = {"milliseconds": spent, "over_shared": shared, "over_8_resident": resident, "over_runs": runs}
    return text, {"samples": SAMPLES, "rounds": rounds, **numbers}


def _with_bank(slots: int, quick: bool) -> MultimodalLM:
    """The small model with an adapter of its own and a full bank."""
    model = small_model(quick)
    add_random(model.adapters, "shared", MMAConfig(), seed=slots)
    bank = AdapterBank(model.adapters, slots)
    for index in range(slots):
        add_random(model.adapters, f"a{index}", MMAConfig(), seed=index)
        bank.put(f"a{index}")
        model.adapters.delete_adapter(f"a{index}")
    model.adapters.set_adapter("shared")
    return model


def _sample(index: int, model: MultimodalLM) -> Tokens:
    """Random ids, every second sample with a picture."""
    vocabulary = model.decoder.config.vocab_size
    ids = torch.randint(3, vocabulary, (LENGTH,), generator=torch.Generator().manual_seed(index)).tolist()
    slots = tuple(range(3, 3 + model.tower.tokens)) if index % 2 else ()
    supervised = tuple(place >= LENGTH - ANSWER for place in range(LENGTH))
    kind = "image" if slots else "text"
    pictures = (Path(f"{model.tower.image_size[0]}-{index}"),) if slots else ()
    return Tokens(f"s{index}", tuple(ids), supervised, slots, kind, pictures, (len(slots),) * len(pictures))


def _picture(path: Path) -> Prepared:
    """Random pixels; the picture's name is its size and its seed."""
    size, seed = (int(number) for number in path.name.split("-"))
    generator = torch.Generator().manual_seed(seed)
    return Prepared(torch.randn(1, 3, size, size, generator=generator), (size, size))


def _batch(samples: Sequence[Tokens], used: int | None) -> PackedBatch:
    """The samples in one batch: by so many adapters of the bank in turn, by none (0), or the active one."""
    names = None if used is None else tuple(f"a{i % used}" if used else None for i in range(len(samples)))
    return replace(collate(samples, _picture), adapters=names)


def _run(model: MultimodalLM, *batches: PackedBatch) -> Callable[[], None]:
    def run() -> None:
        with inference(model):
            for batch in batches:
                model(batch)

    return run


def _one_by_one(model: MultimodalLM, samples: Sequence[Tokens], used: int) -> Callable[[], None]:
    """The same work without mixing: every adapter's samples in a batch of their own."""
    batches = []
    for first in range(used):
        own = _batch(samples[first::used], 1)
        batches.append(replace(own, adapters=(f"a{first}",) * len(own.lengths)))
    return _run(model, *batches)


if __name__ == "__main__":
    main("bank", __doc__, measure)
