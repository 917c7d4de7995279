"""Meta's files of LLaMA 1, 2 and 3 equal transformers' LLaMA, however they are sharded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models import meta_folder
from models.attention import PackedAttention
from models.errors import ModelError
from models.named import NAMED
from models.rope import RopeScaling
from models.weights import load_decoder, read_config
from tests.conftest import randomise
from tests.models.meta_files import meta_tensors, split, write_shards

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 8, "multiple_of": 32}
SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
STYLES = {  # what the config of transformers and params.json say
    "LLaMA-1": ({"rms_norm_eps": 1e-6}, {"norm_eps": 1e-6, "vocab_size": -1}),
    "LLaMA-2": ({"rms_norm_eps": 1e-5, "num_key_value_heads": 4}, {"norm_eps": 1e-5, "n_kv_heads": 4}),
    "LLaMA-3": (
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"n_kv_heads": 4, "rope_theta": 5e5, "vocab_size": 64, "norm_eps": 1e-6},
    ),
    "LLaMA-3.2": (
        {"rope_parameters": SCALED, "rms_norm_eps": 1e-5},
        {"rope_theta": 5e5, "use_scaled_rope": True, "vocab_size": 64, "norm_eps": 1e-5},
    ),
}


def difference(folder, oracle) -> float:
    """How far our logits are from theirs, also at late positions."""
    decoder = load_decoder(folder, dtype=torch.float32)
    ids = torch.randint(0, 64, (25,), generator=torch.Generator().manual_seed(2))
    positions = 40 * torch.arange(25)
    with torch.no_grad():
        wanted = oracle(ids[None], position_ids=positions[None]).logits[0]
        got = decoder.head(decoder(decoder.embed(ids), positions, PackedAttention([25])))
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture(params=STYLES)
def style(request):
    theirs, params = STYLES[request.param]
    oracle = LlamaForCausalLM(LlamaConfig(**SHAPE, **theirs)).eval()
    randomise(oracle, 8)
    return oracle, {**PARAMS, **params}


@pytest.mark.parametrize("axis", [0, 1], ids=["vocabulary", "width"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_equals_transformers(style, count, axis, tmp_path):
    oracle, params = style
    write_shards(tmp_path, split(meta_tensors(oracle), count, axis), **params)
    assert difference(tmp_path, oracle) < 1e-5


def test_another_order_of_rotary_rows_is_seen(style, tmp_path, monkeypatch):
    oracle, params = style
    write_shards(tmp_path, [meta_tensors(oracle)], **params)
    monkeypatch.setattr(meta_folder, "rearrange", lambda tensor, *_, **__: tensor)
    assert difference(tmp_path, oracle) > 1e-3


PUBLISHED = {  # params.json without n_layers
    "llama-7b": {"dim": 4096, "n_heads": 32, "norm_eps": 1e-6},
    "llama-13b": {"dim": 5120, "n_heads": 40, "norm_eps": 1e-6},
    "llama-33b": {"dim": 6656, "n_heads": 52, "norm_eps": 1e-6},
    "llama-65b": {"dim": 8192, "n_heads": 64, "norm_eps": 1e-5},
    "llama-2-7b": {"dim": 4096, "n_heads": 32, "norm_eps": 1e-5},
    "llama-2-70b": {
        "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3
    },
    "llama-3-8b": {
        "dim": 4096, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
        "rope_theta": 5e5,
    },
    "llama-3-70b": {
        "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3,
        "rope_theta": 5e5,
    },
    "llama-3.1-8b": {
        "dim": 4096, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
        "rope_theta": 5e5, "use_scaled_rope": True,
    },
    "llama-3.2-1b": {
        "dim": 2048, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.5,
        "rope_theta": 5e5, "use_scaled_rope": True,
    },
    "llama-3.2-3b": {
        "dim": 3072, "n_heads": 24, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.0,
        "rope_theta": 5e5, "use_scaled_rope": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_descriptions_are_read_as_the_table_says(name, tmp_path):
    wanted = NAMED[name]
    params = {**PUBLISHED[name], "n_layers": wanted.n_layers, "vocab_size": wanted.vocab_size}
    write_shards(tmp_path, [{"norm.weight": torch.ones(1)}], **params)
    found = read_config(tmp_path)
    # Meta stores the output layer of tied ones too; its LLaMA-2 files do not say how long texts may be.
    assert replace(found, tied=wanted.tied, max_positions=wanted.max_positions) == wanted
    assert found.max_positions == (2048 if "llama-2" in name else wanted.max_positions)


def test_the_factor_of_a_description_counts(tmp_path):
    params = {**PARAMS, "vocab_size": 64, "use_scaled_rope": True, "rope_scaling_factor": 16.0}
    write_shards(tmp_path, [{"norm.weight": torch.ones(1)}], **params)
    assert read_config(tmp_path).rope_scaling == RopeScaling("llama3", 16.0, 8192)
    write_shards(tmp_path, [{"norm.weight": torch.ones(1)}], **{**params, "rope_scaling_factor": "x"})
    with pytest.raises(ModelError, match="has rope_scaling_factor 'x', which is no number above 0"):
        read_config(tmp_path)
