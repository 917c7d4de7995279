"""Pieces of the report's page: tables, sections, pictures inside the file. Knows nothing of evaluation."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from data.pictures import open_picture

SIDES = (480, 360, 240, 160)  # the longer side of a picture, from the best to the smallest
QUALITY = 82
COLOURS = 4096  # a picture of fewer may be a drawing, which PNG keeps in less
BREAKS = re.compile(r"([._])")  # where a long name may go on in the next line


def section(title: str, content: str, *, anchor: str = "", level: int = 2) -> str:
    """A part of the page with its heading."""
    name = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{name}>\n<h{level}>{escape(title)}</h{level}>\n{content}\n</section>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """A table of finished HTML cells; the first of a row is its head. It scrolls where it is too wide."""
    lines = ["<thead><tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr></thead>"]
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
        f"<caption>{escape(caption)}</caption>\n{body}\n</table></div>"
    )


def note(text: str, kind: str = "soft") -> str:
    """A small line of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def swatch(place: int) -> str:
    """The colour of a column."""
    square = f'<rect class="s{place}" width="1" height="1"/>'
    return f'<svg class="swatch" viewBox="0 0 1 1" aria-hidden="true">{square}</svg>'


def details(summary: str, content: str, *, is_open: bool = False) -> str:
    """Something that opens on demand; what it says is plain text, what it holds is HTML."""
    return f"<details{' open' * is_open}><summary>{escape(summary)}</summary>\n{content}\n</details>"


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as names with dots and short texts."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{key}", "" if value is None else text


def facts_table(caption: str, facts: Iterable[tuple[str, str]]) -> str:
    """Names in plain text and what they are in HTML, in two columns."""
    rows = "\n".join(
        f'<tr><th scope="row">{_breakable(key)}</th><td>{value}</td></tr>' for key, value in facts
    )
    return f'<table class="facts">\n<caption>{escape(caption)}</caption>\n{rows}\n</table>'


def _breakable(name: str) -> str:
    return BREAKS.sub(r"\1<wbr>", escape(name))


def thumbnail(path: Path, limit: int) -> tuple[str, tuple[int, int]]:
    """A picture as a data address of at most so many letters where that can be, and its size."""
    picture = open_picture(path)
    kinds = ("JPEG",) if picture.getcolors(COLOURS) is None else ("JPEG", "PNG")
    for side in SIDES:
        picture.thumbnail((side, side))  # only ever smaller
        address = min((_encoded(picture, kind) for kind in kinds), key=len)
        if len(address) <= limit:
            break
    return address, picture.size


def png_address(path: Path) -> str:
    """A PNG file as it is, as a data address."""
    return _address("png", path.read_bytes())


def _encoded(picture: Any, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=QUALITY)
    return _address(kind.lower(), buffer.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
