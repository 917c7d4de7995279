"""Answers of a model to multiple-choice samples: by the likelihood of each option, or in its own words.

Greedy throughout, and a sample's answer does not depend on which samples share its batch. Knows nothing
of ScienceQA's categories or of files.

Shapes: V vocabulary, L supervised positions of a batch (here one per sample).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from models.generate import Queue, Sampling, answer_all
from models.multimodal import inference
from models.prefix_attention import PrefixAttention

# Likelihoods are compared and stored with four decimals: what lies behind them depends on the shape
# the kernels saw, so on the batch, and must not decide between two options.
DECIMALS = 4


@dataclass(frozen=True)
class Asker:
    """A model and how to put questions to it.

    Args:
        load_picture: Gives a picture of a file as the tower wants it.
        tokens_per_batch: A matter of memory and speed, not of the answers; of a batch, or of the cache.
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

    def batches(self, tokens: Sequence[Tokens]) -> Iterator[tuple[list[int], PackedBatch]]:
        """Batches on the model's device, each with the indices of its questions."""
        lengths = [len(item) for item in tokens]
        # a question longer than the budget still has to be asked
        budget = max([self.tokens_per_batch, *lengths])
        with self.bar(len(tokens)) as bar:
            for group in pack(lengths, budget):
                yield group, self.batch([tokens[index] for index in group])
                bar.update(len(group))

    def batch(self, tokens: Sequence[Tokens]) -> PackedBatch:
        """The questions as one batch on the model's device."""
        return collate(tokens, self.load_picture).to(self.system.model.device)

    def bar(self, questions: int) -> tqdm[Any]:
        """Shows how many questions are answered."""
        return tqdm(total=questions, unit="question", delay=2, leave=False, disable=not self.progress)


@dataclass(frozen=True)
class _Choice:
    """A question, and what tells its options apart.

    One token each where that is enough; then the last token of the question is the first option's. Otherwise
    all tokens of an option from where they part; then the question ends with the longest of them.
    """

    tokens: Tokens
    options: tuple[tuple[int, ...], ...]

    @property
    def texts(self) -> bool:
        """Whether whole texts are compared."""
        return any(len(option) > 1 for option in self.options)


@dataclass(frozen=True)
class Answers:
    """Predictions by sample id, and the ids of the samples whose prompts had to be shortened."""

    predictions: dict[str, Prediction]
    truncated: tuple[str, ...]


def choose(asker: Asker, samples: Sequence[Sample]) -> Answers:
    """The likeliest option of every sample, in one pass; of equally likely ones the first."""
    choices = [_choice(asker.template, sample) for sample in samples]
    questions = asker.fitted([choice.tokens for choice in choices])
    found: dict[int, Prediction] = {}
    for scored, texts in ((_by_token, False), (_by_text, True)):
        indices = [index for index, choice in enumerate(choices) if choice.texts == texts]
        asked = [replace(choices[index], tokens=questions.tokens[index]) for index in indices]
        with inference(asker.system.model):
            for place, likelihoods in scored(asker, asked):
                index = indices[place]
                found[index] = _likeliest(samples[index], likelihoods)
    return _in_order(samples, found, questions)


def answer(asker: Asker, samples: Sequence[Sample], *, max_new_tokens: int) -> Answers:
    """The option that the generated answer of every sample names."""
    template = asker.template
    prompts = [template.tokens(sample, response="") for sample in samples]
    questions = asker.fitted(prompts, spare=max_new_tokens)
    greedy = Sampling(max_new_tokens, stop=template.stop, stop_ids=template.stop_ids)
    queue = Queue(
        [len(tokens) for tokens in questions.tokens],
        lambda group: asker.batch([questions.tokens[index] for index in group]),
    )
    found: dict[int, Prediction] = {}
    with asker.bar(len(samples)) as bar:
        for index, text in answer_all(asker.system, queue, greedy, asker.tokens_per_batch):
            option = extract(text, len(samples[index].options))
            found[index] = Prediction(option, samples[index].gold, text=text)
            bar.update()
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


