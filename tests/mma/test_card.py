"""The model card says what the folder records."""

from __future__ import annotations

import torch

from mma import MMAConfig
from mma.card import model_card


def test_it_counts_and_lists():
    description = {
        **MMAConfig(r=4).to_dict(),
        "base": {"decoder": "some/folder", "tower": "ViT-L-14"},
        "provenance": {"seed": 3, "note": "two\nlines"},
    }
    card = model_card(description, {"a": torch.zeros(1000, 2), "b": torch.zeros(5)})
    assert card.startswith("---\nlibrary_name: mma\n")
    assert "2,005 trained parameters in 2 tensors" in card
    lines = card.splitlines()
    for row in ("| r | 4 |", "| modalities | text, image |", "| decoder | some/folder |", "| seed | 3 |"):
        assert row in lines
    assert "| note | two lines |" in lines
    assert card.endswith("|\n")


def test_it_does_without_a_base_and_without_provenance():
    card = model_card(MMAConfig().to_dict(), {})
    assert "0 trained parameters in 0 tensors" in card
    assert "##" not in card
