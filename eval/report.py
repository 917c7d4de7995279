"""One HTML file that shows evaluations: scores, differences, calibration, routing, questions, what was run.

The file needs nothing beside itself: pictures, drawings and the script of its filters are inside, and it
loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eval.charts import heat_map
from eval.errors import EvalError
from eval.report_html import details, facts_table, flat, note, png_address, section, swatch
from eval.report_parts import Part
from eval.report_questions import questions_section
from eval.report_scores import (
    bars_section,
    calibration_section,
    differences_section,
    overview,
    scores_section,
    warnings,
)
from eval.results import Result, write_text
from mma.routing_report import report_of, short_names

TEMPLATE = Path(__file__).with_name("report.html")
QUESTIONS = 60  # of each benchmark
PICTURES = 7_000_000  # letters that all pictures together may take; a page of 10 MB still opens on a phone
UNSCORED = "These answers are not scored: the right answers are not public, or no judge has seen them."
FACTS = 200  # rows of each kind of what was run


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Args:
        parts: The results, by benchmark and split.
        routes: Site -> modality -> weights of the routes.
        questions: How many questions of each part are shown at most.
    """

    parts: Sequence[Part]
    routes: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    loss_png: Path | None = None
    title: str = "Evaluation report"
    questions: int = QUESTIONS

    def __post_init__(self) -> None:
        if not self.parts:
            raise EvalError("report: there are no results; name result files or a folder of them")


def write_report(path: Path, report: Report) -> None:
    """Write the report whole or not at all."""
    body = [overview(report.parts), *(_part(part, report) for part in report.parts)]
    links = {part.anchor: part.title for part in report.parts}
    for anchor, heading, content in _last(report):
        body.append(section(heading, content, anchor=anchor))
        links[anchor] = heading
    contents = " ".join(f'<a href="#{escape(anchor)}">{escape(told)}</a>' for anchor, told in links.items())
    page = Template(TEMPLATE.read_text(encoding="utf-8"))
    write_text(path, page.substitute(title=escape(report.title), contents=contents, body="\n".join(body)))


def _last(report: Report) -> Iterator[tuple[str, str, str]]:
    """Anchor, title and content of the sections behind those of the benchmarks."""
    if report.routes:
        yield "routing", "Routing", _routes(report.routes)
    if report.loss_png is not None:
        address = png_address(report.loss_png)
        yield "loss", "Loss", f'<img class="curve" alt="Loss over the steps" src="{address}">'
    yield "facts", "What was run", "\n".join(_facts(part) for part in report.parts)


def _part(part: Part, report: Report) -> str:
    letters = PICTURES // len(report.parts)
    content = [f'<ul class="who soft">{"".join(_told(*column) for column in part.columns.items())}</ul>']
    if part.names:
        content.append(scores_section(part))
        content += [bars_section(part)] if len(part.names) > 1 else []
    else:
        content.append(note(UNSCORED))
    content += warnings(part)
    content += [
        differences_section(part),
        calibration_section(part),
        questions_section(part, report.questions, letters),
    ]
    return section(part.title, "\n".join(content), anchor=part.anchor)


def _told(name: str, result: Result) -> str:
    """Who a column is."""
    told = result.settings
    who = told.get("adapter")
    parts = [f"adapter {who}" if who else "the base without an adapter" if "adapter" in told else ""]
    parts += [f"answers by {told['decode']}" if told.get("decode") else ""]
    parts += [f"format {told['format']}" if told.get("format") else ""]
    parts += ["pictures replaced by noise" if told.get("blind") else ""]
    said = ", ".join(part for part in parts if part)
    return f"<li><strong>{escape(name)}</strong>{': ' if said else ''}{escape(said)}</li>"


def _routes(routes: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    found = report_of(routes)
    pattern, names = short_names(list(routes))
    where = f" The sites are {pattern}." if len(names) > 1 else ""
    return (
        note(
            "The weight of every route at every site, by what a sample carries: text alone, or a picture "
            f"too. The darker, the larger.{where}"
        )
        + '<figure class="map scroll" tabindex="0" role="region" aria-label="Routing table">'
        + f"{heat_map(routes)}</figure>"
        + note(f"{'Specialised' if found.specialised else 'Not specialised'}: {found.reason}.")
    )


def _facts(part: Part) -> str:
    """Settings, versions and digests; what all columns share stands there once."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for name, result in part.columns.items():
        told = {
            "Settings": result.settings,
            "Checks": result.checks,
            "Notes": result.scores.notes,
            "Versions": result.versions,
            "Digests": result.digests,
        }
        for group, facts in told.items():
            groups.setdefault(group, {})[name] = dict(facts)
    body = "\n".join(_group(group, columns) for group, columns in groups.items() if any(columns.values()))
    return details(part.title, body, is_open=True)


def _group(title: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    told = {name: dict(flat(facts)) for name, facts in columns.items()}
    keys = list(dict.fromkeys(key for facts in told.values() for key in facts))
    rows = []
    for key in keys[:FACTS]:
        values = [facts.get(key, "") for facts in told.values()]
        if len(set(values)) == 1:
            rows.append((key, escape(values[0]) or "–"))
        else:
            lines = zip(range(len(values)), told, values, strict=True)
            rows.append((key, "".join(f"<div>{_whose(*line)}</div>" for line in lines)))
    left = note(f"{len(keys) - FACTS} more are in the result files.") if len(keys) > FACTS else ""
    return facts_table(title, rows) + left


def _whose(place: int, name: str, value: str) -> str:
    return f'{swatch(place)}<span class="soft">{escape(name)}:</span> {escape(value) or "–"}'
