"""Shards merge to the single file, and every broken checkpoint is refused with its reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.meta_folder import merge_shards
from models.tensor_files import read_tensors
from models.weight_names import meta_name
from models.weights import load_decoder
from tests.models.meta_files import split, write_shards

PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 8, "multiple_of": 32, "vocab_size": -1}


def meta_state(config: DecoderConfig) -> dict[str, torch.Tensor]:
    return {meta_name(name): torch.randn_like(x) for name, x in Decoder(config).named_parameters()}


def write(folder, shards, **params) -> None:
    write_shards(folder, shards, **{**PARAMS, **params})


@pytest.fixture
def config() -> DecoderConfig:
    return DecoderConfig(32, 2, 8, 8, 96, 64)


@pytest.mark.parametrize("embed_axis", [0, 1], ids=["vocabulary", "width"])
@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("n_kv_heads", [8, 4])
def test_merged_shards_equal_the_single_file(tmp_path, count, embed_axis, n_kv_heads):
    if n_kv_heads % count:
        count = n_kv_heads
    state = meta_state(DecoderConfig(32, 2, 8, n_kv_heads, 96, 64))
    write(tmp_path / "one", [state], n_kv_heads=n_kv_heads)
    write(tmp_path / "many", split(state, count, embed_axis), n_kv_heads=n_kv_heads, vocab_size=64)
    one = load_decoder(tmp_path / "one", dtype=torch.float32).state_dict()
    many = load_decoder(tmp_path / "many", dtype=torch.float32).state_dict()
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), count=st.integers(2, 4), axis=st.integers(0, 1))
def test_merge_finds_the_axis(rows, columns, count, axis):
    shape = [rows, columns]
    shape[axis] *= count
    whole = torch.arange(float(shape[0] * shape[1])).view(shape)
    parts = list(whole.chunk(count, dim=axis))
    assert torch.equal(merge_shards("x", parts, whole.shape, "folder"), whole)


def test_shards_are_numbered_from_zero(tmp_path, config):
    shards = split(meta_state(config), 2, 1)
    write(tmp_path, shards)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(ModelError, match="not numbered 00 to 01"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_a_missing_shard_is_named(tmp_path, config):
    write(tmp_path, split(meta_state(config), 2, 1)[:1], vocab_size=64)
    with pytest.raises(ModelError, match="which does not make .* a shard is missing or of another model"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_shards_of_different_models_are_refused(tmp_path, config):
    one, two = split(meta_state(config), 2, 1), split(meta_state(config), 2, 1)
    write(tmp_path, [one[0], two[1]])
    with pytest.raises(ModelError, match="differ in .*norm.* of different models"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_shards_with_other_tensors_are_refused(tmp_path, config):
    shards = split(meta_state(config), 2, 1)
    del shards[1]["norm.weight"]
    write(tmp_path, shards)
    with pytest.raises(ModelError, match="holds other tensors than consolidated.00.pth"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_a_truncated_shard_is_refused(tmp_path, config):
    write(tmp_path, [meta_state(config)])
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be read, it may be truncated"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_a_missing_tensor_is_named(tmp_path, config):
    state = meta_state(config)
    del state["layers.1.attention.wo.weight"]
    write(tmp_path, [state])
    with pytest.raises(ModelError, match=r"no tensor layers.1.attention.wo.weight"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_an_unexpected_tensor_is_named(tmp_path, config):
    write(tmp_path, [{**meta_state(config), "layers.0.attention.wq.bias": torch.zeros(32)}])
    with pytest.raises(ModelError, match=r"1 tensors no LLaMA decoder has: .*wq.bias"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_nothing_but_tensors_is_unpickled(tmp_path, config):
    write(tmp_path, [{**meta_state(config), "norm.weight": shutil.rmtree}])
    with pytest.raises(ModelError, match="cannot be read"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_a_folder_without_description_is_refused(tmp_path):
    with pytest.raises(ModelError, match="neither params.json .* nor config.json"):
        load_decoder(tmp_path, dtype=torch.float32)
    with pytest.raises(ModelError, match="there is no folder"):
        load_decoder(tmp_path / "nowhere", dtype=torch.float32)


def test_params_without_shards_and_broken_params(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ModelError, match="no consolidated.NN.pth"):
        load_decoder(tmp_path, dtype=torch.float32)
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_decoder(tmp_path, dtype=torch.float32)
    (tmp_path / "params.json").write_text("[]")
    with pytest.raises(ModelError, match="does not hold a table"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_params_name_what_they_lack(tmp_path, config):
    write(tmp_path, [meta_state(config)])
    (tmp_path / "params.json").write_text('{"dim": 32}')
    with pytest.raises(ModelError, match="has no 'n_heads'"):
        load_decoder(tmp_path, dtype=torch.float32)


HF = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "vocab_size": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "describes a 'gpt2' model, not a LLaMA"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "of the kind 'dynamic', which is not"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "positions of the kind 'longrope', which is not"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "that are not supported"),
        ({"rope_scaling": {"type": "linear"}}, "has no 'factor'; fetch it again"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "has no 'low_freq_factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5, which no LLaMA decoder has"),
        ({"hidden_act": "relu"}, "asks for hidden_act 'relu', which is not supported; silu, swish, gelu"),
        ({"num_local_experts": 8}, "asks for num_local_experts, which is not supported"),
        ({"quantization_config": {"bits": 4}}, "has a quantization_config; unquantised weights"),
        ({"model_type": "phi", "qk_layernorm": True}, "asks for qk_layernorm, which is not supported"),
        ({"model_type": "stablelm", "use_qkv_bias": 1}, "has qkv_bias 1, which is no bool"),
        ({"model_type": "stablelm", "partial_rotary_factor": 0.2}, "1 of 8 channels of a head turn"),
        ({"model_type": "mistral", "sliding_window": -1}, "has sliding_window -1, which is no"),
        ({"attention_bias": 1}, "has attention_bias 1, which is no bool"),
        ({"mlp_bias": "yes"}, "has mlp_bias 'yes', which is no bool"),
        ({"head_dim": 16}, "asks for head_dim 16"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
    ],
)
def test_a_config_that_is_not_supported_is_refused(tmp_path, change, message):
    content = {key: value for key, value in {**HF, **change}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        load_decoder(tmp_path, dtype=torch.float32)


def test_hugging_face_files_are_checked(tmp_path, tiny_base):
    folder = tmp_path / "decoder"
    shutil.copytree(tiny_base.decoder, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be read, it may be truncated"):
        load_decoder(folder, dtype=torch.float32)
    weights.unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors and no pytorch_model.bin, nor an index"):
        load_decoder(folder, dtype=torch.float32)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.norm.weight": "gone"}}')
    with pytest.raises(ModelError, match=r"no file .*gone, but model.safetensors.index.json says so"):
        load_decoder(folder, dtype=torch.float32)
    weights.write_bytes(content)
    index.write_text('{"weight_map": {"model.norm.weight": "model.safetensors"}}')
    with pytest.raises(ModelError, match="has no tensor lm_head.weight; the files are incomplete"):
        load_decoder(folder, dtype=torch.float32)


def test_weights_of_another_width_are_refused(tmp_path, tiny_base):
    folder = tmp_path / "decoder"
    shutil.copytree(tiny_base.decoder, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"is \(48, 32\), but config.json asks for \(64, 32\)"):
        load_decoder(folder, dtype=torch.float32)


def test_a_file_that_is_no_table_of_tensors_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.pth")
    with pytest.raises(ModelError, match="does not hold a plain table of tensors"):
        read_tensors(tmp_path / "x.pth")
    with pytest.raises(ModelError, match="there is no file"):
        read_tensors(tmp_path / "y.pth")
