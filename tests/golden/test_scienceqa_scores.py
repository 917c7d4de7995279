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
from typing import Any

import pytest

from data.scienceqa import Problem, load_problems
from eval.results import read_predictions
from eval.scienceqa import LETTERS, extract, score
from eval.score_command import with_gold
from eval.scores import percent
from tests.golden.cases import GOLDEN, expectations, lines_with

DATA = Path(os.environ.get("MMA_SCIENCEQA", Path(__file__).parents[2] / "../shared/scienceqa"))

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


# (where it is, what is expected of it, the model) for each set of questions and each model
CASES = [
    pytest.param(path.parent, case, model, id=f"{name}-{model}")
    for path, content in expectations().items()
    for name, case in content.get("sets", {}).items()
    for model in case["scores"]
    if DATA.is_dir()
]
NONE = pytest.param(
    None, None, "", marks=pytest.mark.skip(reason=f"needs expected.json with sets below {GOLDEN}, and {DATA}")
)


@cache
def _problems() -> dict[str, Problem]:
    return load_problems(DATA)


@cache
def _options(folder: Path, model: str) -> dict[str, int | None]:
    """Published indices are read as the program reads them; of free text the first number counts."""
    path = folder / f"{model}.json"
    if path.is_file():
        read = with_gold(path, read_predictions(path), _problems())
        marked = list(json.loads(path.read_text()).values()).count(-1)
        assert [made.option for made in read.values()].count(None) == marked, path.name
        return {pid: prediction.option for pid, prediction in read.items()}
    texts = json.loads((folder / f"{model}_raw.json").read_text())
    return {pid: _first_number(text, len(_problems()[pid].choices)) for pid, text in texts.items()}


def _first_number(text: str, options: int) -> int | None:
    hit = re.search(r"\d+", text)
    return int(hit.group()) if hit and int(hit.group()) < options else None


@pytest.mark.parametrize(("folder", "case", "model"), CASES or [NONE])
def test_published_predictions_reproduce_the_official_scores(
    folder: Path, case: dict[str, Any], model: str
) -> None:
    scores = score(_problems(), {pid: _options(folder, model)[pid] for pid in case["pids"]})
    compared = 0
    for ours, official in OFFICIAL_NAMES.items():
        found = scores.categories[ours]
        if official in case["category_counts"]:
            assert found.count == case["category_counts"][official], ours
        if official in case["scores"][model]:
            assert percent(found.value) == case["scores"][model][official], ours
            compared += 1
    assert compared


LINES = [line for _, line in lines_with("scienceqa", "output", "n_choices", "lavin_letter")]


@pytest.mark.skipif(not LINES, reason=f"no golden answers of scienceqa below {GOLDEN} (MMA_GOLDEN)")
def test_extraction_differs_from_the_public_rule_only_where_documented() -> None:
    compared = 0
    for case in LINES:
        public = case["lavin_letter"]
        ours = extract(case["output"], case["n_choices"])
        if re.search(r"The answer is [A-Z](\n|$)", case["output"]):
            continue  # the public rule wants a character that is no line break behind the letter
        known = public in tuple(LETTERS[: case["n_choices"]])
        assert ours == (LETTERS.index(public) if known else None), case["output"]
        compared += 1
    assert compared
