"""MMBench's option inference and circular report equal the official ones (MMA_GOLDEN/eval/mmbench)."""

from __future__ import annotations

from typing import Any

import pytest

from eval.scorers.mmbench import Rotation, first_pass, hits, report
from eval.scorers.options import infer, infer_2023
from tests.golden.cases import Case, cases

CASES = cases("mmbench")
pytestmark = pytest.mark.skipif(not CASES, reason="no golden cases of mmbench (set MMA_GOLDEN)")


def _check_inference(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert infer(line["prediction"], line["choices"]) == line["vlmevalkit"], line
        assert infer_2023(line["prediction"], line["choices"]) == line["mmbench2023"], line


def _rotation(line: dict[str, Any]) -> Rotation:
    choices = {letter: str(line[letter]) for letter in "ABCD" if line.get(letter) is not None}
    return Rotation(
        line["index"],
        line["answer"],
        infer(str(line["prediction"]), choices),
        line.get("split", "none"),
        line.get("l2-category"),
        line.get("category"),
    )


def _check_circular(lines: list[dict[str, Any]], official: dict[str, Any]) -> None:
    rotations = [_rotation(line) for line in lines]
    hit = hits(rotations)
    table = report(rotations, hit)
    compared = 0
    if "hits" in official:
        assert {str(index): int(right) for index, right in hit.items()} == official["hits"]
        compared += 1
    if "hit_ids" in official:
        assert sorted(index for index, right in hit.items() if right) == sorted(official["hit_ids"])
        compared += 1
    if "groups" in official:
        assert len(hit) == official["groups"]
    if "vanilla_first_pass" in official:
        assert first_pass(rotations).value == pytest.approx(official["vanilla_first_pass"], abs=1e-9)
    wanted = official["report"]
    if not any(isinstance(value, dict) for value in wanted.values()):
        assert len(table) == 1
        wanted = {next(iter(table)): wanted}
    assert table.keys() == wanted.keys()
    for split, names in wanted.items():
        assert table[split].keys() == names.keys()
        for name, value in names.items():
            found = table[split][name].value
            assert found is None if value is None else found == pytest.approx(value, abs=1e-6), name
    assert compared, "no hits to compare"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mmbench_is_scored_as_officially(case: Case) -> None:
    lines = case.lines()
    if {"vlmevalkit", "mmbench2023", "prediction"} <= lines[0].keys():
        _check_inference(lines)
    elif {"index", "answer", "prediction"} <= lines[0].keys() and "report" in case.official:
        _check_circular(lines, case.official)
    else:
        pytest.fail(f"{case}: lines with {sorted(lines[0])} are not known here")
