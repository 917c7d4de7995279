"""The report's questions to look at: which they are, and a card for each with its pictures and answers.

Without the official files a card has the answers alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from data.errors import DataError
from eval.benchmark import LETTER, SHORT, Question
from eval.calibration import confidence
from eval.report_html import details, note, section, swatch, thumbnail
from eval.report_parts import (
    ABSENT,
    PARTLY,
    RIGHT,
    UNPARSABLE,
    UNSCORED,
    WRONG,
    Part,
    changed,
    earned,
    state,
)
from eval.results import Prediction

LONGEST, HEAD, TAIL = 600, 200, 300  # letters of a prompt, and of both ends of a longer one
ANSWER = 280  # of an answer
OPTION = re.compile(r"\(?([A-Z])[.)] ")  # before an option's text, as benchmarks write it
TOLD = {RIGHT: "✓", WRONG: "✗", UNPARSABLE: "nothing read ✗", UNSCORED: "not scored", ABSENT: "not asked"}
KINDS = {
    "": "all",
    WRONG: "wrong",
    PARTLY: "partly right",
    RIGHT: "right",
    "changed": "changed",
    UNPARSABLE: "unparsable",
}


@dataclass(frozen=True)
class Chosen:
    """The questions shown, in the order of the set, and how many there are of each kind in all."""

    ids: tuple[str, ...]
    total: int
    of_kind: Mapping[str, int]


def choose(part: Part, limit: int) -> Chosen:
    """Questions to look at: unparsable, changed between columns, wrong, and any, a fair share of each."""
    kinds: dict[str, list[str]] = {"unparsable": [], "changed": [], "wrong": [], "any": part.ids}
    first = part.first[1].predictions
    for pid in part.ids:
        made = [result.predictions.get(pid) for result in part.columns.values()]
        if any(state(one) == UNPARSABLE for one in made):
            kinds["unparsable"].append(pid)
        if any(changed(first.get(pid), one) for one in made[1:]):
            kinds["changed"].append(pid)
        if state(first.get(pid)) in (WRONG, PARTLY):
            kinds["wrong"].append(pid)
    taken = _taken(list(kinds.values()), limit)
    ids = tuple(pid for pid in part.ids if pid in taken)
    return Chosen(ids, len(part.ids), {kind: len(some) for kind, some in kinds.items() if kind != "any"})


def _taken(kinds: Sequence[Sequence[str]], limit: int) -> set[str]:
    """So many ids, spread evenly over every kind; what a small kind leaves goes to those behind it."""
    taken: set[str] = set()
    for place, some in enumerate(kinds):
        free = [pid for pid in some if pid not in taken]
        share = math.ceil((limit - len(taken)) / (len(kinds) - place))
        taken.update(spread(free, share))
    return taken


def spread(items: Sequence[str], count: int) -> list[str]:
    """So many of the items, evenly apart."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def questions_section(part: Part, limit: int, letters: int) -> str:
    """The cards with their filters.

    Args:
        limit: How many questions at most.
        letters: What all pictures together may take.
    """
    chosen = choose(part, limit)
    if not chosen.ids:
        return ""
    shown = [part.questions[pid] for pid in chosen.ids if pid in part.questions]
    pictures = sum(len(question.images) for question in shown)
    each = letters // max(1, pictures)
    cards = "".join(_card(part, pid, each) for pid in chosen.ids)
    name = f"cards-{part.anchor}"
    body = [
        note(_said(part, chosen)),
        _filters(part, name, chosen),
        f'<div class="cards" id="{escape(name)}">',
    ]
    return section("Questions to look at", "\n".join([*body, cards, "</div>"]), level=3)


def _said(part: Part, chosen: Chosen) -> str:
    """Which questions these are, and what is left out."""
    total, first = chosen.total, part.first[0]
    kinds = [f"{chosen.of_kind['wrong']:,} that {first} has not fully right"]
    if len(part.columns) > 1:
        kinds.append(f"{chosen.of_kind['changed']:,} that another column has better or worse")
    kinds.append(f"{chosen.of_kind['unparsable']:,} with an unparsable answer")
    parts = [f"Of {total:,} questions there are {', '.join(kinds)}."]
    if left := total - len(chosen.ids):
        parts.append(
            f"Shown are {len(chosen.ids)}, a share of each kind and others, spread evenly over the set; "
            f"{left:,} are left out."
        )
    if not part.questions:
        parts.append(f"With --data {part.benchmark.name}=DIR the questions and pictures are shown too.")
    return " ".join(parts)


def _filters(part: Part, name: str, chosen: Chosen) -> str:
    """The form; it appears where there is a script to obey it."""
    columns = "".join(
        f'<option value="{place}">{escape(column)}</option>' for place, column in enumerate(part.columns)
    )
    states = _states(part, chosen.ids)
    kinds = [
        f'<label><input type="radio" name="kind" value="{value}"{" checked" if not value else ""}>'
        f"<span>{told}</span></label>"
        for value, told in KINDS.items()
        if not (value == PARTLY and PARTLY not in states)
        and not (value == "changed" and len(part.columns) == 1)
    ]
    return (
        f'<form class="filter" data-cards="{escape(name)}" hidden>'
        f'<fieldset class="kinds"><legend>Show</legend>{"".join(kinds)}</fieldset>'
        f'<label>by <select name="column"><option value="">any column</option>{columns}</select></label>'
        '<label>with <input type="search" name="words" placeholder="words" autocomplete="off"></label>'
        '<output aria-live="polite"></output></form>\n'
        f"<noscript>{note('Without JavaScript there is no filter: every question is shown.')}</noscript>"
    )


