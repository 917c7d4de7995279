"""The model card says what the folder records, and nothing else whatever that is."""

from __future__ import annotations

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mma import MMAConfig
from mma.card import model_card, portable

DESCRIPTION = {
    "peft_type": "MMA",
    **MMAConfig(r=4).to_dict(),
    "base": {"decoder": "/srv/someone/weights/LLaMA-7B", "tower": "ViT-L-14", "precision": "bf16"},
    "base_digest": "ab" * 32,
    "provenance": {
        "seed": 3,
        "note": "two\nlines | and `code` <b>",
        "format": "QCM-ALE",
        "data_digest": "cd" * 32,
        "data_licence": "CC BY-NC-SA 4.0",
        "recipe": {"optim": {"lr": 1e-05, "epochs": 20}, "data": {"root": "/data/sqa", "train": "train"}},
        "scores": {
            "accuracy": 0.93,
            "accuracy_interval": [0.8954, 0.9538],
            "loss": 0.1234567,
            "questions": 300,
            "split": "val",
        },
    },
}
TENSORS = {"a": torch.zeros(1000, 2), "b": torch.zeros(5)}


def test_it_tells_what_a_reader_asks():
    lines = model_card(DESCRIPTION, TENSORS).splitlines()
    text = "\n".join(lines)
    assert text.startswith("---\nlibrary_name: mma\n")
    assert "2,005 trained parameters in 2 tensors (8,020 bytes)" in text
    for row in (
        "| accuracy | 93.0 % (89.5 to 95.4, 300 questions) |",
        "| loss | 0.1235 |",
        "| decoder | `LLaMA-7B` | `" + "ab" * 32 + "` |",
        "| r | `4` |",
        "| data set | `sqa` |",
        "| licence of the data | `CC BY-NC-SA 4.0` |",
        "| SHA-256 | `" + "cd" * 32 + "` |",
        "| seed | `3` |",
    ):
        assert row in lines
    assert "system = load(find(" in text
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe)["optim"] == {"lr": 1e-05, "epochs": 20}


def test_no_place_of_a_machine_and_no_markup_gets_out():
    text = model_card(DESCRIPTION, TENSORS)
    assert "/srv" not in text
    assert "/data" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| note |")]
    assert row.count("|") == 3
    assert "<b>" not in row


def test_it_does_without_a_base_and_without_provenance():
    text = model_card({"peft_type": "MMA", **MMAConfig().to_dict()}, {})
    assert "0 trained parameters in 0 tensors" in text
    for title in ("Its base", "Recipe", "Training data", "Where it comes from"):
        assert f"## {title}" not in text
    assert "None are recorded." in text


@pytest.mark.parametrize("name", ["owner/name", "org/model-7b"])
def test_a_base_of_the_hub_is_named_to_the_hub(name):
    assert f"base_model: {name}\n" in model_card({**DESCRIPTION, "base": {"decoder": name}}, {})
    assert "base_model:" not in model_card(DESCRIPTION, {})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(description=st.dictionaries(st.text() | st.sampled_from(list(DESCRIPTION)), anything, max_size=6))
def test_any_description_gives_a_card(description):
    assert model_card(description, {}).startswith("---\n")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/a/b/model", "model"),
        ("~/weights/x y", "x y"),
        ("C:\\runs\\one", "one"),
        ("owner/name", "owner/name"),
        ("assets/mini/decoder", "assets/mini/decoder"),
        ({"k": ["/a/b", 3]}, {"k": ["b", 3]}),
        ("saved to /a/b/c today", "saved to c today"),
    ],
)
def test_portable(value, kept):
    assert portable(value) == kept
