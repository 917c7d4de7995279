"""Published predictions give the percentages that the official scorer prints for them.

Needs the golden files (MMA_GOLDEN, default ../shared/golden) and ScienceQA (MMA_SCIENCEQA, default
../shared/scienceqa); skipped without them.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

import pytest

from data.scienceqa import Problem, load_problems
from eval.results import read_predictions
from eval.scienceqa import LETTERS, extract, score
from eval.score_command import with_gold
from eval.scores import percent

ROOT = Path(__file__).parents[2]
SCORES = Path(os.environ.get("MMA_GOLDEN", ROOT / "../shared/golden")) / "scienceqa"
EXTRACTION = SCORES.parent / "eval" / "scienceqa" / "extraction.jsonl"
DATA = Path(os.environ.get("MMA_SCIENCEQA", ROOT / "../shared/scienceqa"))

OFFICIAL_NAMES = {
    "NAT": "acc_natural",
    "SOC": "acc_social",
    "LAN": "acc_language",
    "TXT": "acc_has_text",
    "IMG": "acc_has_image",
    "NO": "acc_no_context",
    "G1-6": "acc_grade_1_6",
    "G7-12": "acc_grade_7_12",
    "Avg": "acc_average",
}


def _expected() -> dict[str, dict]:
    path = SCORES / "expected.json"
    return json.loads(path.read_text())["sets"] if path.is_file() and DATA.is_dir() else {}


CASES = [(name, model) for name, case in _expected().items() for model in case["scores"]]
needs_files = pytest.mark.skipif(not CASES, reason=f"needs {SCORES}/expected.json and {DATA}")


@cache
def _problems() -> dict[str, Problem]:
    return load_problems(DATA)


@cache
def _options(model: str) -> dict[str, int | None]:
    """Published indices are read as the program reads them; of free text the first number counts."""
    path = SCORES / f"{model}.json"
    if path.is_file():
        read = with_gold(path, read_predictions(path), _problems())
        return {pid: prediction.option for pid, prediction in read.items()}
    texts = json.loads((SCORES / f"{model}_raw.json").read_text())
    return {pid: _first_number(text, len(_problems()[pid].choices)) for pid, text in texts.items()}


def _first_number(text: str, options: int) -> int | None:
    hit = re.search(r"\d+", text)
    return int(hit.group()) if hit and int(hit.group()) < options else None


@needs_files
@pytest.mark.parametrize(("name", "model"), CASES)
def test_published_predictions_reproduce_the_official_scores(name: str, model: str) -> None:
    case = _expected()[name]
    scores = score(_problems(), {pid: _options(model)[pid] for pid in case["pids"]})
    compared = 0
    for ours, official in OFFICIAL_NAMES.items():
        found = scores.categories[ours]
        if official in case["category_counts"]:
            assert found.count == case["category_counts"][official], ours
        if official in case["scores"][model]:
            assert percent(found.value) == case["scores"][model][official], ours
            compared += 1
    assert compared >= 6


@needs_files
def test_no_published_prediction_counts_as_unparsable_but_those_marked_so() -> None:
    for path in sorted(SCORES.glob("*.json")):
        if path.name == "expected.json" or path.stem.endswith("_raw"):
            continue
        options = _options(path.stem)
        marked = list(json.loads(path.read_text()).values()).count(-1)
        assert score(_problems(), options).unparsable == marked, path.name


@pytest.mark.skipif(not EXTRACTION.is_file(), reason=f"needs {EXTRACTION}")
def test_extraction_differs_from_the_public_rule_only_where_documented() -> None:
    cases = [json.loads(line) for line in EXTRACTION.read_text().splitlines()]
    for case in cases:
        public = case["lavin_letter"]
        ours = extract(case["output"], case["n_choices"])
        if re.search(r"The answer is [A-Z](\n|$)", case["output"]):
            continue  # the public rule wants a character that is no line break behind the letter
        known = public in LETTERS[: case["n_choices"]]
        assert ours == (LETTERS.index(public) if known else None), case["output"]
    assert any(extract(case["output"], case["n_choices"]) is not None for case in cases)
