"""How fast this device multiplies, and about how many tokens an epoch has: before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch

from data.errors import DataError
from data.mixture import open_mixture
from data.sample import Sample
from finetune.recipe import Recipe
from finetune.samples import read_split

SHARE = 0.75  # of the time of a step that its matrix products take (docs/performance.md)
CHARACTERS = 3.5  # of a token, about, in English text with numbers
LOOKED_AT = 500  # samples of a mixture whose lengths are looked at


def products_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of large matrix products, measured within a second."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start = perf_counter()
        c = a @ b
        c[0, 0].item()  # waits for the device
        best = min(best, perf_counter() - start)
    return 2 * size**3 / best


@dataclass(frozen=True)
class Epoch:
    """About what an epoch holds."""

    samples: int
    tokens: int
    pictures: int


def epoch_of(recipe: Recipe, slots: int) -> Epoch | None:
    """The epoch of a recipe, by the lengths of its texts; None where the data are not there."""
    settings = recipe.data
    try:
        if settings.mix:
            mixture = open_mixture(settings.mix, recipe.optim.seed)
            count = len(mixture)
            few = min(count, LOOKED_AT)
            looked = [mixture[index * count // few] for index in range(few)]
        else:
            looked = read_split(settings, settings.train)
            count = len(looked)
    except (DataError, OSError):
        return None
    if not looked:
        return None
    part = count / len(looked)
    lengths = [min(settings.max_tokens, _length(sample, slots)) for sample in looked]
    pictures = sum(len(sample.images) for sample in looked)
    return Epoch(count, round(part * sum(lengths)), round(part * pictures))


def _length(sample: Sample, slots: int) -> int:
    texts = [sample.prompt, sample.response, *(turn.question + turn.answer for turn in sample.earlier)]
    return round(sum(map(len, texts)) / CHARACTERS) + 3 + slots * len(sample.images)
