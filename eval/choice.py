"""The likeliest option of a question, in one pass over all of them: by its token, or by its whole text.

A question's answer does not depend on which others share its batch. Knows nothing of files or scores.

Shapes: V vocabulary, L supervised positions of a batch (here one per question).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.sample import Sample, Tokens
from data.template import Template
from eval.errors import EvalError
from eval.results import Prediction
from eval.runner import Answers, Asked, Asker, Who, collected, cut_of
from models.multimodal import inference
from models.prefix_attention import PrefixAttention

# Likelihoods are compared and stored with four decimals: what lies behind them depends on the shape
# the kernels saw, so on the batch, and must not decide between two options.
DECIMALS = 4


@dataclass(frozen=True)
class _Choice:
    """A question, and what tells its options apart.

    One token each where that is enough; then the last token of the question is the first option's. Otherwise
    all tokens of an option from where they part; then the question ends with the longest of them.
    """

    tokens: Tokens
    options: tuple[tuple[int, ...], ...]

    @property
    def prompt(self) -> int:
        """Tokens of the question before its options."""
        return len(self.tokens) - max(map(len, self.options))

    @property
    def texts(self) -> bool:
        """Whether whole texts are compared."""
        return any(len(option) > 1 for option in self.options)


def choose(asker: Asker, samples: Sequence[Sample]) -> Answers:
    """The likeliest option of every sample; of equally likely ones the first."""
    return collected(samples, choosing(asker, samples))


def accuracy(asker: Asker, samples: Sequence[Sample]) -> float:
    """The share of samples whose likeliest option is the right one."""
    if not samples:
        raise EvalError("accuracy: no samples to validate on; name a split that has some")
    predictions = choose(asker, samples).predictions.values()
    return sum(prediction.option == prediction.gold for prediction in predictions) / len(predictions)


def choosing(
    asker: Asker,
    samples: Sequence[Sample],
    who: Who = None,
    *,
    by_length: bool = False,
) -> Asked:
    """The likeliest option of every sample, as they are found.

    Args:
        who: The adapter of the bank that answers each sample, None the base; without it the active adapter.
        by_length: Whether an option's likelihood is divided by how many of its tokens are compared.
    """
    choices = [_choice(asker.template, sample) for sample in samples]
    questions = asker.fitted([choice.tokens for choice in choices])

    def answers() -> Iterator[tuple[int, Prediction]]:
        for scored, texts in ((_by_token, False), (_by_text, True)):
            indices = [index for index, choice in enumerate(choices) if choice.texts == texts]
            asked = [replace(choices[index], tokens=questions.tokens[index]) for index in indices]
            names = None if who is None else [who[index] for index in indices]
            for place, likelihoods in _in_mode(asker, scored(asker, asked, names)):
                tokens = [len(option) if by_length else 1 for option in asked[place].options]
                index = indices[place]
                yield index, _likeliest(samples[index], likelihoods / torch.tensor(tokens))

    return Asked(cut_of([choice.tokens for choice in choices], questions), answers())


def _in_mode(asker: Asker, found: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """What is found, step by step in the modes of inference, which the caller never sees."""
    while True:
        with inference(asker.system.model):
            one = next(found, None)
        if one is None:
            return
        yield one


def _choice(template: Template, sample: Sample) -> _Choice:
    """What the model is shown, and what stands for each option.

    The responses are cut where they part. Where the tokens behind that differ from option to option, one of
    them is supervised (the first option's; which one does not matter), so the model computes the logits that
    predict an option's token, and no others.
    """
    responses = [template.tokens(sample, response=option) for option in sample.options]
    if len(responses) < 2:
        raise EvalError(f"question {sample.id}: has no options to choose from; use --decode generate")
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


def _by_token(asker: Asker, choices: Sequence[_Choice], who: Who) -> Iterator[tuple[int, Tensor]]:
    """The log-likelihood of every option's token."""
    for group, batch in asker.batches([choice.tokens for choice in choices], who):
        likelihoods = asker.system.model(batch).float().log_softmax(-1).cpu()  # float[L, V]
        for index, row in zip(group, likelihoods, strict=True):
            yield index, row[[token for (token,) in choices[index].options]]


def _by_text(asker: Asker, choices: Sequence[_Choice], who: Who) -> Iterator[tuple[int, Tensor]]:
    """The sum of the log-likelihoods of every option's tokens: one pass, the prompt once for all of them."""
    model = asker.system.model
    prompts = [choice.prompt for choice in choices]
    for group, batch in asker.batches([_side_by_side(choice) for choice in choices], who):
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
    prompt = choice.tokens.ids[: choice.prompt]
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
