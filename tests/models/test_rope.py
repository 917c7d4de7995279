"""Rotary positions, plain, partial and scaled, equal transformers' at short and long positions."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig

from models.attention import PackedAttention
from models.export import write_hf
from models.lean import rotate
from models.rope import Rotary
from models.weights import load_decoder, read_config
from tests.conftest import randomise

SHAPE = {
    "vocab_size": 50, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    "llama3, factor 32": {"rope_type": "llama3", "factor": 32.0, **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn, its own context": {"rope_type": "yarn", "factor": 2.0},
    "yarn, all set": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0,
        "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False,
    },
    "yarn, two scales": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 512, "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
}  # fmt: skip


def assert_equal(folder, oracle) -> None:
    """Also at positions far beyond the context of pre-training."""
    decoder = load_decoder(folder, dtype=torch.float32)
    ids = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(2))
    for start, step in ((0, 1), (3000, 1), (0, 139)):
        positions = start + step * torch.arange(30)
        with torch.no_grad():
            wanted = oracle(ids[None], position_ids=positions[None]).logits[0]
            got = decoder.head(decoder(decoder.embed(ids), positions, PackedAttention([30])))
        assert (got - wanted).abs().max() < 2e-5 * max(1.0, wanted.abs().max().item())


def make(folder, rope, kind=LlamaConfig):
    oracle = AutoModelForCausalLM.from_config(kind(**SHAPE, rope_parameters=dict(rope))).eval()
    randomise(oracle, 4)
    for name, parameter in oracle.named_parameters():  # attention that tells positions apart
        if "q_proj.weight" in name or "k_proj.weight" in name:
            parameter.data.mul_(6)
    oracle.save_pretrained(folder)
    return oracle


@pytest.mark.parametrize("rope", SCALED.values(), ids=list(SCALED))
def test_scaled_positions_equal_transformers(rope, tmp_path):
    oracle = make(tmp_path / "a", {"rope_theta": 10_000.0, **rope})
    assert_equal(tmp_path / "a", oracle)
    decoder = load_decoder(tmp_path / "a", dtype=torch.float32)
    write_hf(decoder, tmp_path / "b", torch.float32)
    assert read_config(tmp_path / "b") == decoder.config
    assert_equal(tmp_path / "a", AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval())
    plain = Rotary(16, 10_000.0)(torch.arange(4000))[0]
    assert (decoder.rotary(torch.arange(4000))[0] - plain).abs().max() > 0.5  # the setting makes a difference


@pytest.mark.parametrize("rope", [SCALED["linear"], SCALED["llama3"], SCALED["yarn"]])
def test_the_old_spelling_of_scaling(rope, tmp_path):
    make(tmp_path, {"rope_theta": 700.0, **rope})
    config = read_config(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    old = content.pop("rope_parameters")
    content["rope_theta"] = old.pop("rope_theta")
    content["rope_scaling"] = {"type": old.pop("rope_type"), **old}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path) == config
    assert config.rope_theta == 700.0


@pytest.mark.parametrize("rope", [SCALED["linear"], SCALED["yarn"]])
def test_partial_and_scaled(rope, tmp_path):
    oracle = make(tmp_path, {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **rope}, PhiConfig)
    assert read_config(tmp_path).rotary_dim == 8
    assert_equal(tmp_path, oracle)


def test_channels_that_do_not_turn_stay():
    x = torch.randn(5, 2, 16)
    turned = rotate(x, *Rotary(6, 100.0)(torch.arange(5)))
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(turned[0], x[0])
    for n in range(5):
        for j in range(3):
            angle = n * 100.0 ** (-2 * j / 6)
            pair = torch.complex(x[n, :, j], x[n, :, j + 3]) * torch.polar(
                torch.ones(1), torch.tensor([angle])
            )
            assert torch.allclose(turned[n, :, j], pair.real, atol=1e-5)
            assert torch.allclose(turned[n, :, j + 3], pair.imag, atol=1e-5)


def test_sixteen_bits_turn_in_fp32():
    x = torch.randn(3, 1, 8).bfloat16()
    cos, sin = Rotary(8, 10_000.0)(torch.tensor([0, 1, 4000]))
    assert cos.dtype == torch.float32
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())
