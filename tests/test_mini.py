"""The embedded base answers in words and not from pictures, and the demo runs from data to report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from assets.mini.demo import main
from data.mini.families import FAMILIES
from data.mini.language import TABLES
from data.mini.problems import hint_problem, word_problem
from data.picture_workers import Pictures
from data.pictures import slot_counter
from data.prompts import render
from data.scienceqa import problem_of
from data.template import make_template
from eval.choice import choose
from eval.runner import Asker
from models.build import BaseSettings, build_base

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base():
    return build_base(BaseSettings(str(ROOT / "assets/mini/decoder"), tower=str(ROOT / "assets/mini/tower"),
                                   tower_every=1))  # fmt: skip


@pytest.mark.parametrize("kind", ["hint", "words"])
def test_the_base_answers_held_out_questions_in_words(base, kind):
    rng, samples = random.Random(20), []
    for index in range(200):
        if kind == "hint":
            made = hint_problem(rng.choice(FAMILIES), rng, "evaluation")
        else:
            made = word_problem(rng.choice(TABLES), rng, "evaluation")
        problem = problem_of(str(index), {**made.row, "split": "test"}, None)
        samples.append(render(problem, "QCM-A", None))
    template = make_template("lavin", base.tokenizer, slot_counter(base.image_slots))
    asker = Asker(base, template, Pictures(lambda _: pytest.fail("there is no picture")), progress=False)
    found = choose(asker, samples).predictions.values()
    assert sum(one.option == one.gold for one in found) / len(samples) >= 0.9


def test_assets_stay_small():
    files = [path for path in (ROOT / "assets/mini").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 24 * 2**20


def test_a_short_demo_leaves_what_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "demo"
    (folder / "data").mkdir(parents=True)
    (folder / "data/generated.json").write_text('{"version": 1}')  # what an older version has left
    assert main(folder, problems=240, overrides=["--optim.epochs", "1", "--optim.warmup_steps", "1"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    names = {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"}
    for key in ("accuracy", "accuracy_blind", "accuracy_base"):
        assert set(summary[key]) == names
        assert summary[key]["Avg"]["count"] == 48
    assert summary["base_digest_before"] == summary["base_digest_after"]
    assert summary["adapter_bytes"] < 1_000_000
    assert set(summary["seconds"]) == {"data", "tune", "score", "swap", "total"}
    assert (folder / "report.html").read_text().count("<img") > 5
    assert (folder / "run/adapter/adapter_model.safetensors").is_file()
    assert "off" in capsys.readouterr().out
