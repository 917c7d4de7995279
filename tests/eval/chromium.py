"""Looks at a report in headless Chromium: in the tests, and for the pictures in docs/images.

    python -m tests.eval.chromium REPORT.html docs/images

writes report-390-light.png, report-390-dark.png, report-1280-light.png and report-1280-dark.png.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HEIGHTS = {390: 844, 1280: 900}
TALL = {390: 4000, 1280: 3500}  # of the pictures in docs/images
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def missing() -> str | None:
    """Why there is no Chromium to look with; None where there is one."""
    if executable() is None:
        return "no Chromium here (apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401, PLC0415
    except ImportError:
        return "needs the package playwright: pip install playwright"
    return None


def executable() -> str | None:
    """Where Chromium is."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


@dataclass
class Seen:
    """A page, and what it did while it was open."""

    page: Page
    said: list[str] = field(default_factory=list)  # errors and warnings in the console
    asked: list[str] = field(default_factory=list)  # addresses other than the page's own and inline data


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=executable(), args=list(QUIET))
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def opened(
    chromium: Browser, path: Path, width: int, scheme: Scheme = "light", *, script: bool = True
) -> Iterator[Seen]:
    """A file as a screen of this width shows it."""
    context = chromium.new_context(
        viewport={"width": width, "height": HEIGHTS.get(width, 900)},
        color_scheme=scheme,
        java_script_enabled=script,
    )
    try:
        page = context.new_page()
        seen, own = Seen(page), path.absolute().as_uri()
        page.on("console", lambda line: seen.said.append(line.text) if line.type != "log" else None)
        page.on("pageerror", lambda error: seen.said.append(str(error)))
        page.on(
            "request", lambda request: None if _inside(request.url, own) else seen.asked.append(request.url)
        )
        page.goto(own)
        yield seen
    finally:
        context.close()


def _inside(url: str, own: str) -> bool:
    return url.partition("#")[0] == own or url.startswith("data:")


def main(report: Path, folder: Path) -> None:
    """Writes the four pictures."""
    with browser() as chromium:
        for width, height in TALL.items():
            for scheme in SCHEMES:
                with opened(chromium, report, width, scheme) as seen:
                    picture = folder / f"report-{width}-{scheme}.png"
                    seen.page.set_viewport_size({"width": width, "height": height})
                    seen.page.screenshot(path=picture)
                    # a page has few colours; a quarter of the bytes
                    Image.open(picture).convert("RGB").quantize(200).save(picture, optimize=True)
                    print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
