"""LLaMA's own tokenizer on recorded texts (folders with a cases.json and a SentencePiece model)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from models.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(os.environ.get("MMA_GOLDEN", "../shared/golden"))
CASES = [
    (path.parent, model)
    for path in sorted(ROOT.glob("**/cases.json"))
    for model in path.parent.glob("*.model")
]
pytestmark = pytest.mark.skipif(not CASES, reason=f"no tokenizer cases under {ROOT} (set MMA_GOLDEN)")


@pytest.fixture(params=CASES, ids=lambda case: case[1].stem)
def case(request) -> tuple[Tokenizer, dict]:
    folder, model = request.param
    return load_tokenizer(model), json.loads((folder / "cases.json").read_text())


def test_recorded_texts(case):
    tokenizer, recorded = case
    assert recorded["encode"]
    for row in recorded["encode"]:
        assert tokenizer.encode(row["text"]) == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"]) == row["text"]


def test_recorded_texts_in_two_pieces(case):
    """Wherever a text is cut, its second piece goes on as if it had not been."""
    tokenizer, recorded = case
    for row in recorded["encode"]:
        text = row["text"]
        for cut in range(1, len(text)):
            ids = tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:], continues=True)
            assert tokenizer.decode(ids) == text
