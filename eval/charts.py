"""Drawings for the report as SVG text: bars with intervals, and the routing table as a heat map.

Colours are left to the style sheet of the page (classes `s0`, `s1`, ... and `cell`), so that one drawing
serves a light and a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from eval.scienceqa import CATEGORIES
from eval.scores import Score, Scores, percent

# In units of the drawing; 360 wide is a phone's screen, larger screens scale it up.
WIDTH, LEFT, RIGHT = 360, 48, 44
BAR, GAP, GROUP_GAP, HEAD = 9, 2, 9, 14
CELL_WIDTH, CELL_HEIGHT, CELL_HEAD, CELL_GAP = 30, 17, 30, 8
LETTER = 5.0  # the mean width of a letter


def bars(scores: Mapping[str, Scores], chance: Mapping[str, float | None]) -> str:
    """A group of bars per category, one bar per system, and a tick where guessing would end."""
    step = len(scores) * (BAR + GAP) + GROUP_GAP
    height = HEAD + len(CATEGORIES) * step
    parts = [_axis(height)]
    for place, name in enumerate(CATEGORIES):
        top = HEAD + place * step
        bottom = top + step - GROUP_GAP
        parts.append(_text(LEFT - 6, (top + bottom) / 2 + 3, name, kind="label", anchor="end"))
        for row, (system, its_scores) in enumerate(scores.items()):
            parts.append(_bar(its_scores.categories[name], row, top + row * (BAR + GAP), f"{name}, {system}"))
        guess = chance.get(name)
        if guess is not None:
            parts.append(_line("chance", _x(guess), _x(guess), top - 2, bottom))
    return _svg(WIDTH, height, "Right answers per category, with 95 % intervals", parts)


def heat_map(routes: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row per site; for every modality a cell per route, the darker the larger its weight."""
    modalities = list(dict.fromkeys(name for weights in routes.values() for name in weights))
    paths = max(len(weights) for site in routes.values() for weights in site.values())
    left = 8 + LETTER * max(len(site) for site in routes)
    block = paths * CELL_WIDTH + CELL_GAP
    parts = []
    for column, modality in enumerate(modalities):
        x = left + column * block
        parts.append(_text(x + (block - CELL_GAP) / 2, 10, modality, kind="label"))
        for path in range(paths):
            parts.append(_text(x + (path + 0.5) * CELL_WIDTH, 24, str(path + 1)))
    for row, (site, its_weights) in enumerate(routes.items()):
        y = CELL_HEAD + row * CELL_HEIGHT
        parts.append(_text(left - 6, y + 12, site, anchor="end"))
        for column, modality in enumerate(modalities):
            for path, weight in enumerate(its_weights.get(modality, ())):
                x = left + column * block + path * CELL_WIDTH
                parts.append(_cell(x, y, float(weight), f"{site}, {modality}, route {path + 1}"))
    width, height = left + len(modalities) * block, CELL_HEAD + CELL_HEIGHT * len(routes)
    return _svg(width, height, "Route weights per site and modality", parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">\n'
        f"{body}\n</svg>"
    )


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, *, kind: str = "value", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _axis(height: float) -> str:
    ticks = (0, 25, 50, 75, 100)
    lines = [_line("grid", _x(tick / 100), _x(tick / 100), HEAD - 3, height - 4) for tick in ticks]
    return "\n".join(lines + [_text(_x(tick / 100), 8, str(tick)) for tick in ticks])


def _bar(score: Score, series: int, y: float, title: str) -> str:
    """One bar with its interval; a dash and no bar where there was no question."""
    label = _text(WIDTH - 2, y + BAR - 1, percent(score.value), anchor="end")
    if score.value is None or score.low is None or score.high is None:
        return label
    told = f"{title}: {percent(score.value)} % ({percent(score.low)} to {percent(score.high)})"
    middle, width = y + BAR / 2, _x(score.value) - LEFT
    return (
        f"<g><title>{escape(told)}, {score.count} questions</title>"
        f'<rect class="s{series}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="1"/>'
        f"{_line('whisker', _x(score.low), _x(score.high), middle, middle)}</g>{label}"
    )


def _cell(x: float, y: float, weight: float, title: str) -> str:
    opacity = 0.6 * min(1.0, max(0.0, weight))  # the colour may not hide the number
    return (
        f'<g><title>{escape(title)}: {weight:.3f}</title><rect class="cell" x="{x:.1f}" y="{y}" '
        f'width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" fill-opacity="{opacity:.3f}"/>'
        f"{_text(x + CELL_WIDTH / 2, y + 12, f'{weight:.2f}')}</g>"
    )
