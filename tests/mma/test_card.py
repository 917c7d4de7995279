"""The model card says what the folder records, and nothing else whatever that is."""

from __future__ import annotations

import re
from enum import Enum

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
    assert 'system = load("owner/name")' in text
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


TITLES = {
    *("# Mixture-of-modality adapter", "## Scores", "## How to load it", "## Its base", "## Settings"),
    *("## Training data", "## Recipe", "## Where it comes from"),
}


def check_markdown(text: str) -> None:
    """Refuses a card in which a value has become a heading, a cell, HTML or the end of a fence."""
    text.encode()  # it can be written
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front).keys() <= {"library_name", "tags", "base_model"}
    tables, fence, columns = 0, False, 0
    for line in body.splitlines():
        if line.startswith("```"):
            fence = not fence
        elif not fence and line.startswith("#"):
            assert line in TITLES
        elif not fence and line.startswith("|"):
            tables, columns = (tables, columns) if columns else (tables + 1, line.count("|"))
            assert line.count("|") == columns, line
            assert "<" not in re.sub("`[^`]*`", "", line), line
            assert line.count("`") % 2 == 0, line
        columns = columns if line.startswith("|") else 0
        assert not any(ord(c) < 32 for c in line), line
    assert not fence
    assert len(body.splitlines()) == len(body.split("\n")) - 1  # no other kind of line end


HOSTILE = "a|b`c``` <script>\n# Title\n\n```\n| x |\u2028\x85\x00\ud800 \\| \\"


@settings(max_examples=200, deadline=None)
@given(description=st.dictionaries(st.text() | st.sampled_from(list(DESCRIPTION)), anything, max_size=6))
def test_any_description_gives_a_card(description):
    check_markdown(model_card({**description, "peft_type": "MMA"}, {}))


@settings(max_examples=200, deadline=None)
@given(
    scores=st.dictionaries(st.sampled_from(list(DESCRIPTION["provenance"]["scores"])) | st.text(), anything),
    recipe=st.dictionaries(st.sampled_from(["data", "run"]) | st.text(), anything, max_size=3),
    value=anything,
)
def test_any_provenance_gives_a_card(scores, recipe, value):
    provenance = {"scores": scores, "recipe": recipe, **dict.fromkeys(("data_licence", "format", "x"), value)}
    check_markdown(model_card({"peft_type": "MMA", "provenance": provenance}, {}))


def test_hostile_values_stay_values():
    keys = ("r", "base", "base_digest", "provenance", "sites", "modalities", HOSTILE)
    for value in (HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}, {HOSTILE: {HOSTILE: [HOSTILE]}}):
        provenance = {**dict.fromkeys(DESCRIPTION["provenance"], value), HOSTILE: value}
        check_markdown(model_card({"peft_type": "MMA", **dict.fromkeys(keys, value)}, {}))
        check_markdown(model_card({"peft_type": "MMA", "base": value, "provenance": provenance}, {}))


def test_values_no_json_file_can_hold_give_a_card():
    kind = Enum("Kind", "ONE")
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    odd = {
        1: b"x",
        None: {3, 2},
        kind.ONE: kind.ONE,
        "t": torch.zeros(2, 2),
        "n": 10**5000,
        "d": deep,
        "c": 1j,
    }
    odd["self"] = [odd]
    check_markdown(
        model_card({"peft_type": "MMA", "provenance": {"recipe": odd, "x": odd}, "r": odd["n"]}, {})
    )


@settings(max_examples=200, deadline=None)
@given(recipe=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), anything, min_size=1))
def test_the_recipe_can_be_read_again(recipe):
    recipe = portable(recipe)
    text = model_card({"provenance": {"recipe": recipe}}, {}).split("```yaml\n")[1]
    read = yaml.safe_load(text[: text.index("\n```\n")])
    assert repr(read) == repr(recipe)  # NaN is not equal to itself


def test_each_kind_is_called_by_its_name():
    for kind, title in (("MMA", "Mixture-of-modality"), ("BOTTLENECK", "Bottleneck"), ("LORA", "LoRA")):
        text = model_card({**DESCRIPTION, "peft_type": kind}, TENSORS)
        assert f"# {title} adapter\n" in text
        assert ("peft.PeftModel" in text) == (kind == "LORA")
    assert "# Adapter\n\nAn adapter of a kind this version does not know" in model_card({"peft_type": []}, {})


def test_scores_without_an_interval_are_told_without():
    def scored(**scores):
        return model_card({"provenance": {"scores": scores}}, {})

    assert "| accuracy | 93.0 % |" in scored(accuracy=0.93)
    assert "| accuracy | 12 |" in scored(accuracy=12)
    assert "| accuracy | `high` |" in scored(accuracy="high")
    assert "| accuracy | 93.0 % |" in scored(accuracy=0.93, accuracy_interval=[0.1, "x"], questions="300")
    assert "Measured" not in scored(accuracy=0.93)


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
        ("file:///a/b/c", "c"),
        ("~someone/weights/x", "x"),
        ("from '/a/b c' or C:/d/e, (/f/g)", "from 'b c' or e, (g)"),
        ("two\n/a/b\nlines", "two\nb\nlines"),
        ("https://a.org/b/c and http://d.org/e", "https://a.org/b/c and http://d.org/e"),
        (r".*\.(q_proj|v_proj)\.(x\.y)$", r".*\.(q_proj|v_proj)\.(x\.y)$"),
        ("1/2 and/or ~5", "1/2 and/or ~5"),
        ("/", "/"),
        ({"/a/b": None, "c": True}, {"b": None, "c": True}),
    ],
)
def test_portable(value, kept):
    assert portable(value) == kept
