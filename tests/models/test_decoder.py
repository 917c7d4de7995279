"""The decoder equals transformers' LLaMA, from Meta and from Hugging Face files."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.attention import PackedAttention
from models.decoder_config import DecoderConfig
from models.export import write_hf
from models.weights import load_decoder, read_config
from tests.models.meta_files import meta_tensors, write_shards

LENGTHS = (7, 1, 12)


@pytest.fixture(params=[4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
def oracle(request) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=request.param, rms_norm_eps=1e-5, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits_of(folder, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    decoder = load_decoder(folder, dtype=torch.float32)
    positions = torch.cat([torch.arange(len(row)) for row in ids])
    with torch.no_grad():
        hidden = decoder(decoder.embed(torch.cat(ids)), positions, PackedAttention([len(row) for row in ids]))
        return list(decoder.head(hidden).split([len(row) for row in ids]))


def assert_equal(folder, oracle: LlamaForCausalLM) -> None:
    ids = [torch.randint(0, 90, (length,)) for length in LENGTHS]
    for row, got in zip(ids, logits_of(folder, ids), strict=True):
        with torch.no_grad():
            wanted = oracle(row[None]).logits[0]
        assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-5


def write_meta(oracle: LlamaForCausalLM, folder) -> None:
    """The oracle's weights as Meta stores them, in one file."""
    config = oracle.config
    params = {
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "vocab_size": -1,
        "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "multiple_of": 32, "norm_eps": 1e-5, "rope_theta": 500.0,
    }  # fmt: skip
    write_shards(folder, [meta_tensors(oracle)], **params)


def test_equals_transformers_from_hugging_face_files(oracle, tmp_path):
    oracle.save_pretrained(tmp_path)
    assert_equal(tmp_path, oracle)


def test_equals_transformers_from_sharded_files(oracle, tmp_path):
    oracle.save_pretrained(tmp_path, max_shard_size="20kB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_equal(tmp_path, oracle)


def test_equals_transformers_from_meta_files(oracle, tmp_path):
    write_meta(oracle, tmp_path / "meta")
    assert_equal(tmp_path / "meta", oracle)


def test_equals_transformers_with_the_old_config_style(oracle, tmp_path):
    oracle.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content.pop("rope_parameters", None)
    content |= {"rope_theta": 500.0, "rope_scaling": None, "torch_dtype": "float32"}
    path.write_text(json.dumps(content))
    assert_equal(tmp_path, oracle)


def test_what_is_written_is_read_by_transformers(oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "a")
    decoder = load_decoder(tmp_path / "a", dtype=torch.float32)
    write_hf(decoder, tmp_path / "b", torch.float32)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "b").eval()
    ids = torch.randint(0, 90, (1, 9))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, oracle(ids).logits)


def test_tied_weights_share_one_tensor(tmp_path):
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, dtype=torch.float32)
    assert decoder.head.weight is decoder.embed.weight


def test_config_needs_heads_that_divide():
    with pytest.raises(ValueError, match="dim 30 is not a multiple of n_heads 4"):
        DecoderConfig(30, 1, 4, 4, 8, 10)
    with pytest.raises(ValueError, match="n_heads 4 is not a multiple of n_kv_heads 3"):
        DecoderConfig(32, 1, 4, 3, 8, 10)


def test_ffn_width_follows_metas_rule(tmp_path, oracle):
    write_meta(oracle, tmp_path / "meta")
    assert read_config(tmp_path / "meta").ffn_dim == 96
