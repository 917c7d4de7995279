"""Puts questions to a model in batches, and takes what it writes; `choice.py` compares options instead.

Greedy or by beam search, never sampled, and a question's answer does not depend on which others share its
batch. Knows nothing of benchmarks or of files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from tqdm import tqdm

from data.lengths import Fitted, first_ids, fit
from data.packing import LoadPicture, PackedBatch, pack
from data.picture_workers import Pictures
from data.pictures import Prepared, picture_size
from data.sample import Sample, Tokens
from data.template import Template
from eval.errors import EvalError
from eval.results import Prediction
from models.beam import search_all
from models.build import System
from models.generate import Queue, Sampling, answer_all

Who = Sequence[str | None] | None
"""The adapter of the bank that answers each question, None the base; without it the active adapter."""


@dataclass(frozen=True)
class Asker:
    """A model and how to put questions to it.

    Args:
        pictures: Gives the picture of a file as the tower wants it.
        tokens_per_batch: A matter of memory and speed, not of the answers; of a batch, or of the cache.
        long: What happens to a question that the decoder's positions do not hold: error, or truncate its
            prompt at the beginning.
        progress: Whether to show how many questions are answered, and the time left.
    """

    system: System
    template: Template
    pictures: Pictures
    tokens_per_batch: int = 4096
    long: Literal["error", "truncate"] = "error"
    progress: bool = True

    def fitted(self, tokens: Sequence[Tokens], spare: int = 0) -> Fitted:
        """The questions within the decoder's positions, with room for `spare` more tokens each."""
        limit = self.system.model.decoder.config.max_positions - spare
        if limit < 1:
            raise EvalError(
                f"an answer of {spare} tokens leaves no room for its question in the {limit + spare} "
                "positions of this decoder; lower --max-new-tokens"
            )
        too_long = [item.sample_id for item in tokens if len(item) > limit]
        if too_long and self.long == "error":
            raise EvalError(
                f"{len(too_long)} of {len(tokens)} questions are longer than the {limit} tokens this decoder "
                f"leaves for them ({first_ids(too_long)}); --long truncate shortens their prompts"
            )
        return fit(tokens, limit, self.long)

    def batches(self, tokens: Sequence[Tokens], who: Who = None) -> Iterator[tuple[list[int], PackedBatch]]:
        """Batches on the model's device, each with the indices of its questions."""
        lengths = [len(item) for item in tokens]
        # a question longer than the budget still has to be asked
        budget = max([self.tokens_per_batch, *lengths])
        with self.bar(len(tokens)) as bar:
            for group in pack(lengths, budget):
                yield group, self.batch(tokens, group, who)
                bar.update(len(group))

    def batch(self, tokens: Sequence[Tokens], group: Sequence[int], who: Who = None) -> PackedBatch:
        """Some of the questions as one batch on the model's device."""
        batch = self.pictures.batch([tokens[index] for index in group]).to(self.system.model.device)
        return batch if who is None else replace(batch, adapters=tuple(who[index] for index in group))

    def bar(self, questions: int) -> tqdm[Any]:
        """Shows how many questions are answered."""
        return tqdm(total=questions, unit="question", delay=2, leave=False, disable=not self.progress)


@dataclass(frozen=True)
class Asked:
    """Answers on their way: the indices of those whose prompts were cut, and (index, answer) as they come."""

    cut: frozenset[int]
    coming: Iterator[tuple[int, Prediction]]


@dataclass(frozen=True)
class Answers:
    """Predictions by sample id, and the ids of the samples whose prompts had to be shortened."""

    predictions: dict[str, Prediction]
    truncated: tuple[str, ...]


def collected(samples: Sequence[Sample], asked: Asked) -> Answers:
    """All answers, in the order of their samples."""
    found = dict(asked.coming)
    cut = tuple(samples[index].id for index in sorted(asked.cut))
    return Answers({sample.id: found[index] for index, sample in enumerate(samples)}, cut)


def cut_of(tokens: Sequence[Tokens], fitted: Fitted) -> frozenset[int]:
    """The indices of questions that had to be shortened: a question that fits is handed back itself."""
    pairs = enumerate(zip(tokens, fitted.tokens, strict=True))
    return frozenset(index for index, (before, after) in pairs if before is not after)


def answer(asker: Asker, samples: Sequence[Sample], *, max_new_tokens: int) -> Answers:
    """What the model writes as an answer to every sample."""
    return collected(samples, answering(asker, samples, max_new_tokens=max_new_tokens))


def answering(
    asker: Asker, samples: Sequence[Sample], who: Who = None, *, max_new_tokens: int, beams: int = 1
) -> Asked:
    """What the model writes as an answer to every sample, in the order in which the answers end.

    Args:
        who: The adapter of the bank that answers each sample.
        beams: 1: the likeliest token after the other; more: beam search.
    """
    template = asker.template
    prompts = [template.tokens(sample, response="") for sample in samples]
    questions = asker.fitted(prompts, spare=max_new_tokens)
    greedy = Sampling(max_new_tokens, stop=template.stop, stop_ids=template.stop_ids)
    lengths = [len(tokens) for tokens in questions.tokens]
    queue = Queue(lengths, lambda group: asker.batch(questions.tokens, group, who))

    def answers() -> Iterator[tuple[int, Prediction]]:
        with asker.bar(len(samples)) as bar:
            tokens = asker.tokens_per_batch
            if beams == 1:
                found = answer_all(asker.system, queue, greedy, tokens)
            else:
                found = search_all(asker.system, queue, beams, greedy, tokens)
            for index, text in found:
                yield index, Prediction(None, samples[index].gold, text=text)
                bar.update()

    return Asked(cut_of(prompts, questions), answers())


class Pictured(Protocol):
    """A sample or a question: something with a name that shows pictures."""

    @property
    def id(self) -> str: ...

    @property
    def images(self) -> tuple[Path, ...]: ...


def noise_instead(system: System, samples: Sequence[Pictured]) -> LoadPicture:
    """Pictures of noise for a blind model: the same for a sample every time, and of one size for all."""
    owners = {image: sample.id for sample in samples for image in sample.images}
    height, width = system.model.tower.image_size

    def load(path: Path) -> Prepared:
        generator = torch.Generator().manual_seed(zlib.crc32(owners[path].encode()))
        # Where slots depend on the size, the noise has that of the picture it stands for.
        wide, high = (width, height) if system.image_slots is not None else picture_size(path)
        pixels = torch.randint(256, (high, wide, 3), generator=generator, dtype=torch.uint8)
        return Prepared(system.preprocess(Image.fromarray(pixels.numpy())), (wide, high))

    return load
