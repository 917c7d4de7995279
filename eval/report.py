"""One HTML file that shows an evaluation: scores, answers to real questions, routing, and what was run.

The file needs nothing beside itself: pictures and drawings are inside, and it loads nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from data.pictures import open_picture
from data.scienceqa import LETTERS, Problem
from eval.charts import bars, heat_map
from eval.compare import compare
from eval.errors import EvalError
from eval.results import Result, write_text
from eval.scienceqa import CATEGORIES
from eval.scores import Score, percent

TEMPLATE = Path(__file__).with_name("report.html")
EXAMPLES, WITH_PICTURE = 12, 9
PICTURE_PIXELS = 320  # the longer side of a picture in the report
COLOURS = 4  # the style sheet has so many


@dataclass(frozen=True)
class Report:
    """What a report shows; the first result is the one the others are compared with."""

    results: Mapping[str, Result]  # by the system's name, e.g. tuned, blind, base
    problems: Mapping[str, Problem]
    root: Path  # the data set's folder, for its pictures
    routes: Mapping[str, Mapping[str, Sequence[float]]] | None = None  # site -> modality -> weights
    loss_png: Path | None = None
    title: str = "ScienceQA report"

    def __post_init__(self) -> None:
        if not 0 < len(self.results) <= COLOURS:
            raise EvalError(f"report: {len(self.results)} results; it shows 1 to {COLOURS}")
        for name, result in self.results.items():
            unknown = [pid for pid in result.predictions if pid not in self.problems]
            if unknown:
                raise EvalError(f"report: question {unknown[0]} of {name!r} is not in the data set given")


def write_report(path: Path, report: Report) -> None:
    """Write the report whole or not at all."""
    parts = [
        _section("Scores", _scores(report.results)),
        _section("By category", _bars(report)),
        _section("Is the difference chance?", _comparisons(report.results)),
        _section("Examples", _examples(report)),
    ]
    if report.routes:
        parts.append(_section("Routing table", _routes(report.routes)))
    if report.loss_png is not None:
        picture = _inline(report.loss_png.read_bytes())
        parts.append(_section("Loss", f'<img class="curve" alt="Loss over the steps" src="{picture}">'))
    parts.append(_section("What was run", _facts(report.results)))
    page = Template(TEMPLATE.read_text(encoding="utf-8"))
    headline = escape(_headline(report.results))
    text = page.substitute(title=escape(report.title), headline=headline, body="\n".join(parts))
    write_text(path, text)


def example_ids(report: Report) -> list[str]:
    """Questions that every system answered, spread evenly over the set, most of them with a picture."""
    shared = [
        pid
        for pid in next(iter(report.results.values())).predictions
        if all(pid in result.predictions for result in report.results.values())
    ]
    seen = [pid for pid in shared if report.problems[pid].image is not None]
    read = [pid for pid in shared if report.problems[pid].image is None]
    with_picture = _spread(seen, max(WITH_PICTURE, EXAMPLES - len(read)))
    return with_picture + _spread(read, EXAMPLES - len(with_picture))


def _spread(items: Sequence[str], count: int) -> list[str]:
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _headline(results: Mapping[str, Result]) -> str:
    parts = []
    for name, result in results.items():
        score = result.scores.categories["Avg"]
        interval = f"95 % interval {percent(score.low)} to {percent(score.high)}"
        parts.append(f"{name} {percent(score.value)} % ({interval})")
    questions = len(next(iter(results.values())).predictions)
    return f"Right answers to {questions} questions: {', '.join(parts)}."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of finished HTML cells."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _scores(results: Mapping[str, Result]) -> str:
    rows = []
    for category in CATEGORIES:
        scores = [result.scores.categories[category] for result in results.values()]
        cells = [percent(score.value) + _interval(score) for score in scores]
        rows.append([f"{category}<small>{scores[0].count}</small>", *cells])
    unparsable = [str(result.scores.unparsable) for result in results.values()]
    rows.append(["unparsable", *unparsable])
    return (
        _table(["", *map(escape, results)], rows)
        + '<p class="soft">Percent right, below it the 95 % interval; below a name the number of questions. '
        "NAT, SOC, LAN: natural, social and language science; TXT, IMG, NO: questions with a hint, with a "
        "picture, with neither; G: school grades. Unparsable answers count as wrong; a dash means that there "
        "was no question.</p>"
    )


def _interval(score: Score) -> str:
    """Both ends below the value, with one decimal: three systems have to fit on a phone."""
    if score.low is None or score.high is None:
        return ""
    return f"<small>{100 * score.low:.1f}–{100 * score.high:.1f}</small>"


def _bars(report: Report) -> str:
    scores = {name: result.scores for name, result in report.results.items()}
    asked = [report.problems[pid] for pid in next(iter(report.results.values())).predictions]
    legend = [
        f'<span><svg viewBox="0 0 1 1" aria-hidden="true"><rect class="s{place}" width="1" height="1"/></svg>'
        f"{escape(name)}</span>"
        for place, name in enumerate(scores)
    ]
    legend.append("<span>┆ guessing</span>")
    return f'<div class="legend">{"".join(legend)}</div>\n<figure>{bars(scores, _chance(asked))}</figure>'


def _chance(problems: Sequence[Problem]) -> dict[str, float | None]:
    """What guessing would score on average, per category."""
    found: dict[str, float | None] = {}
    for name, belongs in CATEGORIES.items():
        shares = [1 / len(problem.choices) for problem in problems if belongs(problem)]
        found[name] = sum(shares) / len(shares) if shares else None
    return found


def _comparisons(results: Mapping[str, Result]) -> str:
    (first, ours), *others = results.items()
    if not others:
        return '<p class="soft">There is one system only.</p>'
    rows = []
    for name, theirs in others:
        found = compare(ours.predictions, theirs.predictions)
        low, high = (f"{100 * end:+.1f}" for end in found.interval)
        difference = f"{100 * found.difference:+.2f}<small>{low} to {high}</small>"
        pairs = found.pairs
        rows.append([escape(name), difference, str(pairs.only_a), str(pairs.only_b), f"{found.p:.2g}"])
    head = ["against", "points", f"only {escape(first)} right", "only other right", "p"]
    return _table(head, rows) + '<p class="soft">Same questions, exact McNemar test, two-sided.</p>'


def _examples(report: Report) -> str:
    cards = [_card(report, pid) for pid in example_ids(report)]
    return (
        '<p class="soft">Spread evenly over the questions, not chosen by how they were answered.</p>'
        f'<div class="examples">\n{"".join(cards)}</div>'
    )


def _card(report: Report, pid: str) -> str:
    problem = report.problems[pid]
    path = problem.picture(report.root)
    picture = (
        "" if path is None else f'<img alt="Picture of question {escape(pid)}" src="{_thumbnail(path)}">'
    )
    hint = f'<p class="hint soft">{escape(problem.hint)}</p>' if problem.hint else ""
    marks = ["", ' class="right"']
    options = "".join(
        f"<li{marks[place == problem.answer]}>{escape(choice)}</li>"
        for place, choice in enumerate(problem.choices)
    )
    answers = "".join(
        f"<dt>{escape(name)}</dt>{_answer(result.predictions[pid].option, problem.answer)}"
        for name, result in report.results.items()
    )
    return (
        f'<article>{picture}<p class="question">{escape(problem.question)}</p>{hint}<ol>{options}</ol>'
        f"<dl><dt>right answer</dt><dd>{LETTERS[problem.answer]}</dd>{answers}</dl></article>\n"
    )


def _answer(option: int | None, gold: int) -> str:
    if option is None:
        return '<dd class="wrong">none ✗</dd>'
    kind, mark = ("right", "✓") if option == gold else ("wrong", "✗")
    return f'<dd class="{kind}">{LETTERS[option]} {mark}</dd>'


def _routes(routes: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    return (
        '<p class="soft">The weight of every route at every site of the decoder, by what a sample carries: '
        "text alone, or a picture too.</p>"
        f'<figure class="map scroll">{heat_map(routes)}</figure>'
    )


def _facts(results: Mapping[str, Result]) -> str:
    parts = []
    for name, result in results.items():
        rows = [
            f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>"
            for facts in (result.settings, result.versions, result.digests)
            for key, value in _flat(facts)
        ]
        body = "\n".join(rows)
        table = f'<table class="facts">\n{body}\n</table>'
        parts.append(f"<details><summary>{escape(name)}</summary>\n{table}\n</details>")
    return "\n".join(parts)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _thumbnail(path: Path) -> str:
    picture = open_picture(path)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return _inline(buffer.getvalue())


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
