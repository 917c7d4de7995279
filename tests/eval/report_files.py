"""Results to report on: ScienceQA's small set, and a made-up benchmark of graded answers and sums."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from data.scienceqa import Problem
from eval import report_command
from eval.benchmark import Benchmark, Published, Question, find
from eval.report import Report, write_report
from eval.report_parts import Part
from eval.results import Prediction, Result
from eval.scienceqa import score
from eval.scores import Score, Scores

VOID = {"meta", "img", "br", "link", "hr", "input", "wbr"}
ROUTES = {
    "decoder.blocks.0.attn_norm": {"text": [0.75, 0.25], "image": [0.4, 0.6]},
    "decoder.blocks.1.attn_norm": {"text": [0.5, 0.5], "image": [0.1, 0.9]},
}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what the page refers to and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open:
            self.words.append(data)

    @property
    def said(self) -> str:
        """What a reader reads, with single blanks."""
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path, report: Report) -> str:
    """The text of a report's file."""
    path = folder / "report.html"
    write_report(path, report)
    return path.read_text(encoding="utf-8")


def scienceqa_result(
    problems: Mapping[str, Problem], options: Mapping[str, int | None], *, sure: float | None = None
) -> Result:
    """A result on these problems; where it says how sure it is, its answers were chosen by likelihood."""
    predictions = {}
    for pid, option in options.items():
        likelihoods = None if sure is None else _likelihoods(len(problems[pid].choices), option or 0, sure)
        predictions[pid] = Prediction(option, problems[pid].answer, likelihoods=likelihoods)
    settings = {"split": "test", "note": "<b>&", "base": {"decoder": "folder"}}
    return Result(score(problems, options), predictions, settings, {"torch": "2"}, {"data": "abc"})


def _likelihoods(count: int, option: int, sure: float) -> tuple[float, ...]:
    rest = math.log((1 - sure) / (count - 1))
    return tuple(math.log(sure) if place == option else rest for place in range(count))


def scienceqa_part(root: Path, columns: Mapping[str, Result]) -> Part:
    """These results with the questions of the set."""
    benchmark = find("scienceqa")
    questions = {question.id: question for question in benchmark.load(root, "test", root)}
    return Part(benchmark, "test", columns, questions)


def graded_benchmark() -> Benchmark:
    """A benchmark with sums, of which others have published the largest."""
    return replace(
        find("scienceqa"),
        name="sums",
        title="Sums <test>",
        splits=("all",),
        sizes={"all": 4},
        published=(Published("Other-7B", "Perception", 1510.7, "their table"),),
        rule="a rule",
    )


def graded_part(folder: Path, marks: Mapping[str, Sequence[float | None]], **texts: str) -> Part:
    """A part of the made-up benchmark: what each column earned with its four answers."""
    picture = folder / "picture.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((900, 600)).convert("RGB").save(picture)
    questions = {
        f"q{place}": Question(f"q{place}", f"What is <{place}>?", (picture,), gold=["red", "red", "blue"])
        for place in range(4)
    }
    columns = {}
    for name, some in marks.items():
        text = texts.get(name, "</script><b>red</b>")
        predictions = {
            f"q{place}": Prediction(None, ["red", "red", "blue"], text, None, "red", mark)
            for place, mark in enumerate(some)
        }
        scores = {
            "Perception": Score(1200.5, 1000.0, 1400.0, 4, 1),
            "Cognition": Score(300.0, 250.0, 350.0, 4, 1),
            "a long name of a category": Score(120.0, 90.0, 150.0, 2, 1),
        }
        settings = {"benchmark": "sums", "split": "all", "decode": "generate", "adapter": "runs/x"}
        checks = {"truncated": 2, "unreadable_pictures": 0}
        columns[name] = Result(
            Scores(scores, 1, {"official": {"a": 1}}), predictions, settings, {}, {}, checks
        )
    return Part(graded_benchmark(), "all", columns, questions)


def report_main(*arguments: str) -> None:
    """`python -m eval report` with these arguments."""
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    options = parser.parse_args(arguments)
    options.run(options)
