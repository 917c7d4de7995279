"""Answers of a model to multiple-choice samples: by the likelihood of each option, or in its own words.

Greedy throughout, and a sample's answer does not depend on which samples share its batch. Knows nothing
of ScienceQA's categories or of files.

Letters: V vocabulary, L supervised positions of a batch (here one per sample).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.lengths import Fitted, first_ids, fit
from data.packing import LoadPicture, PackedBatch, collate, pack
from data.pictures import Prepared, picture_size
from data.sample import Sample, Tokens
from data.template import Template
from eval.errors import EvalError
from eval.results import Prediction
from eval.scienceqa import extract
from models.build import System
from models.generate import Sampling, generate
from models.multimodal import inference

# Likelihoods are compared and stored with four decimals: what lies behind them depends on the shape
# the kernels saw, so on the batch, and must not decide between two options.
DECIMALS = 4


@dataclass(frozen=True)
class Asker:
    """A model and how to put questions to it.

    Args:
        load_picture: Gives a picture of a file as the tower wants it.
        tokens_per_batch: A matter of memory and speed, not of the answers.
        long: What happens to a question that the decoder's positions do not hold: error, or truncate its
            prompt at the beginning.
        progress: Whether to show how many questions are answered, and the time left.
    """

    system: System
    template: Template
    load_picture: LoadPicture
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

    def batches(self, tokens: Sequence[Tokens], spare: int = 0) -> Iterator[tuple[list[int], PackedBatch]]:
        """Batches on the model's device, each with the indices of its questions."""
        lengths = [len(item) + spare for item in tokens]
        # a question longer than the budget still has to be asked
        budget = max([self.tokens_per_batch, *lengths])
        with tqdm(total=len(tokens), unit="question", delay=2, leave=False, disable=not self.progress) as bar:
            for group in pack(lengths, budget):
                batch = collate([tokens[index] for index in group], self.load_picture)
                yield group, batch.to(self.system.model.device)
                bar.update(len(group))


@dataclass(frozen=True)
class Answers:
    """Predictions by sample id, and the ids of the samples whose prompts had to be shortened."""

    predictions: dict[str, Prediction]
    truncated: tuple[str, ...]


def choose(asker: Asker, samples: Sequence[Sample]) -> Answers:
    """The likeliest option of every sample, in one pass; of equally likely ones the first."""
    choices = [_choice(asker.template, sample) for sample in samples]
    questions = asker.fitted([tokens for tokens, _ in choices])
    found: dict[int, Prediction] = {}
    with inference(asker.system.model):
        for group, batch in asker.batches(questions.tokens):
            likelihoods = asker.system.model(batch).float().log_softmax(-1).cpu()  # float[L, V]
            for index, row in zip(group, likelihoods, strict=True):
                found[index] = _likeliest(samples[index], row[list(choices[index][1])])
    return _in_order(samples, found, questions)


def answer(asker: Asker, samples: Sequence[Sample], *, max_new_tokens: int) -> Answers:
    """The option that the generated answer of every sample names."""
    prompts = [asker.template.tokens(sample, response="") for sample in samples]
    questions = asker.fitted(prompts, spare=max_new_tokens)
    template = asker.template
    greedy = Sampling(max_new_tokens, stop=template.stop, stop_ids=template.stop_ids)
    found: dict[int, Prediction] = {}
    for group, batch in asker.batches(questions.tokens, spare=max_new_tokens):
        for index, text in zip(group, generate(asker.system, batch, greedy), strict=True):
            option = extract(text, len(samples[index].options))
            found[index] = Prediction(option, samples[index].gold, text=text)
    return _in_order(samples, found, questions)


def accuracy(asker: Asker, samples: Sequence[Sample]) -> float:
    """The share of samples whose likeliest option is the right one."""
    if not samples:
        raise EvalError("accuracy: no samples to validate on; name a split that has some")
    predictions = choose(asker, samples).predictions.values()
    return sum(prediction.option == prediction.gold for prediction in predictions) / len(predictions)


def noise_instead(system: System, samples: Sequence[Sample]) -> LoadPicture:
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


def _choice(template: Template, sample: Sample) -> tuple[Tokens, tuple[int, ...]]:
    """What the model is shown, and the token that stands for each option.

    The responses are cut where they part. One token behind that is supervised (the first option's; which
    one does not matter), so the model computes the logits that predict an option's token, and no others.
    """
    responses = [template.tokens(sample, response=option) for option in sample.options]
    columns = enumerate(zip(*(response.ids for response in responses), strict=False))
    shared = next((place for place, column in columns if len(set(column)) > 1), 0)
    options = tuple(response.ids[shared] for response in responses)
    if len(set(options)) < len(options):
        raise EvalError(
            f"question {sample.id}: its options do not differ in one token of this tokenizer; "
            "use --decode generate"
        )
    ids = responses[0].ids[: shared + 1]
    return replace(responses[0], ids=ids, supervised=(False,) * shared + (True,)), options


def _likeliest(sample: Sample, likelihoods: Tensor) -> Prediction:
    values = tuple(round(float(value), DECIMALS) for value in likelihoods)
    if not torch.isfinite(likelihoods).all():
        raise EvalError(
            f"question {sample.id}: the model gave {values}, not likelihoods; "
            "the adapter's weights are broken or the precision is too low"
        )
    return Prediction(values.index(max(values)), sample.gold, likelihoods=values)


def _in_order(samples: Sequence[Sample], found: dict[int, Prediction], questions: Fitted) -> Answers:
    predictions = {sample.id: found[index] for index, sample in enumerate(samples)}
    return Answers(predictions, questions.truncated)
