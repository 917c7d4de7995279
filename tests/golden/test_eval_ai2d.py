"""AI2D answers are judged as by lmms-eval and by VLMEvalKit (MMA_GOLDEN/eval/ai2d)."""

from __future__ import annotations

import pytest

from eval.scorers.ai2d import lmms_filtered, lmms_match, vlmevalkit_letter
from tests.golden.cases import Case, cases

CASES = cases("ai2d")
pytestmark = pytest.mark.skipif(not CASES, reason="no golden cases of ai2d (set MMA_GOLDEN)")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ai2d_is_scored_as_officially(case: Case) -> None:
    lines = case.lines()
    if not {"lmms_filtered", "lmms_exact_match", "vlmevalkit_letter"} <= lines[0].keys():
        pytest.fail(f"{case}: lines with {sorted(lines[0])} are not known here")
    matches, right = [], []
    for line in lines:
        gold = "ABCDEFGH"[line["gold_index"]]
        choices = dict(zip("ABCDEFGH", line["options"], strict=False))
        assert lmms_filtered(line["response"]) == line["lmms_filtered"], line
        matches.append(lmms_match(line["response"], gold))
        assert matches[-1] == bool(line["lmms_exact_match"]), line
        letter = vlmevalkit_letter(line["response"], choices)
        assert letter == line["vlmevalkit_letter"], line
        right.append(letter == gold)
        assert right[-1] == bool(line["vlmevalkit_hit"]), line
    assert sum(matches) / len(lines) == pytest.approx(case.official["lmms_accuracy"], abs=1e-9)
    assert sum(right) / len(lines) == pytest.approx(case.official["vlmevalkit_accuracy"], abs=1e-9)
