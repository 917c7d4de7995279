"""Options that are told apart by more than one token: their whole texts behind one prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.packing import collate
from data.pictures import picture_loader
from data.prompts import render
from data.sample import Sample
from data.scienceqa import Problem
from eval.choice import choose, choosing
from eval.errors import EvalError
from eval.runner import Asker, answer, answering
from models.beam import beam_search
from models.build import System
from models.generate import Sampling, generate
from tests.eval.tiny import asker, tiny_system

TEXTS = ("The ice melts.", "The ice is blue.", "The wind blows.", "The ice is", "It is")


@pytest.fixture(scope="module")
def system() -> System:
    return tiny_system()


@pytest.fixture
def letters(root: Path, problems: dict[str, Problem]) -> list[Sample]:
    return [render(problem, "QCM-A", problem.picture(root)) for problem in problems.values()]


@pytest.fixture
def samples(letters: list[Sample]) -> list[Sample]:
    """Every second question with texts as options, which part behind "The "."""
    return [
        sample if index % 2 else replace(sample, options=TEXTS[: 3 + index % 3])
        for index, sample in enumerate(letters)
    ]


@pytest.fixture
def asked(system: System) -> Asker:
    return asker(system, picture_loader(system.preprocess))


def alone(asked: Asker, sample: Sample, parting: int) -> list[float]:
    """Each option behind the prompt by itself: the sum over its tokens from where the options part."""
    found = []
    for option in sample.options:
        batch = collate([asked.template.tokens(sample, response=option)], asked.pictures)
        with torch.no_grad():
            likelihoods = asked.system.model(batch).log_softmax(-1)
        own = likelihoods.gather(1, batch.targets[:, None])[:, 0]
        found.append(float(own[parting:].sum()))
    return found


def test_the_score_of_a_text_is_that_of_the_text_alone(asked: Asker, samples: list[Sample]) -> None:
    found = choose(asked, samples).predictions
    assert list(found) == [sample.id for sample in samples]
    for index, sample in enumerate(samples):
        if index % 2 == 0:
            parting = 0 if len(sample.options) == 5 else len("The ")
            wanted = alone(asked, sample, parting)
            assert found[sample.id].likelihoods == pytest.approx(wanted, abs=2e-4)
            assert found[sample.id].option == wanted.index(max(wanted))
        assert found[sample.id].gold == sample.gold
    assert any(sample.images for sample in samples[::2])


@pytest.mark.parametrize("budget", [1, 300, 700])
def test_scores_do_not_depend_on_batch_and_order(
    system: System, samples: list[Sample], asked: Asker, budget: int
) -> None:
    together = choose(asked, samples).predictions
    other = choose(asker(system, asked.pictures, tokens_per_batch=budget), samples[::-1]).predictions
    for pid, prediction in together.items():
        assert prediction.option == other[pid].option
        assert prediction.likelihoods == pytest.approx(other[pid].likelihoods, abs=2e-4)


def test_questions_of_one_token_keep_their_bits(asked: Asker, letters: list[Sample]) -> None:
    found = choose(asked, letters).predictions
    cut = []
    for sample in letters:
        whole = asked.template.tokens(sample, response=sample.options[0])
        end = next(place for place, said in enumerate(whole.supervised) if said) + len("The answer is A")
        cut.append(replace(whole, ids=whole.ids[:end], supervised=(False,) * (end - 1) + (True,)))
    with torch.no_grad():
        likelihoods = asked.system.model(collate(cut, asked.pictures)).log_softmax(-1)
    for sample, row in zip(letters, likelihoods, strict=True):
        wanted = [round(float(row[ord(letter)]), 4) for letter in "ABCDE"[: len(sample.options)]]
        assert list(found[sample.id].likelihoods or ()) == wanted


def test_the_prompt_is_computed_once(
    asked: Asker, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = []
    decode = type(asked.system.model).decode

    def counted(model, stream, *rest):
        tokens.append(len(stream.x))
        return decode(model, stream, *rest)

    monkeypatch.setattr(type(asked.system.model), "decode", counted)
    sample = samples[4]
    choose(asked, [sample])
    prompt = len(asked.template.tokens(sample, response="")) + len("The ")
    # the end of each text is said, but nothing is read behind it
    assert tokens == [prompt + sum(len(option) - len("The ") for option in sample.options)]


def test_too_long_prompts_are_shortened_for_the_longest_text(samples: list[Sample]) -> None:
    short = tiny_system(max_positions=100)
    load = picture_loader(short.preprocess)
    with pytest.raises(EvalError, match=r"questions are longer than the 100 tokens .*--long truncate"):
        choose(asker(short, load), samples[::2])
    found = choose(asker(short, load, long="truncate"), samples[::2])
    assert found.truncated and len(found.predictions) == len(samples[::2])


def test_broken_weights_are_refused(samples: list[Sample]) -> None:
    broken = tiny_system()
    with torch.no_grad():
        broken.model.decoder.head.weight.fill_(float("nan"))
    with pytest.raises(EvalError, match=r"question 1: the model gave \(nan, nan, nan\), not likelihoods"):
        choose(asker(broken, picture_loader(broken.preprocess)), samples[:1])


@pytest.mark.parametrize("budget", [1, 300, 1000, 5000])
def test_generated_answers_are_those_of_each_question_alone(
    system: System, letters: list[Sample], asked: Asker, budget: int
) -> None:
    sampling = Sampling(12, stop=asked.template.stop, stop_ids=asked.template.stop_ids)
    wanted = {}
    for sample in letters:
        batch = collate([asked.template.tokens(sample, response="")], asked.pictures)
        wanted[sample.id] = generate(system, batch, sampling)[0]
    other = asker(system, asked.pictures, tokens_per_batch=budget)
    for order in (letters, letters[::-1]):
        found = answer(other, order, max_new_tokens=12).predictions
        assert {pid: prediction.text for pid, prediction in found.items()} == wanted
        assert list(found) == [sample.id for sample in order]


def test_likelihoods_may_be_divided_by_the_tokens_compared(
    system: System, samples: list[Sample], asked: Asker
) -> None:
    whole = dict(choosing(asked, samples).coming)
    divided = dict(choosing(asked, samples, by_length=True).coming)
    for index, sample in enumerate(samples):
        lengths = [1] * len(sample.options)  # letters
        if index % 2 == 0:
            parting = 0 if len(sample.options) == 5 else len("The ")
            tokens = [asked.template.tokens(sample, response=option) for option in sample.options]
            lengths = [sum(each.supervised) - parting for each in tokens]
            assert len(set(lengths)) > 1
        values = [value / length for value, length in zip(whole[index].likelihoods, lengths, strict=True)]
        assert divided[index].likelihoods == pytest.approx(values, abs=1e-3)


def test_a_written_answer_may_be_searched_for(system: System, samples: list[Sample], asked: Asker) -> None:
    found = dict(answering(asked, samples, max_new_tokens=8, beams=3).coming)
    template = asked.template
    sampling = Sampling(8, stop=template.stop, stop_ids=template.stop_ids)
    for index, sample in enumerate(samples):
        batch = collate([template.tokens(sample, response="")], asked.pictures)
        assert found[index].text == beam_search(system, batch, 3, sampling)[0]
    greedy = dict(answering(asked, samples, max_new_tokens=8).coming)
    assert {index: one.text for index, one in found.items()} != {i: one.text for i, one in greedy.items()}
