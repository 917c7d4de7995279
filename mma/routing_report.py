"""What a routing table says: entropies, distances between modalities, whether the router has specialised.

Functions of the table that `Adapters.routes()` gives, and of nothing else: knows no model and no adapter.

A mixture is the weights of one site for one modality. The distance of two mixtures is half the sum of the
differences of their weights (total variation): 0 for the same, 1 for mixtures without a common route.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mma.errors import AdapterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Table = Mapping[str, Mapping[str, Sequence[float]]]  # site -> modality -> weights of the K routes

# Mixtures less apart count as nearly the same. An untrained router sets them apart by chance, the more the
# lower the temperature: at most 0.06 over 32 sites at temperature 10, 0.12 at 5 (means of 20 draws). Trained
# on the embedded base, every site comes to 0.7 or more.
MARKED = 0.2
COLUMNS = 80  # of the text
ROWS = 40  # sites in the text, and side by side in a picture


@dataclass(frozen=True)
class SiteRoutes:
    """The routing of one site, by modality."""

    site: str
    weights: dict[str, tuple[float, ...]]
    entropy: dict[str, float]  # bits; log2 K for an even mixture
    share: dict[str, float]  # of the entropy in log2 K
    distance: float  # between the two modalities that differ most


@dataclass(frozen=True)
class RoutingReport:
    """The routing of all sites, and what it comes to."""

    sites: tuple[SiteRoutes, ...]
    modalities: tuple[str, ...]
    routes: int
    entropy: dict[str, float]  # by modality, mean over the sites
    share: dict[str, float]  # likewise
    distance: float  # likewise
    specialised: bool
    reason: str  # in words


def report_of(table: Table) -> RoutingReport:
    """The report of a routing table.

    The router has specialised when, at some site, two modalities get mixtures at least MARKED apart, or one
    gets a mixture at least MARKED from an even one; the reason says which. Below a temperature of 5 an
    untrained router may pass for one by chance. Raises AdapterError for a table without sites or
    with a weight that is not a number.
    """
    if not table:
        raise AdapterError("adapter: no site is routed by modality, so there is no routing to report")
    sites = tuple(_site(path, row) for path, row in table.items())
    modalities = tuple(sites[0].weights)
    specialised, reason = _verdict(sites)
    return RoutingReport(
        sites=sites,
        modalities=modalities,
        routes=len(sites[0].weights[modalities[0]]),
        entropy={name: _mean(site.entropy[name] for site in sites) for name in modalities},
        share={name: _mean(site.share[name] for site in sites) for name in modalities},
        distance=_mean(site.distance for site in sites),
        specialised=specialised,
        reason=reason,
    )


def text(report: RoutingReport) -> str:
    """The report for a terminal of 80 columns; of more than 40 sites, those whose modalities differ most."""
    by_distance = sorted(report.sites, key=lambda site: -site.distance)
    shown = {site.site for site in by_distance[:ROWS]}
    pattern, names = short_names([site.site for site in report.sites])
    first = max(len("site"), *(len(names[path]) for path in shown))
    layout = next((x for x in LAYOUTS if first + x.width(report) <= COLUMNS), LAYOUTS[-1])
    lines = [
        f"Route weights; sites: {len(report.sites)} ({pattern}), routes: {report.routes}",
        "",
        (" " * first + layout.modalities(report)).rstrip(),
        f"{'site':<{first}}" + layout.head(report),
    ]
    for site in report.sites:
        if site.site in shown:
            bar = "#" * round(site.distance * (COLUMNS - first - layout.width(report) - 1))
            lines.append(f"{names[site.site]:<{first}}{layout.row(site)} {bar}".rstrip())
    if rest := by_distance[ROWS:]:
        lines.append(f"and {len(rest)} more, whose modalities are at most {rest[0].distance:.3f} apart")
    return "\n".join([*lines, "", *_summary(report)])


class Layout(NamedTuple):
    """How much of each site the text shows: decimals of a weight, and whether the entropies."""

    decimals: int
    bits: bool

    def block(self, routes: int) -> int:
        """Columns of one modality."""
        return routes * len(f" {self.number(0.5)}") + 6 * self.bits + 1

    def width(self, report: RoutingReport) -> int:
        """Columns of all modalities and the distance."""
        return len(report.modalities) * self.block(report.routes) + 7

    def number(self, weight: float) -> str:
        """A weight; of two decimals without the zero before the point."""
        plain = f"{weight:.{self.decimals}f}"
        return plain if self.decimals > 2 else plain.lstrip("0")[:3]

    def modalities(self, report: RoutingReport) -> str:
        """The line above the heads."""
        width = self.block(report.routes)
        return "".join(f"  {name[: width - 2]:<{width - 2}}" for name in report.modalities)

    def head(self, report: RoutingReport) -> str:
        """The heads of the columns."""
        numbers = [str(route + 1) for route in range(report.routes)]
        return self._cells([numbers] * len(report.modalities), ["bits"] * len(report.modalities), "apart")

    def row(self, site: SiteRoutes) -> str:
        """The columns of a site."""
        weights = [[self.number(weight) for weight in mixture] for mixture in site.weights.values()]
        return self._cells(weights, [f"{bits:.3f}" for bits in site.entropy.values()], f"{site.distance:.3f}")

    def _cells(self, weights: Sequence[Sequence[str]], bits: Sequence[str], distance: str) -> str:
        width = len(self.number(0.5))
        blocks = (
            "".join([" ", *(f" {weight:>{width}}" for weight in mixture), f" {entropy:>5}" * self.bits])
            for mixture, entropy in zip(weights, bits, strict=True)
        )
        return "".join(blocks) + f"  {distance:>5}"


# With several modalities or many routes the entropies are left out first, then a decimal.
LAYOUTS = (Layout(3, True), Layout(3, False), Layout(2, False))


def draw(report: RoutingReport, path: Path) -> None:
    """Draws the weights as a heat map (PNG), as in figure 4 of arXiv 2305.15023.

    Raises AdapterError when matplotlib is missing or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415, only who draws needs it
    except ImportError as error:
        raise AdapterError("adapter: drawing needs matplotlib; pip install matplotlib") from error
    bands = math.ceil(len(report.sites) / ROWS)
    each = math.ceil(len(report.sites) / bands)
    height = 1.8 + 0.4 * len(report.modalities) * report.routes
    figure = Figure(figsize=(max(6.0, 2.2 + 0.3 * each), 0.4 + bands * height), layout="constrained")
    flag = "specialised" if report.specialised else "not specialised"
    title = f"Route weights by site; router {flag}, modalities {report.distance:.2f} apart on average"
    figure.suptitle(title, fontsize=10)
    for band, axes in enumerate(figure.subplots(bands, squeeze=False)[:, 0]):
        _fill(axes, report, slice(band * each, (band + 1) * each))
    figure.colorbar(axes.images[0], ax=figure.axes, label="weight", pad=0.01)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(drawn.getvalue())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise AdapterError(f"adapter: {path} cannot be written ({error.strerror})") from error


