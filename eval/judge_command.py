"""`python -m eval judge NAME ANSWERS`: has a judge grade answers, keeps its reviews, prints the scores.

What it would take is printed before anything is asked. Every reply is kept on disk as soon as it is there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval import benchmark as registry
from eval.errors import EvalError
from eval.judge import FunctionJudge, Judge, Prices, RecordedJudge
from eval.judge_http import Endpoint, HttpJudge
from eval.judged import Setting, judged
from eval.results import check_writable
from eval.run_command import add_base, given_base
from eval.score_command import answers_of, write_scores

CACHE = Path("cache/judge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `judge`."""
    parser.set_defaults(run=run)
    parser.add_argument("name", metavar="NAME", help="a benchmark whose answers are judged")
    parser.add_argument("answers", type=Path, help="a result file, or answers in the official format")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with the official files"
    )
    parser.add_argument("--split", help="split that was asked (default: the first)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="reviews in the official format"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores and every mark there")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--url", help="endpoint that speaks OpenAI's chat interface, e.g. http://localhost:8000/v1"
    )
    who.add_argument(
        "--recorded", type=Path, metavar="FILE", help="replies that were written down (JSON Lines)"
    )
    who.add_argument("--adapter", type=Path, metavar="RUN", help="an adapter of this project as the judge")
    parser.add_argument("--model", help="the judge's model (default: that of the published numbers)")
    parser.add_argument("--key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with the key")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, metavar="DIR", help=f"replies (default: {CACHE})"
    )
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="ask so many times (default: 1)")
    parser.add_argument("--swapped", action="store_true", help="ask pairs in both orders")
    parser.add_argument(
        "--prices", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens, for the estimate"
    )
    add_base(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what it would take, and ask nothing")


def run(options: argparse.Namespace) -> None:
    """Judges a file of answers."""
    benchmark, half = registry.find(options.name), judged(options.name)
    if half is None:
        raise EvalError(
            f"{options.name} needs no judge; `python -m eval score {options.name}` scores its answers"
        )
    if options.runs < 1:
        raise EvalError(f"--runs is {options.runs}; it must be at least 1")
    if options.swapped and not half.swaps:
        raise EvalError(f"--swapped: the judge of {options.name} sees answers in one order alone")
    # of pairs a file for each run and order, in a folder
    several = half.pairs and (options.runs > 1 or options.swapped)
    for path in (options.out / "x" if several else options.out, options.json):
        if path is not None:
            check_writable(path)
    setting, split = (
        Setting(options.runs, options.swapped),
        benchmark.known(options.split or benchmark.splits[0]),
    )
    with tempfile.TemporaryDirectory() as unpacked:
        questions = benchmark.load(options.data, split, Path(unpacked))
        answers = answers_of(benchmark, options.answers, questions)
        judge = _judge(options, half.judge)
        if options.dry_run:
            print(judge.estimate(half.requests(questions, answers, setting)))
            return
        reviews = half.review(questions, answers, judge, setting)
        half.write(options.out, questions, reviews)
        scored = half.score(questions, answers, reviews)
    print(scored.figures.table())
    print(f"wrote {options.out}")
    if options.json is not None:
        write_scores(options.json, benchmark, scored)
        print(f"wrote {options.json}")


def _judge(options: argparse.Namespace, usual: str) -> Judge:
    """Whoever is to judge."""
    model = options.model or usual
    if options.recorded is not None:
        return RecordedJudge(options.recorded, model)
    if options.adapter is not None:
        return FunctionJudge(str(options.adapter), _own_model(options.adapter, given_base(options)))
    prices = None if options.prices is None else Prices(*options.prices)
    endpoint = Endpoint(options.url, model, options.cache, key=options.key_env, prices=prices)
    return HttpJudge(endpoint)


def _own_model(path: Path, base: dict[str, Any]) -> Callable[[list[str]], Sequence[str]]:
    """A function from texts to what an adapter of this project answers."""
    from data.picture_workers import Pictures  # noqa: PLC0415
    from data.pictures import picture_loader, slot_counter  # noqa: PLC0415
    from data.sample import Sample  # noqa: PLC0415
    from data.template import make_template  # noqa: PLC0415
    from eval.columns import device_of, open_columns  # noqa: PLC0415
    from eval.runner import Asker, answer  # noqa: PLC0415

    opened = open_columns([path], base, device_of("auto"))
    system = opened.system
    slots_of = slot_counter(system.image_slots, system.model.slots)
    template = make_template(opened.columns[0].prompting.template, system.tokenizer, slots_of)
    asker = Asker(system, template, Pictures(picture_loader(system.preprocess)), long="truncate")

    def judge(texts: list[str]) -> list[str]:
        samples = [Sample(str(place), text, "") for place, text in enumerate(texts)]
        found = answer(asker, samples, max_new_tokens=LONGEST).predictions
        return [found[sample.id].text or "" for sample in samples]

    return judge


LONGEST = 64
"""Tokens of a reply of our own model: grades stand in its first line."""
