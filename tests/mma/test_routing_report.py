"""The report of a routing table: its numbers by hand, its verdict, its text and its picture."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mma import AdapterError
from mma.routing_report import MARKED, Table, draw, report_of, short_names, text

EVEN, TILTED = [0.5, 0.5], [0.9, 0.1]


def paths(count: int, *roles: str) -> list[str]:
    return [f"decoder.blocks.{index}.{role}_norm" for index in range(count) for role in roles or ("attn",)]


def random_table(sites: list[str], modalities: tuple[str, ...], routes: int, spread: float) -> Table:
    """Softmaxes of normal logits of this spread."""
    draws = random.Random(3)
    table: dict[str, dict[str, list[float]]] = {}
    for site in sites:
        logits = [[draws.gauss(0, spread) for _ in range(routes)] for _ in modalities]
        mixtures = torch.softmax(torch.tensor(logits), -1).tolist()
        table[site] = dict(zip(modalities, mixtures, strict=True))
    return table


def test_numbers_by_hand():
    report = report_of(
        {
            "a.0.n": {"text": [0.25, 0.75], "image": [1.0, 0.0], "video": [0.5, 0.5]},
            "a.1.n": {"text": [0.5, 0.5], "image": [0.5, 0.5], "video": [0.5, 0.5]},
        }
    )
    first = report.sites[0]
    assert first.weights["image"] == (1.0, 0.0)
    assert first.entropy == pytest.approx({"text": 2 - 0.75 * math.log2(3), "image": 0.0, "video": 1.0})
    assert first.distance == pytest.approx(0.75)
    assert report.sites[1].distance == 0.0
    assert report.distance == pytest.approx(0.375)
    assert report.entropy["image"] == pytest.approx(0.5)
    assert (report.modalities, report.routes) == (("text", "image", "video"), 2)


def test_entropies_are_also_told_as_a_share_of_the_most():
    report = report_of({"a": {"text": [0.25] * 4, "image": [0.5, 0.5, 0.0, 0.0]}})
    assert report.entropy == {"text": 2.0, "image": 1.0}
    assert report.share == {"text": 1.0, "image": 0.5}
    assert report_of({"a": {"text": [1.0]}}).share == {"text": 1.0}  # nothing to choose


def test_a_router_that_treats_modalities_differently_has_specialised():
    table = {"x.0": {"text": EVEN, "image": EVEN}, "x.1": {"text": TILTED, "image": [0.1, 0.9]}}
    report = report_of(table)
    assert report.specialised
    assert report.reason == "modalities get mixtures 0.2 or more apart at 1 of 2 sites, most at x.1 (0.800)"


def test_a_router_that_prefers_a_route_for_all_modalities_says_so():
    report = report_of({"x.0": {"text": TILTED, "image": [0.88, 0.12]}})
    assert report.specialised
    assert "it prefers some routes, text at x.0 most (0.400 from an even mixture)" in report.reason
    assert "not by modality: their mixtures are at most 0.020 apart" in report.reason


@pytest.mark.parametrize("apart", [0.0, 0.05, MARKED - 0.01])
def test_a_router_that_does_neither_has_not_specialised(apart):
    table = {"x.0": {"text": [0.5 - apart / 2, 0.5 + apart / 2], "image": [0.5 + apart / 2, 0.5 - apart / 2]}}
    report = report_of(table)
    assert not report.specialised
    assert f"at most {apart:.3f} apart, at most {apart / 2:.3f} from an even one" in report.reason
    assert "THE ROUTER HAS NOT SPECIALISED: every modality gets nearly the same" in text(report)


@pytest.mark.parametrize(("temperature", "sites"), [(10.0, 32), (5.0, 40)])
def test_an_untrained_router_has_not_specialised(temperature, sites):
    torch.manual_seed(0)
    table = {}
    for path in paths(sites):
        logits = torch.nn.Linear(1024, 2)(torch.randn(2, 1024)) / temperature  # as a norm's output
        table[path] = dict(zip(("text", "image"), torch.softmax(logits, -1).tolist(), strict=True))
    report = report_of(table)
    assert not report.specialised
    assert max(site.distance for site in report.sites) > 0.02


def test_the_report_of_a_model(tiny_system):
    adapters = tiny_system().model.adapters
    report = report_of(adapters.routes())
    assert [site.site for site in report.sites] == paths(2)
    assert report.sites[0].weights["image"] == tuple(adapters.routes()[paths(2)[0]]["image"])
    fresh = report_of(tiny_system(trained=False, temperature=10.0).model.adapters.routes())
    assert not fresh.specialised


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"no site is routed by modality, so there is no routing to report"),
        ({"x.0": {"text": [math.nan, 0.5]}}, r"a route weight of x\.0 is not a number; save or fetch"),
    ],
)
def test_what_is_no_routing_is_refused(table, message):
    with pytest.raises(AdapterError, match=message):
        report_of(table)


def test_the_text_of_two_sites():
    table = {"d.0.norm": {"text": TILTED, "image": [0.25, 0.75]}, "d.1.norm": {"text": EVEN, "image": EVEN}}
    assert text(report_of(table)).split("\n\n")[:2] == [
        "Route weights; sites: 2 (d.*.norm), routes: 2",
        "      text               image\n"
        "site      1     2  bits      1     2  bits  apart\n"
        "0     0.900 0.100 0.469  0.250 0.750 0.811  0.650 ####################\n"
        "1     0.500 0.500 1.000  0.500 0.500 1.000  0.000",
    ]
    summary = " ".join(text(report_of(table)).split("\n\n")[2].split("\n"))
    assert summary == (
        "Mean entropy in bits (1 for an even mixture): text 0.734 (73%), image 0.906 (91%). "
        "Distance between modalities: mean 0.325, largest 0.650. "
        "The router has specialised: modalities get mixtures 0.2 or more apart at 1 of 2 sites, "
        "most at d.0.norm (0.650)."
    )


@pytest.mark.parametrize(
    ("sites", "modalities", "routes"),
    [
        (paths(32), ("text", "image"), 2),
        (paths(40, "attn", "mlp"), ("text", "image"), 2),
        (paths(32), ("text", "image", "video", "audio"), 2),
        (paths(32), ("text", "image"), 4),
        (paths(32), ("text", "image", "video", "audio"), 4),
        (paths(1), ("text",), 1),
        ([*paths(6), "tower.visual.transformer.resblocks.10.ln_1"], ("text", "image"), 2),
    ],
)
def test_the_text_fits_a_screen_and_shows_every_number(sites, modalities, routes):
    report = report_of(random_table(sites, modalities, routes, 2.0))
    lines = text(report).split("\n")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 52
    rows = lines[4 : 4 + min(40, len(sites))]
    if len(sites) <= 40:
        for row, site in zip(rows, report.sites, strict=True):
            weights = [weight for mixture in site.weights.values() for weight in mixture]
            numbers = [float(word) for word in row.split()[1:] if "#" not in word]
            assert len(numbers) in (len(weights) + 1, len(weights) + 1 + len(modalities))
            assert numbers[-1] == pytest.approx(site.distance, abs=6e-4)
            found = iter(numbers)
            assert all(any(abs(number - weight) < 6e-3 for number in found) for weight in weights)


def test_of_many_sites_those_that_differ_most_are_shown_in_their_order():
    table = {
        path: {"text": EVEN, "image": [0.5 + (index % 50) / 100, 0.5 - (index % 50) / 100]}
        for index, path in enumerate(paths(50))
    }
    lines = text(report_of(table)).split("\n")
    assert [line.split()[0] for line in lines[4:44]] == [str(index) for index in range(10, 50)]
    assert lines[44] == "and 10 more, whose modalities are at most 0.090 apart"


def test_short_names():
    assert short_names(paths(2)) == (
        "decoder.blocks.*.attn_norm",
        {"decoder.blocks.0.attn_norm": "0", "decoder.blocks.1.attn_norm": "1"},
    )
    assert short_names(paths(1, "attn", "mlp"))[1] == {
        "decoder.blocks.0.attn_norm": "attn_norm",
        "decoder.blocks.0.mlp_norm": "mlp_norm",
    }
    assert short_names(["x.norm", "x.norm.norm"]) == ("x.*", {"x.norm": "norm", "x.norm.norm": "norm.norm"})
    long = "tower.visual.transformer.resblocks.10.ln_1"
    assert short_names(["norm", long]) == ("*", {"norm": "norm", long: "..resblocks.10.ln_1"})


@pytest.mark.parametrize("sites", [paths(32), paths(40, "attn", "mlp"), paths(1)])
def test_the_picture(tmp_path, sites):
    path = tmp_path / "routes.png"
    draw(report_of(random_table(sites, ("text", "image"), 2, 2.0)), path)
    drawn = Image.open(path).convert("RGB")
    assert drawn.width >= 800
    assert drawn.height >= 400
    assert drawn.width < 5 * drawn.height
    assert len(drawn.getcolors(2**24) or []) > 50
    assert [file.name for file in tmp_path.iterdir()] == ["routes.png"]
    before = path.read_bytes()
    draw(report_of(random_table(sites, ("text", "image"), 2, 0.01)), path)
    assert path.read_bytes() != before


def test_weights_have_the_same_colour_in_every_picture(tmp_path):
    def colours(weight: float) -> set[tuple[int, int, int]]:
        draw(report_of({"x.0": {"text": [weight, 1 - weight]}}), tmp_path / "routes.png")
        picture = Image.open(tmp_path / "routes.png").convert("RGB")
        # The colour scale has every colour once; a cell covers a large part of the picture.
        return {colour for count, colour in picture.getcolors(2**24) or [] if count > 20_000}

    assert colours(0.5) & colours(0.9) == {(255, 255, 255)}
    assert len(colours(0.5)) == 2
    assert colours(1.0) >= {(253, 231, 36), (68, 1, 84)}
    assert colours(0.9) & colours(1.0) == {(255, 255, 255)}


def test_a_picture_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    report = report_of({"x.0": {"text": EVEN}})
    with pytest.raises(
        AdapterError, match=r"none/routes\.png cannot be written \(No such file or directory\)"
    ):
        draw(report, tmp_path / "none" / "routes.png")
    (tmp_path / "routes.png").mkdir()
    with pytest.raises(AdapterError, match=r"routes\.png cannot be written \(Is a directory\)"):
        draw(report, tmp_path / "routes.png")
    assert [path.name for path in tmp_path.iterdir()] == ["routes.png"]


def test_without_matplotlib_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AdapterError, match=r"drawing needs matplotlib; pip install matplotlib"):
        draw(report_of({"x.0": {"text": EVEN}}), tmp_path / "routes.png")