def _states(part: Part, ids: Iterable[str]) -> str:
    made = ([result.predictions.get(pid) for result in part.columns.values()] for pid in ids)
    return "".join(state(one) for some in made for one in some)


def _card(part: Part, pid: str, letters: int) -> str:
    question = part.questions.get(pid)
    first = part.first[1].predictions.get(pid)
    made = [result.predictions.get(pid) for result in part.columns.values()]
    moved = [changed(first, one) for one in made]
    moved[0] = any(moved)
    moves = "".join(str(int(one)) for one in moved)
    pictures = "" if question is None else "".join(_picture(pid, path, letters) for path in question.images)
    prompt = "" if question is None else _prompt(question)
    answers = "".join(
        f"<dt>{swatch(place)}{escape(name)}</dt>{_answer(result.predictions.get(pid), question)}"
        for place, (name, result) in enumerate(part.columns.items())
    )
    gold = question.gold if question is not None else next((one.gold for one in made if one), None)
    return (
        f'<article data-states="{_states(part, [pid])}" data-changed="{moves}">'
        f"<h4>{escape(pid)}</h4>{pictures}{prompt}"
        f"<dl><dt>right answer</dt><dd>{escape(told_gold(gold, question))}</dd>{answers}</dl></article>\n"
    )


def _picture(pid: str, path: Path, letters: int) -> str:
    try:
        address, (width, height) = thumbnail(path, letters)
    except DataError as error:  # it may have been shown as grey
        return note(str(error), "warning")
    return f'<img alt="Picture of question {escape(pid)}" width="{width}" height="{height}" src="{address}">'


def _prompt(question: Question) -> str:
    """What was asked, its right option marked; of a long one both ends, one of which has the question."""
    text = question.prompt.removesuffix(LETTER).removesuffix(SHORT).strip()
    if len(text) <= LONGEST:
        return _lines(text, question)
    whole = details(f"all {len(text):,} letters", f'<p class="prompt">{escape(text)}</p>')
    return whole + _lines(f"{text[:HEAD]} … {text[-TAIL:]}", question)


def _lines(text: str, question: Question) -> str:
    parts: list[str] = []
    gold = _letter(question)
    for line in text.split("\n"):
        found = OPTION.match(line)
        if found and found[1] in question.options:
            right = ' class="gold"' if found[1] == gold else ""
            parts.append(f"<p{right}>{escape(line)}</p>")
        else:
            parts.append(f"<p>{escape(line)}</p>" if line.strip() else "")
    return f'<div class="prompt">{" ".join(parts)}</div>'


def _letter(question: Question) -> str | None:
    """The right option as the prompt names it."""
    if isinstance(question.gold, int) and 0 <= question.gold < len(question.options):
        return question.options[question.gold]
    return question.gold if isinstance(question.gold, str) else None


def told_gold(gold: Any, question: Question | None) -> str:
    """The right answer in words; several that people gave with how many gave each."""
    if gold is None:
        return "not public"
    if isinstance(gold, int):
        return _option(gold, question)
    if isinstance(gold, list | tuple) and all(isinstance(one, str) for one in gold):
        counts = Counter(gold).most_common()
        return ", ".join(f"{one} ({count})" if len(gold) > 1 else one for one, count in counts)
    return gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False, default=str)


def _option(index: int, question: Question | None) -> str:
    if question is not None and 0 <= index < len(question.options):
        return question.options[index]
    return chr(ord("A") + index) if 0 <= index < 26 else str(index)


def _answer(made: Prediction | None, question: Question | None) -> str:
    """What a column said, what was read in it, and what it earned."""
    kind = state(made)
    if made is None:
        return f'<dd class="soft">{TOLD[ABSENT]}</dd>'
    said = _option(made.option, question) if made.option is not None else str(made.read or "")
    parts = []
    if made.text is not None:
        parts.append(_text(made.text))
        if said and said.strip().lower() != made.text.strip().lower():
            parts.append(f'<span class="soft">read as</span> {_text(said)}')
    elif said:
        parts.append(escape(said))
    if made.likelihoods:
        parts.append(f'<span class="soft">{confidence(made.likelihoods):.0%} sure</span>')
    mark = earned(made)
    told = TOLD.get(kind) or f"{mark:.0%} right"
    tone = {RIGHT: "right", PARTLY: "partly", UNSCORED: "soft"}.get(kind, "wrong")
    parts.append(f'<span class="{tone}">{told}</span>')
    return f"<dd>{' '.join(parts)}</dd>"


def _text(text: str) -> str:
    """A text of an answer; a long one opens on demand."""
    if len(text) <= ANSWER:
        return f'<span class="said">{escape(text)}</span>'
    return f'<details class="said"><summary>{escape(text[: ANSWER - 80])}…</summary>{escape(text)}</details>'