def _choice(template: Template, sample: Sample) -> _Choice:
    """What the model is shown, and what stands for each option.

    The responses are cut where they part. Where the tokens behind that differ from option to option, one of
    them is supervised (the first option's; which one does not matter), so the model computes the logits that
    predict an option's token, and no others.
    """
    responses = [template.tokens(sample, response=option) for option in sample.options]
    columns = enumerate(zip(*(response.ids for response in responses), strict=False))
    shared = next((place for place, column in columns if len(set(column)) > 1), 0)
    firsts = tuple(response.ids[shared : shared + 1] for response in responses)
    options = firsts if len(set(firsts)) == len(firsts) else tuple(_said(r)[shared:] for r in responses)
    if len(set(options)) < len(options) or () in options:
        raise EvalError(
            f"question {sample.id}: two of its options are the same text, so no likelihood tells them apart; "
            "correct the question or use --decode generate"
        )
    longest = options[0] if options is firsts else max(options, key=len)
    ids = (*responses[0].ids[:shared], *longest)
    supervised = (False,) * shared + (True,) * len(longest)
    return _Choice(replace(responses[0], ids=ids, supervised=supervised), options)


def _said(tokens: Tokens) -> tuple[int, ...]:
    """The ids up to the last one that the model is to say."""
    return tokens.ids[: max(place for place, said in enumerate(tokens.supervised) if said) + 1]


def _by_token(asker: Asker, choices: Sequence[_Choice]) -> Iterator[tuple[int, Tensor]]:
    """The log-likelihood of every option's token."""
    for group, batch in asker.batches([choice.tokens for choice in choices]):
        likelihoods = asker.system.model(batch).float().log_softmax(-1).cpu()  # float[L, V]
        for index, row in zip(group, likelihoods, strict=True):
            yield index, row[[token for (token,) in choices[index].options]]


def _by_text(asker: Asker, choices: Sequence[_Choice]) -> Iterator[tuple[int, Tensor]]:
    """The sum of the log-likelihoods of every option's tokens: one pass, the prompt once for all of them."""
    model = asker.system.model
    prompts = [len(choice.tokens) - max(map(len, choice.options)) for choice in choices]
    for group, batch in asker.batches([_side_by_side(choice) for choice in choices]):
        texts = [[len(option) - 1 for option in choices[index].options] for index in group]
        attend = PrefixAttention([prompts[index] for index in group], texts, model.device)
        with model.adapters.turns.computing():
            stream = model.embed(replace(batch, positions=attend.positions))
            ends = torch.tensor(batch.lengths).cumsum(0).tolist()
            asked = [torch.arange(end - sum(own) - 1, end) for end, own in zip(ends, texts, strict=True)]
            hidden = model.decode(stream, attend, torch.cat(asked).to(model.device))
            parts = hidden.split([len(own) for own in asked])
            scores = [_of_texts(model.logits(part), choices[i]) for i, part in zip(group, parts, strict=True)]
        yield from zip(group, torch.cat(scores).cpu().split([len(own) for own in texts]), strict=True)


def _side_by_side(choice: _Choice) -> Tokens:
    """The prompt and all options behind it, each without its last token, behind which nothing is asked."""
    prompt = choice.tokens.ids[: len(choice.tokens) - max(map(len, choice.options))]
    ids = prompt + tuple(token for option in choice.options for token in option[:-1])
    return replace(choice.tokens, ids=ids, supervised=(False,) * len(ids))


def _of_texts(logits: Tensor, choice: _Choice) -> Tensor:
    """Logits float[1 + tokens, V] of the prompt's end and of each token of the options -> float[options]."""
    rows, place = [], 1
    for option in choice.options:
        rows += [0, *range(place, place + len(option) - 1)]
        place += len(option) - 1
    targets = torch.tensor([token for option in choice.options for token in option], device=logits.device)
    likelihoods = logits.log_softmax(-1)[torch.tensor(rows, device=logits.device), targets]
    return torch.stack([own.sum() for own in likelihoods.split([len(option) for option in choice.options])])


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
