"""Evaluation: questions per second on the embedded base, against a plain loop over single questions.

The mini world's questions, half of them with a picture, are asked of the embedded base with a fresh adapter.

    ours         sorted and packed, rows of the cache filled as answers end (eval/runner.py, eval/choice.py)
    one by one   the same code with one question after the other
    plain loop   one question after the other, and for a choice a pass for each of its options

Ratios are of times, the loop's over ours (goal: at least 5), and how many answers are the same is counted.

    python -m benchmarks.evaluate [--json FILE]        about two minutes on two cores
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import add_random, against, main, ratio, table, take_turns
from data.mini.generate import generate
from data.picture_workers import Pictures
from data.pictures import picture_loader, slot_counter
from data.prompts import render
from data.sample import Sample
from data.scienceqa import load_split
from data.template import make_template
from eval.choice import choose
from eval.runner import Asker, answer
from mma import MMAConfig
from models.build import BaseSettings, System, build_base
from models.multimodal import inference

QUESTIONS, ROUNDS, LONGEST = 192, 3, 16
Answers = dict[str, object]


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Times of all in turns, for both ways to answer."""
    count, rounds = (12, 2) if quick else (QUESTIONS, ROUNDS)
    system = build_base(BaseSettings())
    add_random(system.model.adapters, "default", MMAConfig(), seed=1)
    system.model.eval()
    contestants: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        asker, samples = _asker(system), _samples(Path(folder), count)
        for way, cases in _cases(asker, samples).items():
            said = {name: run() for name, run in cases.items()}
            times = take_turns(cases, rounds)
            for name, each in times.items():
                same = sum(said[name][key] == answer for key, answer in said["ours"].items()) / count
                rate = round(count / median(each), 2)
                contestants[f"{way}/{name}"] = {"questions_per_s": rate, "same_answers": round(same, 4)}
            ratios[way] = {name: ratio(times, name, "ours") for name in cases if name != "ours"}
    rows = [(name, found["questions_per_s"], found["same_answers"]) for name, found in contestants.items()]
    lines = [
        f"{way}: {name} over ours {against(found)}"
        for way, each in ratios.items()
        for name, found in each.items()
    ]
    text = "\n".join([table(("", "questions/s", "same answers"), rows), *lines])
    return text, {"questions": count, "contestants": contestants, "ratios": ratios}


def _cases(asker: Asker, samples: list[Sample]) -> dict[str, dict[str, Callable[[], Answers]]]:
    return {
        "choice": {
            "ours": lambda: _chosen(asker, samples),
            "one by one": lambda: {key: own for s in samples for key, own in _chosen(asker, [s]).items()},
            "plain loop": lambda: {sample.id: _by_option(asker, sample) for sample in samples},
        },
        "generate": {
            "ours": lambda: _written(asker, samples),
            "plain loop": lambda: {key: own for s in samples for key, own in _written(asker, [s]).items()},
        },
    }


def _chosen(asker: Asker, samples: list[Sample]) -> Answers:
    return {key: made.option for key, made in choose(asker, samples).predictions.items()}


def _written(asker: Asker, samples: list[Sample]) -> Answers:
    found = answer(asker, samples, max_new_tokens=LONGEST).predictions
    return {key: made.text for key, made in found.items()}


def _by_option(asker: Asker, sample: Sample) -> int:
    """The likeliest option, by the whole of each response."""
    scores = []
    for option in sample.options:
        batch = asker.batch([asker.template.tokens(sample, option)], [0])
        with inference(asker.system.model):
            likelihoods = asker.system.model(batch).float().log_softmax(-1)
        scores.append(float(likelihoods.gather(1, batch.targets[:, None]).sum()))
    return scores.index(max(scores))


def _asker(system: System) -> Asker:
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    return Asker(system, template, Pictures(picture_loader(system.preprocess)), progress=False)


def _samples(folder: Path, count: int) -> list[Sample]:
    """Questions of the mini world."""
    generate(folder, max(8 * count, 240))  # of which an eighth or so are in the test split
    problems = load_split(folder, "test")[:count]
    return [render(problem, "QCM-A", problem.picture(folder)) for problem in problems]


if __name__ == "__main__":
    main("evaluate", __doc__, measure)
