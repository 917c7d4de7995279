"""Drawings for the report as SVG text: bars with intervals, reliability, and the routing table as a heat map.

Colours are left to the style sheet of the page (classes `s0`, `s1`, ... and `cell`), so that one drawing
serves a light and a dark page. Knows no benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from eval.calibration import Calibration
from eval.scores import Score
from mma.routing_report import short_names

# In units of the drawing; 360 wide is a phone's screen, larger screens scale it up.
WIDTH, RIGHT = 360, 40
BAR, GAP, GROUP_GAP, HEAD, LABEL = 9, 2, 9, 14, 13
SHORT, LONG = 12, 58  # letters of a name beside its bars, and above them
CELL_WIDTH, CELL_HEIGHT, CELL_HEAD, CELL_GAP = 30, 17, 30, 8
LETTER = 6.0  # a wide letter
SIDE, MARGIN = 130, 32  # of a reliability drawing


def bars(scores: Mapping[str, Mapping[str, Score]], names: Sequence[str], chance: Mapping[str, float]) -> str:
    """A group of bars for every name, one bar for each system, and a tick where guessing would end.

    Args:
        scores: By system, then by name; what a system does not have gets a dash.
        names: Of one scale, in the order of the drawing.
        chance: What guessing gives, for the names where that is known.
    """
    beside = max(map(len, names)) <= SHORT
    left = 8 + LETTER * max(map(len, names)) if beside else 2
    label = 0 if beside else LABEL
    step = label + len(scores) * (BAR + GAP) + GROUP_GAP
    height = HEAD + len(names) * step
    axis = _Axis(left, _top(scores, names))
    parts = [axis.grid(height)]
    for place, name in enumerate(names):
        top = HEAD + place * step + label
        bottom = HEAD + (place + 1) * step - GROUP_GAP
        if beside:
            parts.append(_text(left - 6, (top + bottom) / 2 + 3, name, kind="label", anchor="end"))
        else:
            parts.append(_text(left, top - 4, _cut(name, LONG), kind="label", anchor="start"))
        for row, (system, its_scores) in enumerate(scores.items()):
            y = top + row * (BAR + GAP)
            parts.append(_bar(axis, its_scores.get(name), row, y, f"{name}, {system}"))
        if name in chance:
            x = axis.x(chance[name])
            parts.append(_line("chance", x, x, top - 2, bottom))
    return _svg(WIDTH, height, "Scores with 95 % intervals", parts)


def figure(score: Score | None) -> str:
    """The value of a score as the published tables print it; a dash where there is none."""
    return "–" if score is None or score.value is None else f"{score.value * score.scale:.2f}"


class _Axis:
    """Where a value stands, and the lines at round numbers."""

    def __init__(self, left: float, top: float) -> None:
        self.left, self.top = left, top

    def x(self, value: float) -> float:
        share = min(1.0, max(0.0, value / self.top))
        return self.left + share * (WIDTH - RIGHT - self.left)

    def grid(self, height: float) -> str:
        ticks = [self.top * part / 4 for part in range(5)]
        lines = [_line("grid", self.x(tick), self.x(tick), HEAD - 3, height - 4) for tick in ticks]
        return "\n".join(lines + [_text(self.x(tick), 8, f"{tick:.4g}") for tick in ticks])


def _top(scores: Mapping[str, Mapping[str, Score]], names: Sequence[str]) -> float:
    """Where the axis ends: 100 for shares, else the next round number."""
    shown = [its[name] for its in scores.values() for name in names if name in its]
    ends = [(score.high if score.high is not None else score.value) for score in shown]
    most = max(
        (end * score.scale for end, score in zip(ends, shown, strict=True) if end is not None), default=0
    )
    if most <= 100 and all(score.scale == 100 for score in shown):
        return 100
    if most <= 0:
        return 1
    size = 10.0 ** math.floor(math.log10(most))
    return float(next(size * step for step in (1, 2, 4, 6, 8, 10) if size * step >= most))


def _bar(axis: _Axis, score: Score | None, series: int, y: float, title: str) -> str:
    """One bar with its interval; a dash and no bar where there was no question."""
    label = _text(WIDTH - 2, y + BAR - 1, figure(score), anchor="end")
    if score is None or score.value is None or score.low is None or score.high is None:
        return label
    value, low, high = (end * score.scale for end in (score.value, score.low, score.high))
    told = f"{title}: {value:.2f} ({low:.2f} to {high:.2f}), over {score.count}"
    middle, width = y + BAR / 2, axis.x(value) - axis.left
    return (
        f"<g><title>{escape(told)}</title>"
        f'<rect class="s{series}" x="{axis.left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" '
        f'rx="1"/>{_line("halo", axis.x(low), axis.x(high), middle, middle)}'
        f"{_line('whisker', axis.x(low), axis.x(high), middle, middle)}</g>{label}"
    )


def reliability(found: Calibration, series: int, name: str) -> str:
    """The share of right answers over how sure the model was; the dashed line is where both agree."""
    left, top = MARGIN, 6
    parts = []
    for tick in (0.0, 0.5, 1.0):
        x, y = left + tick * SIDE, top + (1 - tick) * SIDE
        parts += [_line("grid", left, left + SIDE, y, y), _line("grid", x, x, top, top + SIDE)]
        parts += [
            _text(left - 4, y + 3, f"{tick:.0%}", anchor="end"),
            _text(x, top + SIDE + 11, f"{tick:.0%}"),
        ]
    for one in found.bins:
        if one.right is None or one.confidence is None:
            continue
        told = f"{one.count} answers {one.confidence:.0%} sure on average, {one.right:.0%} right"
        height = max(1.0, one.right * SIDE)
        parts.append(
            f"<g><title>{escape(told)}</title>"
            f'<rect class="s{series}" x="{left + one.low * SIDE + 1:.1f}" y="{top + SIDE - height:.1f}" '
            f'width="{(one.high - one.low) * SIDE - 2:.1f}" height="{height:.1f}" rx="1"/></g>'
        )
    parts.append(_line("chance", left, left + SIDE, top + SIDE, top))
    parts.append(_text(left + SIDE / 2, top + SIDE + 23, "how sure"))
    return _svg(MARGIN + SIDE + 14, SIDE + 34, f"Reliability of {name}", parts)


def heat_map(routes: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row per site; for every modality a cell per route, the darker the larger its weight."""
    modalities = list(dict.fromkeys(name for weights in routes.values() for name in weights))
    paths = max(len(weights) for site in routes.values() for weights in site.values())
    _, names = short_names(list(routes))
    left = 8 + LETTER * max(map(len, names.values()))
    block = paths * CELL_WIDTH + CELL_GAP
    parts = []
    for column, modality in enumerate(modalities):
        x = left + column * block
        parts.append(_text(x + (block - CELL_GAP) / 2, 10, modality, kind="label"))
        for path in range(paths):
            parts.append(_text(x + (path + 0.5) * CELL_WIDTH, 24, str(path + 1)))
    for row, (site, its_weights) in enumerate(routes.items()):
        y = CELL_HEAD + row * CELL_HEIGHT
        parts.append(_text(left - 6, y + 12, names[site], anchor="end"))
        for column, modality in enumerate(modalities):
            for path, weight in enumerate(its_weights.get(modality, ())):
                x = left + column * block + path * CELL_WIDTH
                parts.append(_cell(x, y, float(weight), f"{site}, {modality}, route {path + 1}"))
    width, height = left + len(modalities) * block, CELL_HEAD + CELL_HEIGHT * len(routes)
    return _svg(width, height, "Route weights per site and modality", parts)


def _cell(x: float, y: float, weight: float, title: str) -> str:
    box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}"'
    opacity = 0.6 * min(max(weight, 0.0), 1.0)  # the colour may not hide the number
    text = _text(x + CELL_WIDTH / 2, y + 12, f"{weight:.2f}")
    return (
        f"<g><title>{escape(f'{title}: {weight:.3f}')}</title>"
        f'<rect class="cell" {box} rx="2" fill-opacity="{opacity:.3f}"/>{text}</g>'
    )


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" '
        f'style="--natural: {width:.0f}">\n{body}\n</svg>'
    )


def _text(x: float, y: float, text: str, *, kind: str = "value", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
