"""The report's figures of one benchmark: scores beside published ones, bars, differences, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from eval.benchmark import Published
from eval.calibration import Calibration, calibration, confidence
from eval.charts import bars, figure, reliability
from eval.compare import Comparison, compare
from eval.errors import EvalError
from eval.report_guess import guessing
from eval.report_html import details, note, section, swatch, table
from eval.report_parts import Part, earned, head_of
from eval.results import Result
from eval.scores import SMALL, Score
from eval.statistics import minimum_detectable

SHOWN = 16  # rows of scores; more open on demand
MEANINGS = {
    "scienceqa": "NAT, SOC, LAN: natural, social and language science; TXT, IMG, NO: questions with a hint, "
    "with a picture, with neither; G: school grades. ",
}
"""Of names that do not speak for themselves."""


def overview(parts: Sequence[Part]) -> str:
    """The headline score of every benchmark, large, with the other columns below it."""
    tiles = []
    for part in parts:
        lines = []
        for place, (name, result) in enumerate(part.columns.items()):
            score = head_of(part, result.scores)
            value = figure(score)
            unit = " %" if score is not None and score.scale == 100 else ""
            lines.append(
                f"<li><span>{swatch(place)}{escape(name)}</span>"
                f"<strong>{value}{unit}</strong><small>{ends(score)}</small></li>"
            )
        asked = len(part.ids)
        tiles.append(
            f'<li class="tile"><a href="#{escape(part.anchor)}">{escape(part.title)}</a>'
            f'<p class="soft">{escape(part.headline or "not scored")}, {asked:,} questions</p>'
            f"<ul>{''.join(lines)}</ul></li>"
        )
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def ends(score: Score | None) -> str:
    """Both ends of an interval."""
    if score is None or score.low is None or score.high is None:
        return ""
    low, high = score.low * score.scale, score.high * score.scale
    decimals = 1 if high < 1000 else 0
    return f"{low:.{decimals}f} – {high:.{decimals}f}"


def scores_section(part: Part) -> str:
    """Every score of every column with its interval, beside what others have published."""
    published = list(dict.fromkeys(one.system for one in part.benchmark.published if one.score in part.names))
    head = [
        "",
        *_heads(part),
        "count",
        *(f'<span class="theirs">{escape(name)}</span>' for name in published),
    ]
    values = {(one.system, one.score): one for one in part.benchmark.published}
    decimals = max((len(f"{one.value:g}".partition(".")[2]) for one in values.values()), default=0)
    rows = [
        _row(part, name, [values.get((system, name)) for system in published], decimals)
        for name in part.names
    ]
    unparsable = [str(result.scores.unparsable) for result in part.columns.values()]
    last = ["unparsable", *unparsable, "", *("" for _ in published)]
    body = [table(head, [*rows[:SHOWN], last], _caption(part))]
    if len(rows) > SHOWN:
        body.append(
            details(
                f"{len(rows) - SHOWN} more scores",
                table(head, rows[SHOWN:], _caption(part)),
            )
        )
    body += _legend(part, published)
    return section("Scores", "\n".join(body), level=3)


def _caption(part: Part) -> str:
    scales = {one.scale for result in part.columns.values() for one in result.scores.categories.values()}
    return f"{'Percent' if scales == {100} else 'Scores'}, below each its 95 % interval"


def _heads(part: Part) -> list[str]:
    return [f"{swatch(place)}{escape(name)}" for place, name in enumerate(part.columns)]


def _row(part: Part, name: str, published: Sequence[Published | None], decimals: int) -> list[str]:
    scores = [result.scores.categories.get(name) for result in part.columns.values()]
    cells = [f"{figure(score)}<small>{ends(score)}</small>" if score else "–" for score in scores]
    counts = dict.fromkeys(f"{score.count:,}" for score in scores if score is not None)
    told = [f'<span class="theirs">{one.value:.{decimals}f}</span>' if one else "" for one in published]
    return [escape(name), *cells, "<br>".join(counts), *told]


def _legend(part: Part, published: Sequence[str]) -> Iterator[str]:
    yield note(
        f"In unparsable answers the scorer found nothing usable. {MEANINGS.get(part.benchmark.name, '')}"
        f"The rule is that of {part.benchmark.rule}."
    )
    if not published:
        return
    systems: dict[str, dict[str, None]] = {}
    for one in part.benchmark.published:
        if one.system in published:
            systems.setdefault(one.source, {})[one.system] = None
    told = "; ".join(f"{', '.join(names)}: {source}" for source, names in systems.items())
    yield note(f"Published scores, in italics at the right: {told}.")
    size, asked = part.benchmark.sizes.get(part.split), len(part.ids)
    if size is not None and size != asked:
        yield note(
            f"The published scores are over the official {size:,} questions, ours over {asked:,}: "
            "they cannot be compared.",
            "warning",
        )


def warnings(part: Part) -> Iterator[str]:
    """What a reader should know of a column before believing its scores."""
    for name, result in part.columns.items():
        for key, value in result.checks.items():
            if value:
                told = len(value) if isinstance(value, list | dict) else value
                yield note(f"{name}: {key.replace('_', ' ')}: {told}", "warning")
        for key, value in result.scores.notes.items():
            if isinstance(value, str):
                yield note(f"{name}: {key}: {value}")


def bars_section(part: Part) -> str:
    """The scores as bars, in a drawing for every scale."""
    scores = {name: result.scores.categories for name, result in part.columns.items()}
    chance = guessing(part)
    legend = [f"<span>{swatch(place)}{escape(name)}</span>" for place, name in enumerate(scores)]
    if chance:
        legend.append('<span><span class="dashed"></span>guessing</span>')
    drawn = []
    for names in _by_scale(part):
        shown, rest = names[:SHOWN], names[SHOWN:]
        drawn.append(f"<figure>{bars(scores, shown, chance)}</figure>")
        if rest:
            more = f"<figure>{bars(scores, rest, chance)}</figure>"
            drawn.append(details(f"{len(rest)} more", more))
    caption = note("The thin line on a bar is the 95 % interval.")
    return section(
        "By category", f'<div class="legend">{"".join(legend)}</div>\n{"".join(drawn)}{caption}', level=3
    )


def _by_scale(part: Part) -> list[list[str]]:
    """The names of the scores, those of one axis together.

    Where scores are sums, the sum over everything would leave no room for its parts: headlines, which are
    the first score and the published ones, stand apart then.
    """
    all_scores = [result.scores.categories for result in part.columns.values()]
    heads = {part.headline, *(one.score for one in part.benchmark.published)}
    groups: dict[tuple[float, bool], list[str]] = {}
    for name in part.names:
        scale = next(scores[name].scale for scores in all_scores if name in scores)
        groups.setdefault((scale, scale != 100 and name in heads), []).append(name)
    return list(groups.values())


def differences_section(part: Part) -> str:
    """Every column against the first, question by question."""
    (first, ours), *others = part.columns.items()
    body = []
    if not others:
        body.append(note("There is one system only, so there is nothing to compare."))
    rows = []
    for name, theirs in others:
        try:
            rows.append(_compared(name, compare(ours.predictions, theirs.predictions)))
        except EvalError as error:
            body.append(note(f"{name}: {str(error).removeprefix('compare: ')}", "warning"))
    if rows:
        head = [
            "against",
            "points",
            "questions",
            f"only {escape(first)} right",
            "only other right",
            "p",
            "test",
        ]
        body.insert(0, table(head, rows, f"{first} against the others, on the same questions"))
        body.insert(
            1,
            note(
                f"Points: how much more {first} earned per question, below it the 95 % interval. p is "
                "two-sided: how likely so large a difference would be if both were equally good."
            ),
        )
    body += _detectable(part)
    return section("Is the difference chance?", "\n".join(body), level=3)


def _compared(name: str, found: Comparison) -> list[str]:
    low, high = (f"{100 * end:+.1f}" for end in found.interval)
    points = f"{100 * found.difference:+.2f}<small>{low} to {high}</small>".replace("-", "−")
    pairs = ("–", "–") if found.pairs is None else (f"{found.pairs.only_a:,}", f"{found.pairs.only_b:,}")
    count = f"{found.count:,}"
    if found.left_out:
        count += f"<small>{found.left_out:,} left out</small>"
    test = f"{found.test}, exact" if found.pairs is not None else found.test
    return [escape(name), points, count, *pairs, f"{found.p:.2g}", escape(test)]


def _detectable(part: Part) -> Iterator[str]:
    """What a small set cannot tell."""
    score = head_of(part, part.first[1].scores)
    if score is None or score.value is None or score.scale != 100 or not 0 < score.value < 1:
        return
    if score.count < SMALL:
        points = min(100, 100 * minimum_detectable(score.value, score.count))
        yield note(
            f"A small set: with {score.count:,} questions a difference below {points:.1f} points may be "
            "chance (what two systems must differ by to be told apart with 80 % power at the 5 % level)."
        )


def calibration_section(part: Part) -> str:
    """How sure the columns were and how often right; empty where none answered by likelihood."""
    found = {name: calibrated(result) for name, result in part.columns.items()}
    drawn, rows = [], []
    for place, (name, one) in enumerate(found.items()):
        if one is None:
            continue
        drawn.append(
            f"<figure>{reliability(one, place, name)}"
            f"<figcaption>{swatch(place)}{escape(name)}</figcaption></figure>"
        )
        rows.append(
            [
                f"{swatch(place)}{escape(name)}",
                f"{100 * one.error:.2f}",
                *(f"{100 * share:.2f}" for share in (one.confidence, one.right)),
                f"{one.count:,}",
            ]
        )
    if not rows:
        return ""
    head = ["", "calibration error", "sure, mean %", "right, mean %", "answers"]
    body = (
        f'<div class="row">{"".join(drawn)}</div>'
        + note(
            "Height: the share of right answers among those that were so sure. On the dashed line a model is "
            "right as often as it is sure; below it is too sure. Sure: the probability of the chosen option "
            "among the options. The calibration error is the mean distance from the line, in points."
        )
        + table(head, rows, "Expected calibration error, ten bins")
    )
    return section("Calibration", body, level=3)


def calibrated(result: Result) -> Calibration | None:
    """The calibration of the answers that were chosen by likelihood and are scored."""
    made = []
    for one in result.predictions.values():
        mark = earned(one)
        if one.likelihoods and len(one.likelihoods) > 1 and mark is not None:
            made.append((confidence(one.likelihoods), mark))
    return calibration(made)
