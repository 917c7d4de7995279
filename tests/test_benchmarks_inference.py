"""The benchmarks of generation and multiple choice run, quickly, and both ways give the same answers."""

from __future__ import annotations

import importlib
import json
import math

import pytest

from benchmarks.measure import main

SIZES = ("1 rows", "32 rows")
WANTED = {
    "generate": (
        {f"{name}, {size}" for name in ("ours", "transformers") for size in SIZES}
        | {"continuous", "waiting"},
        {f"transformers, {size}" for size in SIZES} | {"waiting"},
    ),
    "choice": ({"one pass", "per option", "generated"}, {"per option", "generated"}),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_benchmark_runs(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    file = tmp_path / "numbers.json"
    monkeypatch.setattr("sys.argv", [name, "--quick", "--json", str(file)])
    main(name, module.__doc__, module.measure)
    content = json.loads(file.read_text())
    contestants, ratios = WANTED[name]
    assert content["benchmark"] == name and content["quick"] is True
    assert set(content["contestants"]) == contestants and set(content["ratios"]) == ratios
    speeds = [number for row in content["contestants"].values() for number in row.values()]
    assert all(math.isfinite(number) and number > 0 for number in speeds)
    if name == "generate":
        assert all(row.get("same_answers", 1.0) == 1.0 for row in content["contestants"].values())
    else:
        assert content["same_choices"] is True
    assert content["device"] in capsys.readouterr().out
