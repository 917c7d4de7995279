"""Answers of a model to multiple-choice samples: by the likelihood of each option, or in its own words.

Greedy throughout, and a sample's answer does not depend on which samples share its batch. Knows nothing
of ScienceQA's categories or of files.

Letters: V vocabulary, L supervised positions of a batch (here one per sample).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.packing import collate, pack
from data.sample import Sample, Tokens
from data.template import LavinTemplate
from eval.errors import EvalError
from eval.results import Prediction
from eval.scienceqa import extract
from models.build import System
from models.generate import generate
from models.multimodal import inference

LoadPicture = Callable[[Path], Tensor]

# Likelihoods are compared and stored with four decimals: what lies behind them depends on the shape
# the kernels saw, so on the batch, and must not decide between two options.
DECIMALS = 4


@dataclass(frozen=True)
class Asker:
    """A model, how to put questions to it, and how many tokens it may see at once."""

    system: System
    template: LavinTemplate
    load_picture: LoadPicture
    batch_tokens: int = 4096
    progress: bool = True

    def batches(self, tokens: Sequence[Tokens], spare: int = 0) -> Iterator[list[int]]:
        """Indices of the samples of every batch, each with room for `spare` more tokens per sample."""
        lengths = [len(item) + spare for item in tokens]
        # a sample longer than the budget still has to be asked: alone, or with others up to its length
        budget = max([self.batch_tokens, *lengths])
        with tqdm(total=len(tokens), unit="question", disable=not self.progress) as bar:
            for group in pack(lengths, budget):
                yield group
                bar.update(len(group))


@dataclass(frozen=True)
class _Choice:
    """A prompt with everything its options share, then the token of the first; the options' tokens."""

    tokens: Tokens
    options: tuple[int, ...]


def choose(asker: Asker, samples: Sequence[Sample]) -> dict[str, Prediction]:
    """The likeliest option of every sample, in one pass; of equally likely ones the first."""
    choices = [_choice(asker.template, sample) for sample in samples]
    found: dict[int, Prediction] = {}
    with inference(asker.system.model):
        for group in asker.batches([choice.tokens for choice in choices]):
            batch = collate([choices[index].tokens for index in group], asker.load_picture)
            logits = asker.system.model(batch.to(asker.system.model.device))
            for index, row in zip(group, logits.float().log_softmax(-1).cpu(), strict=True):
                found[index] = _likeliest(samples[index], row[list(choices[index].options)])
    return {sample.id: found[index] for index, sample in enumerate(samples)}


def answer(asker: Asker, samples: Sequence[Sample], *, max_new_tokens: int) -> dict[str, Prediction]:
    """The option that the generated answer of every sample names."""
    prompts = [asker.template.tokens(sample, response="") for sample in samples]
    found: dict[int, Prediction] = {}
    with inference(asker.system.model):
        for group in asker.batches(prompts, spare=max_new_tokens):
            texts = generate(
                asker.system,
                [prompts[index] for index in group],
                asker.load_picture,
                max_new_tokens=max_new_tokens,
            )
            for index, text in zip(group, texts, strict=True):
                option = extract(text, len(samples[index].options))
                found[index] = Prediction(option, samples[index].gold, text=text)
    return {sample.id: found[index] for index, sample in enumerate(samples)}


def accuracy(asker: Asker, samples: Sequence[Sample]) -> float:
    """The share of samples whose likeliest option is the right one."""
    if not samples:
        raise EvalError("accuracy: no samples to validate on; name a split that has some")
    predictions = choose(asker, samples).values()
    return sum(prediction.option == prediction.gold for prediction in predictions) / len(predictions)


def noise_instead(system: System, samples: Sequence[Sample]) -> LoadPicture:
    """Pictures of noise for a blind model: the same for a sample every time, and of one size for all."""
    owners = {sample.image: sample.id for sample in samples if sample.image is not None}
    height, width = system.preprocess(Image.new("RGB", (64, 64))).shape[-2:]

    def load(path: Path) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(owners[path].encode()))
        pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        return system.preprocess(Image.fromarray(pixels.numpy()))

    return load


def _choice(template: LavinTemplate, sample: Sample) -> _Choice:
    """Cut the responses where they part: the token there is what stands for an option."""
    responses = [template.tokens(sample, response=option) for option in sample.options]
    ids = [response.ids for response in responses]
    columns = enumerate(zip(*ids, strict=False))  # a longer one only adds the end of its own response
    shared = next((place for place, column in columns if len(set(column)) > 1), None)
    options = () if shared is None else tuple(row[shared] for row in ids)
    if shared is None or len(set(options)) < len(options):
        raise EvalError(
            f"question {sample.id}: its options do not differ in one token of this tokenizer; "
            "use --decode generate"
        )
    tokens = replace(
        responses[0], ids=ids[0][: shared + 1], supervised=(False,) * shared + (True,)
    )  # one supervised token: the model computes the logits that predict it, and no others
    return _Choice(tokens, options)


def _likeliest(sample: Sample, likelihoods: Tensor) -> Prediction:
    values = tuple(round(float(value), DECIMALS) for value in likelihoods)
    if not torch.isfinite(likelihoods).all():
        raise EvalError(
            f"question {sample.id}: the model gave {values}, not likelihoods; "
            "the adapter's weights are broken or the precision is too low"
        )
    return Prediction(values.index(max(values)), sample.gold, likelihoods=values)