def _fill(axes: Axes, report: RoutingReport, part: slice) -> None:
    """Draws some of the sites: weights as colours and numbers, with labels."""
    pattern, names = short_names([site.site for site in report.sites])
    sites = report.sites[part]
    labels = [(modality, route) for modality in report.modalities for route in range(report.routes)]
    rows = [[site.weights[modality][route] for site in sites] for modality, route in labels]
    axes.imshow(rows, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(labels)), [f"{modality} {route + 1}" for modality, route in labels])
    ticks = [names[site.site] for site in sites]
    axes.set_xticks(range(len(ticks)), ticks, rotation=90 if max(map(len, ticks)) > 2 else 0)
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel=f"site ({pattern})", ylabel="modality and route")
    for row, weights in enumerate(rows):
        for column, weight in enumerate(weights):
            colour = "black" if weight > 0.55 else "white"
            axes.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=6, color=colour)
    for edge in range(report.routes, len(rows), report.routes):
        axes.axhline(edge - 0.5, color="white", linewidth=3)


def short_names(paths: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What all paths share, with * in the place of the rest, and that rest of each path."""
    split = [path.split(".") for path in paths]
    most = min(map(len, split)) - 1
    before = next((i for i in range(most) if len({parts[i] for parts in split}) > 1), most)
    most -= before
    after = next((i for i in range(most) if len({parts[-1 - i] for parts in split}) > 1), most)
    rests = [".".join(parts[before : len(parts) - after]) for parts in split]
    pattern = ".".join([*split[0][:before], "*", *split[0][len(split[0]) - after :]])
    # The end of a path tells more than its beginning: it has the number of the block.
    return pattern, {
        path: rest if len(rest) <= 20 else f"..{rest[-18:].lstrip('.')}"
        for path, rest in zip(paths, rests, strict=True)
    }


def _site(path: str, row: Mapping[str, Sequence[float]]) -> SiteRoutes:
    weights = {modality: tuple(mixture) for modality, mixture in row.items()}
    if not all(math.isfinite(weight) for mixture in weights.values() for weight in mixture):
        raise AdapterError(
            f"adapter: a route weight of {path} is not a number; save or fetch the adapter again"
        )
    entropy = {
        modality: sum(-weight * math.log2(weight) for weight in mixture if weight > 0)
        for modality, mixture in weights.items()
    }
    # With one route there is nothing to choose: an even mixture.
    share = {
        modality: entropy[modality] / math.log2(len(mixture)) if len(mixture) > 1 else 1.0
        for modality, mixture in weights.items()
    }
    distance = max((_apart(a, b) for a, b in combinations(weights.values(), 2)), default=0.0)
    return SiteRoutes(path, weights, entropy, share, distance)


def _verdict(sites: Sequence[SiteRoutes]) -> tuple[bool, str]:
    """Whether the router has specialised, and why."""
    apart = max(sites, key=lambda site: site.distance)
    uneven, where, modality = max(
        (_apart(mixture, [1 / len(mixture)] * len(mixture)), site.site, modality)
        for site in sites
        for modality, mixture in site.weights.items()
    )
    if apart.distance >= MARKED:
        count = sum(site.distance >= MARKED for site in sites)
        return True, (
            f"modalities get mixtures {MARKED} or more apart at {count} of {len(sites)} sites, "
            f"most at {apart.site} ({apart.distance:.3f})"
        )
    same = f"at most {apart.distance:.3f} apart"
    if uneven >= MARKED:
        return True, (
            f"it prefers some routes, {modality} at {where} most ({uneven:.3f} from an even mixture), "
            f"but not by modality: their mixtures are {same}"
        )
    return False, (
        f"every modality gets nearly the same, nearly even mixture: {same}, "
        f"at most {uneven:.3f} from an even one (marked would be {MARKED})"
    )


def _summary(report: RoutingReport) -> list[str]:
    entropies = ", ".join(
        f"{name} {report.entropy[name]:.3f} ({report.share[name]:.0%})" for name in report.modalities
    )
    largest = max(site.distance for site in report.sites)
    flag = "The router has specialised" if report.specialised else "THE ROUTER HAS NOT SPECIALISED"
    paragraphs = (
        f"Mean entropy in bits ({math.log2(report.routes):.3g} for an even mixture): {entropies}.",
        f"Distance between modalities: mean {report.distance:.3f}, largest {largest:.3f}.",
        f"{flag}: {report.reason}.",
    )
    return [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, COLUMNS)]


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    """The distance of two mixtures."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
