"""Multiple choice by the likelihood of whole option texts: questions per second in one pass for all options.

A decoder with random weights answers questions with the lengths of ScienceQA's (`lengths.py`), three to
five options of 4 to 12 tokens each, of which no single token tells all apart.

    one pass     the prompt once, and its options behind it side by side (models/prefix_attention.py)
    per option   the prompt again for each of its options, packed without padding
    generated    as many tokens as the longest option has, written one by one with continuous batching

Ratios are of times: the other way's over one pass; tokens that go through the decoder are compared too.

    python -m benchmarks.choice [--shape cpu-small|7b] [--json FILE]        about three minutes on two cores
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

from benchmarks.lengths import lengths
from benchmarks.measure import against, main, ratio, table, take_turns
from benchmarks.shapes import MEASURED, SHAPES, training_model
from data.picture_workers import Pictures
from data.pictures import Prepared
from data.sample import Sample, Tokens
from eval.choice import choose
from eval.runner import Asker, answer
from models.build import System
from models.multimodal import inference

QUESTIONS, ROUNDS = 32, 5
SHORTEST, LONGEST = 4, 12
END = 2


class _Numbers:
    """Stands for a tokenizer and a template: texts are ids."""

    stop: tuple[str, ...] = ()
    stop_ids = (-1,)

    def tokens(self, sample: Sample, response: str) -> Tokens:
        prompt, said = ([int(word) for word in text.split()] for text in (sample.prompt, response))
        said += [END] * bool(said)
        supervised = (False,) * len(prompt) + (True,) * len(said)
        return Tokens(sample.id, (*prompt, *said), supervised, (), "text")

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def measure(quick: bool, shape: str = "cpu-small") -> tuple[str, dict[str, Any]]:
    """Questions per second of the three ways, and how many tokens they need."""
    size = SHAPES["tiny" if quick else shape]
    count, rounds = (6, 2) if quick else (QUESTIONS, ROUNDS)
    samples = _samples(count, size.decoder.vocab_size, size.longest // 2)
    numbers: Any = _Numbers()
    system = System(training_model(size, size.device), numbers, None)  # type: ignore[arg-type]
    none = Pictures(lambda path: Prepared(torch.empty(0), (0, 0)))
    asker = Asker(system, numbers, none, size.budget, progress=False)
    cases: dict[str, Callable[[], object]] = {
        "one pass": lambda: [made.option for made in choose(asker, samples).predictions.values()],
        "per option": lambda: _per_option(asker, samples),
        "generated": lambda: answer(asker, samples, max_new_tokens=LONGEST),
    }
    agree = cases["one pass"]() == cases["per option"]()
    clock = process_time if size.on == "cpu" else perf_counter  # see benchmarks/measure.py
    times = take_turns(cases, rounds, clock)
    ratios = {name: ratio(times, name, "one pass") for name in ("per option", "generated")}
    contestants = {name: {"questions_per_s": round(count / median(each), 2)} for name, each in times.items()}
    prompts = sum(len(sample.prompt.split()) for sample in samples)
    again = sum(len(sample.prompt.split()) * len(sample.options) for sample in samples)
    said = sum(len(option.split()) for sample in samples for option in sample.options)
    bound = round((again + said) / (prompts + said), 4)
    lines = [f"{name} over one pass: {against(quotient)}" for name, quotient in ratios.items()]
    text = "\n".join(
        [
            table(("", "questions/s"), [(name, row["questions_per_s"]) for name, row in contestants.items()]),
            *lines,
            f"tokens per option over tokens in one pass: {bound}; the same choices: {agree}",
        ]
    )
    used = {"shape": shape, "questions": count, "rounds": rounds, "same_choices": agree}
    return text, {**used, "contestants": contestants, "ratios": ratios, "tokens_bound": bound}


def _samples(count: int, vocabulary: int, longest: int) -> list[Sample]:
    """Random ids; the first two options of a question begin alike and the third does not."""
    draw = random.Random(3)
    found = []
    for index, length in enumerate(draw.sample(lengths("QCM-A"), count)):
        prompt = draw.choices(range(3, vocabulary), k=min(length.prompt, longest))
        options = [
            draw.choices(range(3, vocabulary), k=draw.randint(SHORTEST, LONGEST) - 1)
            for _ in range(draw.randint(3, 5))
        ]
        options[1][: SHORTEST // 2] = options[0][: SHORTEST // 2]
        texts = [" ".join(map(str, ids)) for ids in (prompt, *options)]
        found.append(Sample(f"q{index}", texts[0], "", (), tuple(texts[1:]), 0))
    return found


def _per_option(asker: Asker, samples: Sequence[Sample]) -> list[int]:
    """The likeliest option of each sample, every option in a row of its own."""
    rows = [asker.template.tokens(sample, option) for sample in samples for option in sample.options]
    scores = [0.0] * len(rows)
    with inference(asker.system.model):
        for group, batch in asker.batches(rows):
            likelihoods = asker.system.model(batch).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            each = likelihoods.split([sum(rows[index].supervised) for index in group])
            for index, own in zip(group, torch.stack([part.sum() for part in each]).tolist(), strict=True):
                scores[index] = own
    found, start = [], 0
    for sample in samples:
        own_scores = scores[start : start + len(sample.options)]
        found.append(own_scores.index(max(own_scores)))
        start += len(sample.options)
    return found


if __name__ == "__main__":
    main("choice", __doc__, measure, MEASURED)
