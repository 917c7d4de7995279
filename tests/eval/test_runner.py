"""Answers of a small random model: the same in any batch, with the likelihoods one computes by hand."""

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
from eval import runner
from eval.choice import accuracy, choose
from eval.errors import EvalError
from eval.runner import answer, noise_instead
from models.build import System
from tests.eval.tiny import asker, tiny_system


@pytest.fixture(scope="module")
def system() -> System:
    return tiny_system()


@pytest.fixture
def samples(root: Path, problems: dict[str, Problem]) -> list[Sample]:
    return [render(problem, "QCM-A", problem.picture(root)) for problem in problems.values()]


def test_likelihoods_are_those_of_the_letter_after_the_template(
    system: System, samples: list[Sample]
) -> None:
    load = picture_loader(system.preprocess)
    asked = asker(system, load)
    found = choose(asked, samples).predictions
    for sample in samples:
        expected = []
        for letter, option in zip("ABCDE", sample.options, strict=False):
            batch = collate([asked.template.tokens(sample, response=option)], load)
            place = batch.targets.tolist().index(ord(letter))  # the letter's first place in the response
            # "The answer is X." has no capital but T before the letter
            assert sample.options[0].index("A") == place
            with torch.no_grad():
                expected.append(float(system.model(batch)[place].log_softmax(-1)[ord(letter)]))
        assert found[sample.id].likelihoods == pytest.approx(expected, abs=1e-4)
        assert found[sample.id].option == expected.index(max(expected))
        assert found[sample.id].gold == sample.gold


def test_one_pass_and_one_row_of_logits_per_question(
    system: System, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    forward = type(system.model).forward

    def counted(model, batch):
        logits = forward(model, batch)
        rows.append((len(batch.lengths), len(logits)))
        return logits

    monkeypatch.setattr(type(system.model), "forward", counted)
    choose(asker(system, picture_loader(system.preprocess)), samples)
    assert rows == [(len(samples), len(samples))]


@pytest.mark.parametrize("budget", [1, 300, 500])
def test_choices_do_not_depend_on_the_batch_size(system: System, samples: list[Sample], budget: int) -> None:
    load = picture_loader(system.preprocess)
    together = choose(asker(system, load), samples)
    apart = choose(asker(system, load, tokens_per_batch=budget), samples[::-1])
    assert list(together.predictions) == [sample.id for sample in samples]
    for pid, prediction in together.predictions.items():
        other = apart.predictions[pid]
        assert prediction.option == other.option
        assert prediction.likelihoods == pytest.approx(other.likelihoods, abs=1e-4)


def test_generated_answers_do_not_depend_on_the_batch_size(system: System, samples: list[Sample]) -> None:
    load = picture_loader(system.preprocess)
    together = answer(asker(system, load), samples, max_new_tokens=6)
    apart = answer(asker(system, load, tokens_per_batch=1), samples, max_new_tokens=6)
    assert together == apart
    texts = [prediction.text for prediction in together.predictions.values()]
    assert any(texts)
    assert all(prediction.option is None for prediction in together.predictions.values())


def test_what_is_written_is_the_answer(
    system: System, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        runner,
        "answer_all",
        lambda system, queue, sampling, tokens: ((i, f"answer {i}") for i in range(len(queue.lengths))),
    )
    found = answer(asker(system, picture_loader(system.preprocess)), samples, max_new_tokens=6).predictions
    assert [prediction.text for prediction in found.values()] == [f"answer {i}" for i in range(8)]


def test_of_equally_likely_options_the_first(samples: list[Sample]) -> None:
    flat = tiny_system()
    with torch.no_grad():
        flat.model.decoder.head.weight.zero_()
    found = choose(asker(flat, picture_loader(flat.preprocess)), samples).predictions
    assert {prediction.option for prediction in found.values()} == {0}


def test_options_that_are_the_same_are_refused(system: System, samples: list[Sample]) -> None:
    same = replace(samples[0], options=("The answer is A.", "The answer is A."))
    twice = replace(samples[0], options=("The answer is AB.", "The answer is AC.", "The answer is AB."))
    for sample in (same, twice):
        with pytest.raises(EvalError, match="question 1: two of its options are the same text"):
            choose(asker(system, picture_loader(system.preprocess)), [sample])


def test_an_option_may_be_the_beginning_of_another(system: System, samples: list[Sample]) -> None:
    sample = replace(samples[0], options=("yes", "yes, but"))
    found = choose(asker(system, picture_loader(system.preprocess)), [sample]).predictions
    assert found["1"].option in (0, 1)


def test_broken_weights_are_refused(samples: list[Sample]) -> None:
    broken = tiny_system()
    with torch.no_grad():
        broken.model.decoder.head.weight.fill_(float("nan"))
    with pytest.raises(EvalError, match=r"question 1: the model gave \(nan, nan\), not likelihoods"):
        choose(asker(broken, picture_loader(broken.preprocess)), samples[:1])


def test_accuracy_is_that_of_the_choices_and_training_goes_on(system: System, samples: list[Sample]) -> None:
    asked = asker(system, picture_loader(system.preprocess))
    found = choose(asked, samples).predictions.values()
    system.model.train()
    assert accuracy(asked, samples) == sum(made.option == made.gold for made in found) / len(samples)
    assert system.model.training
    system.model.eval()
    with pytest.raises(EvalError, match="no samples to validate on"):
        accuracy(asked, [])


def test_noise_belongs_to_the_sample_and_needs_no_file(system: System) -> None:
    samples = [
        Sample(pid, "p", "r", (Path("nowhere") / pid / "image.png",), ("a", "b"), 0) for pid in ("2", "3")
    ]
    load, again = noise_instead(system, samples), noise_instead(system, samples[::-1])
    first, second = (load(sample.images[0]).views for sample in samples)
    assert first.shape == (1, 3, 16, 16)
    assert torch.equal(first, again(samples[0].images[0]).views)
    assert not torch.equal(first, second)
    assert first.std() > 0.5


def test_too_long_questions_are_refused_or_shortened(samples: list[Sample]) -> None:
    short = tiny_system(max_positions=125)
    load = picture_loader(short.preprocess)
    with pytest.raises(EvalError, match=r"4 of 8 questions are longer than the 125 tokens .*--long truncate"):
        choose(asker(short, load), samples)
    found = choose(asker(short, load, long="truncate"), samples)
    assert len(found.truncated) == 4
    assert len(found.predictions) == 8
    with pytest.raises(EvalError, match="longer than the 120 tokens"):
        answer(asker(short, load), samples, max_new_tokens=5)
    assert answer(asker(short, load, long="truncate"), samples, max_new_tokens=5).predictions.keys() == {
        sample.id for sample in samples
    }


def test_a_question_without_options_cannot_be_chosen(system: System, samples: list[Sample]) -> None:
    with pytest.raises(EvalError, match="question 1: has no options to choose from"):
        choose(asker(system, picture_loader(system.preprocess)), [replace(samples[0], options=())])
