"""Every benchmark runs: quickly, with tiny shapes, and writes the numbers that it is there for."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest

from benchmarks.measure import main, ratio, take_turns
from benchmarks.samples import bucketed, samples

WANTED = {
    "adapter_kernel": ("where", "sites"),
    "bank": ("milliseconds", "over_shared", "over_8_resident", "over_runs"),
    "evaluate": ("questions", "contestants", "ratios"),
    "load": ("cases", "over_plain_read"),
    "memory": ("shape", "peaks"),
    "merged": ("prompt", "tokens", "rows"),
    "pipeline": ("pictures_per_s", "over_dataloader", "waited_share"),
    "quantised": ("shape", "kinds"),
    "scaling": ("curves",),
    "swap": ("parameters", "fp32", "fp16"),
    "train": ("contestants", "ratios", "spread"),
}
INFERENCE = ("choice", "generate")  # run in test_benchmarks_inference.py
PARTS = ("__init__", "lengths", "measure", "peak", "peft_peer", "regimes", "samples", "shapes")


def numbers_in(content: object) -> list[float]:
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers_in(value)]
    return [content] if isinstance(content, int | float) else []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", WANTED)
def test_a_benchmark_runs(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    file = tmp_path / "numbers.json"
    monkeypatch.setattr("sys.argv", [name, "--quick", "--json", str(file)])
    main(name, module.__doc__, module.measure)
    content = json.loads(file.read_text())
    assert content["benchmark"] == name and content["quick"] is True
    assert content["commit"] and content["versions"]["torch"] and content["machine"]["threads"]
    assert set(WANTED[name]) <= set(content)
    assert all(math.isfinite(number) for number in numbers_in(content))
    assert content["device"] in capsys.readouterr().out


def test_every_benchmark_is_run_here_and_has_results():
    root = Path(__file__).parents[1] / "benchmarks"
    names = {path.stem for path in root.glob("*.py")} - set(PARTS)
    assert names == {*WANTED, *INFERENCE}
    for name in names:
        content = json.loads((root / "results" / f"{name}.json").read_text())
        assert content["benchmark"] == name and content["quick"] is False


def test_cases_take_turns_and_ratios_are_of_pairs():
    order: list[str] = []
    times = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3, "c": 3}
    slow = {"case": [2.0, 4.0, 90.0], "peer": [1.0, 2.0, 30.0]}  # the machine was busy in the last round
    assert ratio(slow, "case", "peer") == {"ratio": 2.0, "low": 2.0, "high": 2.5}


def test_samples_of_like_length_are_padded_to_the_longest_of_their_batch():
    drawn = samples("QCM-A", 12, vocabulary=500, longest=128)
    batches = bucketed(drawn, 512, (8, 8))
    assert all(len(set(batch.lengths)) == 1 and len(batch.ids) <= 512 for batch in batches)
    assert sorted(name for batch in batches for name in batch.sample_ids) == sorted(
        each.sample_id for each in drawn
    )
    assert sum(len(batch.targets) for batch in batches) == sum(sum(each.supervised) for each in drawn)
    assert sum(len(batch.ids) for batch in batches) > sum(map(len, drawn))
