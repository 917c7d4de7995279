"""What a merged adapter costs in greedy decoding: nothing, it is the base's own linear layers again.

The decoder 8 x 512 on the CPU answers with the key-value cache, one row and eight rows at a time: bare,
with an adapter, and with that adapter merged. Goal: merged over bare between 0.98 and 1.02.

    python -m benchmarks.merged [--json FILE]        about two minutes on two cores
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import add_random, against, main, milliseconds, ratio, small_model, table, take_turns
from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import MMAConfig
from models.build import System
from models.generate import Sampling, generate
from models.multimodal import MultimodalLM

PROMPT, TOKENS = 8, 12
ROWS = (1, 8)
ROUNDS = 41


class _Numbers:
    """Stands for a tokenizer: no end of text, and texts that cost nothing to make."""

    eos_id = -1

    def decode(self, ids: list[int]) -> str:
        return "." * len(ids)


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Times of bare, merged and unmerged decoding, for every number of rows."""
    models = {name: _model(quick, name) for name in ("bare base", "merged", "unmerged")}
    prompt, tokens, rounds = (8, 4, 2) if quick else (PROMPT, TOKENS, ROUNDS)
    rows, numbers = [], {}
    for count in ROWS:
        batch = _prompts(count, prompt, models["merged"].decoder.config.vocab_size)
        times = take_turns({name: _run(model, batch, tokens) for name, model in models.items()}, rounds)
        spent = milliseconds(times)
        over = {name: ratio(times, name, "bare base") for name in ("merged", "unmerged")}
        numbers[str(count)] = {"milliseconds": spent, "over_bare": over}
        rows += [(f"{count} rows, bare base", f"{spent['bare base']:.0f}", "")]
        rows += [(f"{count} rows, {name}", f"{spent[name]:.0f}", against(over[name])) for name in over]
    text = table(("", "ms", "over the bare base"), rows)
    goal = "goal for merged: 0.98 to 1.02"
    return f"{text}\n{goal}", {"prompt": prompt, "tokens": tokens, "rounds": rounds, "rows": numbers}


def _model(quick: bool, how: str) -> MultimodalLM:
    """A model of its own for every case, with the same base and the same adapter."""
    model = small_model(quick)
    if how != "bare base":
        add_random(model.adapters, "adapter", MMAConfig(), seed=1)
    if how == "merged":
        model.adapters.merge_adapter("text")
    return model


def _prompts(count: int, length: int, vocabulary: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(count)
    samples = []
    for index in range(count):
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        samples.append(Tokens(f"p{index}", tuple(ids), (False,) * length, (), "text"))
    return collate(samples, lambda path: Prepared(torch.empty(0), (0, 0)))


def _run(model: MultimodalLM, batch: PackedBatch, tokens: int) -> Callable[[], object]:
    """One answer of so many tokens to every row."""
    system = System(model, _Numbers(), None)  # type: ignore[arg-type]
    return lambda: generate(system, batch, Sampling(max_new_tokens=tokens))


if __name__ == "__main__":
    main("merged", __doc__, measure)
