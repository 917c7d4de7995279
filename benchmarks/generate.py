"""Greedy decoding: tokens per second beside `transformers.generate`, and what continuous batching is worth.

A decoder with random weights answers prompts with the lengths of ScienceQA's questions (`lengths.py`).

    ours, transformers   a fixed number of new tokens, for one prompt and for 32 of unlike lengths;
                         transformers reads the same weights from a folder that models/export.py writes, and
                         pads on the left
    continuous           prompts share the rows of one cache: whoever finishes makes room for the next
    waiting              as many rows as it begins with, each group of prompts until its longest answer ends;
                         answers have the spread of ScienceQA's explanations, at a quarter of their length

Ratios are of times: the peer's over ours. Goal on a GPU: 2 over transformers at both sizes.

    python -m benchmarks.generate [--shape cpu-small|7b] [--json FILE]        about six minutes on two cores
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from transformers import LlamaForCausalLM

from benchmarks.lengths import lengths
from benchmarks.measure import against, main, ratio, table, take_turns
from benchmarks.shapes import MEASURED, SHAPES, TrainShape, training_model
from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens
from models.build import System
from models.export import write_hf
from models.generate import Queue, Sampling, answer_all, generate
from models.multimodal import MultimodalLM

ROWS = (1, 32)
NEW = 32
PROMPTS, SHARED_ROWS, SHRINK = 64, 16, 4
ROUNDS = 5


class _Numbers:
    """Stands for a tokenizer: texts are ids, and an answer ends when its first token says so."""

    eos_id = -1

    def __init__(self, ends: Sequence[int] = ()) -> None:
        self.ends = ends

    def decode(self, ids: Sequence[int]) -> str:
        text = " ".join(map(str, ids))
        return text + "." if self.ends and len(ids) >= self.ends[ids[0] % len(self.ends)] else text


def measure(quick: bool, shape: str = "cpu-small") -> tuple[str, dict[str, Any]]:
    """Tokens per second of all contestants, and the ratios."""
    size = SHAPES["tiny" if quick else shape]
    model = training_model(size, size.device)
    model.adapters.delete_adapter("default")
    rounds, new = (2, 3) if quick else (ROUNDS, NEW)
    clock = process_time if size.on == "cpu" else perf_counter  # see benchmarks/measure.py
    contestants: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        write_hf(model.decoder, Path(folder), size.dtype)
        peer = LlamaForCausalLM.from_pretrained(folder, dtype=size.dtype).to(size.device).eval()
    for count in ROWS:
        tokens = _prompts(count, size)
        cases = {"ours": _ours(model, tokens, new), "transformers": _theirs(peer, tokens, new)}
        same = sum(a == b for a, b in zip(*(run() for run in cases.values()), strict=True)) / count
        times = take_turns(cases, rounds, clock)
        for name, each in times.items():
            contestants[f"{name}, {count} rows"] = {"tokens_per_s": round(count * new / median(each), 1)}
        contestants[f"ours, {count} rows"]["same_answers"] = same
        ratios[f"transformers, {count} rows"] = ratio(times, "transformers", "ours")
    cases, made = _spread(model, size, quick)
    times = take_turns(cases, max(2, rounds - 2), clock)
    for name, each in times.items():
        contestants[name] = {"tokens_per_s": round(made[name] / median(each), 1)}
    ratios["waiting"] = ratio(times, "waiting", "continuous")
    rows = [(name, row["tokens_per_s"]) for name, row in contestants.items()]
    lines = [f"{name} over ours: {against(quotient)}" for name, quotient in ratios.items()]
    text = "\n".join([table(("", "tokens/s"), rows), *lines])
    used = {"shape": shape, "new_tokens": new, "rounds": rounds}
    return text, {**used, "contestants": contestants, "ratios": ratios}


def _prompts(count: int, size: TrainShape) -> list[Tokens]:
    drawn = random.Random(1).sample(lengths("QCM-A"), count)
    generator = torch.Generator().manual_seed(count)
    found = []
    for index, length in enumerate(drawn):
        long = min(length.prompt, size.longest // 2)
        ids = torch.randint(3, size.decoder.vocab_size, (long,), generator=generator).tolist()
        found.append(Tokens(f"p{index}", tuple(ids), (False,) * long, (), "text"))
    return found


def _packed(tokens: Sequence[Tokens], device: torch.device) -> PackedBatch:
    return collate(tokens, lambda path: Prepared(torch.empty(0), (0, 0))).to(device)


def _system(model: MultimodalLM, ends: Sequence[int] = ()) -> System:
    return System(model, _Numbers(ends), None)  # type: ignore[arg-type]


def _ours(model: MultimodalLM, tokens: Sequence[Tokens], new: int) -> Callable[[], list[str]]:
    batch, system = _packed(tokens, model.device), _system(model)
    return lambda: generate(system, batch, Sampling(new, stop_ids=(-1,)))


def _theirs(model: LlamaForCausalLM, tokens: Sequence[Tokens], new: int) -> Callable[[], list[str]]:
    longest = max(map(len, tokens))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row.ids) for row in tokens])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in tokens])
    asked = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run() -> list[str]:
        with torch.no_grad():
            written = model.generate(**asked, **settings)[:, longest:]
        return [_Numbers().decode(row) for row in written.tolist()]

    return run


def _spread(
    model: MultimodalLM, size: TrainShape, quick: bool
) -> tuple[dict[str, Callable[[], int]], dict[str, int]]:
    """Both ways to answer many prompts, and how many tokens each writes."""
    count, rows = (8, 3) if quick else (PROMPTS, SHARED_ROWS)
    tokens = sorted(_prompts(count, size), key=len, reverse=True)
    drawn = random.Random(2).sample(lengths("QCM-ALE"), 101)
    ends = [min(8, length.answer) if quick else max(1, length.answer // SHRINK) for length in drawn]
    system = _system(model, ends)
    sampling = Sampling(max(ends), stop=(".",), stop_ids=(-1,))
    room = len(tokens[0]) + max(ends)
    queue = Queue(
        [len(each) for each in tokens], lambda group: _packed([tokens[i] for i in group], model.device)
    )

    def continuous() -> int:
        return sum(len(text.split()) for _, text in answer_all(system, queue, sampling, rows * room))

    def waiting() -> int:
        batches = [_packed(tokens[start : start + rows], model.device) for start in range(0, count, rows)]
        return sum(len(text.split()) for batch in batches for text in generate(system, batch, sampling))

    cases = {"continuous": continuous, "waiting": waiting}
    made = {name: run() for name, run in cases.items()}
    # In half precision a prefill in other company may round the other way.
    assert size.dtype != torch.float32 or made["continuous"] == made["waiting"], "the same answers"
    return cases, made


if __name__ == "__main__":
    main("generate", __doc__, measure, MEASURED)
