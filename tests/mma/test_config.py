"""Settings are checked when they are made, and survive their own JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mma import MMAConfig
from mma.config import PLACEMENTS, TOWER_RULES
from mma.errors import AdapterError

configs = st.builds(
    lambda groups, width, **rest: MMAConfig(r=groups * width, groups=groups, **rest),
    groups=st.integers(1, 4),
    width=st.integers(1, 4),
    routes=st.integers(1, 4),
    dropout=st.floats(0, 0.99),
    temperature=st.floats(0.01, 100),
    scale=st.floats(-10, 10),
    placement=st.sampled_from(PLACEMENTS),
    tower=st.sampled_from(TOWER_RULES),
    modalities=st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True).map(tuple),
    projector_hidden=st.integers(1, 9),
)


@given(config=configs)
def test_settings_survive_json(config):
    assert MMAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_defaults_are_those_of_the_paper():
    config = MMAConfig()
    assert (config.r, config.routes, config.groups, config.scale) == (8, 2, 2, 1.0)
    assert (config.dropout, config.temperature, config.projector_hidden) == (0.1, 10.0, 128)
    assert (config.placement, config.tower, config.modalities) == ("attn", "token", ("text", "image"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"placement": "ffn"}, "placement is 'ffn'; choose attn, mlp, both"),
        ({"tower": "router"}, "tower is 'router'; choose token, modality, none"),
        ({"r": 0}, "r is 0; it must be at least 1"),
        ({"routes": -1}, "routes is -1; it must be at least 1"),
        ({"groups": 0}, "groups is 0; it must be at least 1"),
        ({"projector_hidden": 0}, "projector_hidden is 0; it must be at least 1"),
        ({"r": 8, "groups": 3}, "r 8 is not a multiple of groups 3"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"modalities": ()}, r"modalities are \(\); name each once"),
        ({"modalities": ("text", "text")}, "name each once"),
        ({"r": 8.0}, "r is 8.0; it must be a whole number"),
        ({"r": "8"}, "r is '8'; it must be a whole number"),
        ({"r": True}, "r is True; it must be a whole number"),
        ({"scale": None}, "scale is None; it must be a number"),
        ({"scale": math.inf}, "scale is inf; it must be a number"),
        ({"temperature": math.nan}, "temperature is nan; it must be a number"),
        ({"dropout": False}, "dropout is False; it must be a number"),
        ({"placement": ["attn"]}, "placement is .*; it must be a word"),
        ({"modalities": "text"}, "modalities is 'text'; it must be several words"),
        ({"modalities": (1, 2)}, "it must be several words"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(AdapterError, match=message):
        MMAConfig(**wrong)


def test_a_table_must_have_every_setting_and_no_other():
    table = MMAConfig().to_dict()
    with pytest.raises(AdapterError, match="unknown setting 'temprature', did you mean 'temperature'"):
        MMAConfig.from_dict({**table, "temprature": 1.0})
    with pytest.raises(AdapterError, match=r"unknown setting 'xyz'$"):
        MMAConfig.from_dict({**table, "xyz": 1.0})
    del table["r"], table["scale"]
    with pytest.raises(AdapterError, match="the settings lack r, scale"):
        MMAConfig.from_dict(table)


@pytest.mark.parametrize("modalities", ["text", 3, None, [["text"]]])
def test_a_table_with_odd_modalities_is_refused(modalities):
    with pytest.raises(AdapterError, match=r"modalities is .* it must be several words"):
        MMAConfig.from_dict({**MMAConfig().to_dict(), "modalities": modalities})
