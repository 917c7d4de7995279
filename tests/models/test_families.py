"""Every family equals transformers, from its own files, in one pass and token by token, and back again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor

from models.attention import PackedAttention
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.export import write_hf
from models.kv_cache import KVCache
from models.weight_names import hf_name
from models.weights import load_decoder, read_config
from tests.conftest import randomise

LENGTHS = (7, 1, 12)
SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2}
THETA = {"rope_type": "default", "rope_theta": 500.0}
FAMILIES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**SHAPE, rms_norm_eps=1e-6, rope_parameters=THETA),
    "tinyllama": lambda: hf.LlamaConfig(**SHAPE | {"num_key_value_heads": 1}, rms_norm_eps=1e-5),
    "llama, biases, tied": lambda: hf.LlamaConfig(
        **GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama, gelu": lambda: hf.LlamaConfig(**SHAPE, hidden_act="gelu"),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=None),
    "mistral, window": lambda: hf.MistralConfig(**GROUPED, sliding_window=20),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED, rope_parameters=THETA),
    "qwen2, tied": lambda: hf.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen2, window": lambda: hf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=24, max_window_layers=1
    ),
    "stablelm": lambda: hf.StableLmConfig(**SHAPE, use_qkv_bias=True),
    "stablelm, no bias": lambda: hf.StableLmConfig(**GROUPED),
    "stablelm, parallel": lambda: hf.StableLmConfig(**SHAPE, use_qkv_bias=True, use_parallel_residual=True),
    "phi": lambda: hf.PhiConfig(**SHAPE, rope_parameters={**THETA, "partial_rotary_factor": 0.5}),
    "phi, dropout": lambda: hf.PhiConfig(**GROUPED, resid_pdrop=0.1, embd_pdrop=0.1, attention_dropout=0.1),
}


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request) -> hf.PreTrainedModel:
    model = hf.AutoModelForCausalLM.from_config(FAMILIES[request.param]()).eval()
    randomise(model, 5)
    return model


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("family")
    oracle.save_pretrained(path)
    return path


def ids() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, SHAPE["vocab_size"], (length,), generator=generator) for length in LENGTHS]


def logits(decoder: Decoder, rows: list[Tensor]) -> list[Tensor]:
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        hidden = decoder(decoder.embed(torch.cat(rows)), positions, PackedAttention(lengths))
        return list(decoder.head(hidden).split(lengths))


def assert_equal(decoder: Decoder, oracle: hf.PreTrainedModel) -> None:
    for row, got in zip(ids(), logits(decoder, ids()), strict=True):
        with torch.no_grad():
            wanted = oracle(row[None]).logits[0]
        assert wanted.std() > 0.05
        assert (got - wanted).abs().max() < 1e-5 * max(1.0, wanted.abs().max().item())


def test_equals_transformers(oracle, folder):
    assert_equal(load_decoder(folder, dtype=torch.float32), oracle)


def test_the_head_is_tied_where_theirs_is(oracle, folder):
    decoder = load_decoder(folder, dtype=torch.float32)
    assert (decoder.head.weight is decoder.embed.weight) == oracle.config.tie_word_embeddings
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in oracle.parameters())


@pytest.mark.parametrize("shards", [1, 2])
def test_equals_transformers_from_pytorch_files(oracle, folder, shards, tmp_path):
    """With the inverse frequencies that old files hold, and a tied output layer stored again."""
    state = oracle.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    if shards == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        names = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
        for file in set(names.values()):
            torch.save({name: x for name, x in state.items() if names[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert_equal(load_decoder(tmp_path, dtype=torch.float32), oracle)


def test_equals_transformers_with_the_old_spelling(oracle, folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    rope = content.pop("rope_parameters")
    content |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    content |= {"rope_scaling": None, "torch_dtype": content.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert read_config(tmp_path) == read_config(folder)
    assert_equal(load_decoder(tmp_path, dtype=torch.float32), oracle)


def test_cached_decoding_equals_transformers(oracle, folder):
    decoder, rows = load_decoder(folder, dtype=torch.float32), ids()
    with torch.no_grad():
        wanted = [oracle(row[None]).logits[0, -1] for row in rows]
        cache = KVCache(decoder.config.n_layers, len(rows), 16)
        first = [row[:1] for row in rows]
        packed = cache.prefill(PackedAttention([1] * len(rows)), range(len(rows)))
        hidden = decoder(decoder.embed(torch.cat(first)), torch.zeros(len(rows), dtype=torch.long), packed)
        got = list(hidden)
        for place in range(1, max(LENGTHS)):  # a row that has ended is fed on and not looked at
            new = torch.stack([row[min(place, len(row) - 1)] for row in rows])
            hidden = decoder(
                decoder.embed(new),
                torch.full((len(rows),), place),
                cache.attention(cache.used, cache.advance()),
            )
            got = [hidden[i] if place < length else got[i] for i, length in enumerate(LENGTHS)]
        for ours, theirs in zip(got, wanted, strict=True):
            close = 1e-5 * max(1.0, theirs.abs().max().item())
            assert (decoder.head(ours) - theirs).abs().max() < close


def test_what_is_written_is_read_by_transformers(oracle, folder, tmp_path):
    decoder = load_decoder(folder, dtype=torch.float32)
    write_hf(decoder, tmp_path, torch.float32)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(oracle)
    assert again.state_dict().keys() == oracle.state_dict().keys()
    assert read_config(tmp_path) == decoder.config
    assert_equal(decoder, again)


def test_names_are_those_of_the_files(oracle, folder):
    config = read_config(folder)
    with torch.device("meta"):
        names = {hf_name(config, name) for name, _ in Decoder(config).named_parameters()}
    assert names == {name for name, _ in oracle.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "stablelm", "phi"])
def test_settings_that_a_config_leaves_out_are_theirs(family, tmp_path):
    content = json.dumps({"model_type": family, **SHAPE})
    (tmp_path / "config.json").write_text(content)
    oracle = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.from_pretrained(tmp_path)).eval()
    randomise(oracle, 7)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert_equal(load_decoder(tmp_path, dtype=torch.float32), oracle)


def test_positions_end_with_the_window(tmp_path):
    for config, wanted in (
        (hf.MistralConfig(**GROUPED, sliding_window=20), 20),
        (hf.MistralConfig(**GROUPED, sliding_window=None), 64),
        (hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=24), 24),
        (hf.Qwen2Config(**GROUPED, use_sliding_window=False, sliding_window=24), 64),
        (hf.MistralConfig(**GROUPED, sliding_window=4096), 64),
    ):
        config.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": config.model_type}))
        assert read_config(tmp_path).max_positions == wanted


BIASED = {"attn.q_proj", "attn.k_proj", "attn.v_proj"}


@pytest.mark.parametrize(
    ("family", "added", "written"),
    [
        ("llama", {"attn.q_proj"}, "llama"),
        ("mistral", BIASED, "llama"),
        ("qwen2", {"attn.o_proj", "mlp.up_proj"}, "llama"),
        ("stablelm, no bias", BIASED, "stablelm"),
        ("phi", set(), "phi"),
    ],
)
def test_biases_that_came_by_merging_are_written(family, added, written, tmp_path):
    oracle = hf.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    randomise(oracle, 6)
    oracle.save_pretrained(tmp_path / "a")
    decoder = load_decoder(tmp_path / "a", dtype=torch.float32)
    for name in added:
        linear = decoder.blocks[1].get_submodule(name)
        linear.bias = torch.nn.Parameter(torch.randn(linear.out_features))
    write_hf(decoder, tmp_path / "b", torch.float32)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert again.config.model_type == written
    assert_equal(decoder, again)
    assert_equal(load_decoder(tmp_path / "b", dtype=torch.float32), again)


def test_biases_without_a_place_are_refused(tmp_path):
    config = DecoderConfig(32, 1, 4, 4, 48, 20, norm="layer", rotary_dim=2, family="stablelm")
    decoder = Decoder(config)
    decoder.blocks[0].mlp.up_proj.bias = torch.nn.Parameter(torch.ones(48))
    with pytest.raises(ModelError, match="StableLM folder has no place for biases of up_proj; export"):
        write_hf(decoder, tmp_path / "x", torch.float32)
    with pytest.raises(ModelError, match="no LLaMA folder can describe this decoder"):
        write_hf(Decoder(replace(config, family="llama")), tmp_path / "x", torch.float32)
    assert not (tmp_path / "x").exists()


def test_a_parallel_block_has_one_norm():
    config = DecoderConfig(32, 1, 4, 4, 48, 20, norm="layer", parallel=True)
    names = {name for name, _ in Decoder(config).blocks[0].named_children()}
    assert names == {"attn_norm", "attn", "mlp"}
