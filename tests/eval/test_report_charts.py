"""The drawings: bars of any scale, reliability, and the routing table."""

from __future__ import annotations

import re

import pytest

from eval.calibration import calibration
from eval.charts import bars, figure, heat_map, reliability
from eval.scores import Score
from tests.eval.report_files import ROUTES, Page

HALF = Score(0.5, 0.4, 0.6, 100)


def ticks(drawing: str) -> list[str]:
    """What stands above the axis."""
    return re.findall(r'y="8.0" text-anchor="middle">([^<]+)<', drawing)


def test_figures_are_scaled_and_have_two_decimals() -> None:
    assert figure(HALF) == "50.00"
    assert figure(Score(1510.66, 1, 2, 3, scale=1)) == "1510.66"
    assert figure(Score(None, None, None, 0)) == "–"
    assert figure(None) == "–"


def test_bars_of_shares_end_at_100() -> None:
    drawing = bars({"a": {"Avg": HALF}, "b": {"Avg": HALF}}, ["Avg"], {"Avg": 25.0})
    Page(drawing)
    assert ticks(drawing) == ["0", "25", "50", "75", "100"]
    assert "Avg, a: 50.00 (40.00 to 60.00), over 100" in drawing
    assert drawing.count('class="chance"') == 1
    assert drawing.count('class="whisker"') == 2


def test_half_is_in_the_middle_of_the_axis_and_a_quarter_before_it() -> None:
    drawing = bars({"a": {"Avg": HALF}}, ["Avg"], {"Avg": 25.0})
    ((start, width),) = re.findall(r'class="s0" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    (guess,) = re.findall(r'class="chance" x1="([\d.]+)"', drawing)
    assert float(guess) - float(start) == pytest.approx(float(width) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("high", "end"), [(1400.0, "2000"), (150.0, "200"), (0.7, "0.8"), (9.5, "10"), (100.0, "100")]
)
def test_bars_of_other_scales_end_at_a_round_number(high: float, end: str) -> None:
    drawing = bars({"a": {"sum": Score(high / 2, high / 4, high, 3, scale=1)}}, ["sum"], {})
    assert ticks(drawing)[-1] == end


def test_a_share_above_one_widens_the_axis() -> None:
    drawing = bars({"a": {"relative": Score(1.2, 1.1, 1.3, 60)}}, ["relative"], {})
    assert ticks(drawing)[-1] == "200"


def test_what_is_missing_gets_a_dash_and_no_bar() -> None:
    nothing = Score(None, None, None, 0)
    drawing = bars({"a": {"x": nothing}, "b": {}}, ["x"], {})
    assert "<rect" not in drawing
    assert drawing.count(">–<") == 2


def test_long_names_stand_above_their_bars_and_are_escaped() -> None:
    drawing = bars({"a": {"exact <match> of everything": HALF}}, ["exact <match> of everything"], {})
    Page(drawing)
    assert 'text-anchor="start">exact &lt;match&gt; of everything<' in drawing
    very = "x" * 100
    assert "x" * 57 + "…" in bars({"a": {very: HALF}}, [very], {})


def test_reliability_draws_a_bar_for_every_bin_with_answers() -> None:
    found = calibration([(0.95, 1), (0.95, 0), (0.35, 0)])
    assert found is not None
    drawing = reliability(found, 2, "ours")
    Page(drawing)
    assert drawing.count('class="s2"') == 2
    assert "2 answers 95% sure on average, 50% right" in drawing
    assert "1 answers 35% sure on average, 0% right" in drawing
    heights = [float(height) for height in re.findall(r'class="s2".*?height="([\d.]+)"', drawing)]
    assert heights == [1.0, 65.0]  # none right, and half of 130


def test_heat_map_has_a_cell_per_route_and_darker_for_more() -> None:
    drawing = heat_map(ROUTES)
    cells = [float(value) for value in re.findall(r'class="cell".*?fill-opacity="([\d.]+)"', drawing)]
    assert cells == pytest.approx([0.6 * w for w in (0.75, 0.25, 0.4, 0.6, 0.5, 0.5, 0.1, 0.9)])


def test_heat_map_of_one_site() -> None:
    drawing = heat_map({"decoder.blocks.0.attn_norm": {"text": [1.0]}})
    Page(drawing)
    assert "decoder.blocks.0.attn_norm, text, route 1: 1.000" in drawing
