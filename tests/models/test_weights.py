"""Shards merge to the single file, and every broken checkpoint is refused with its reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fairscale.nn.model_parallel.utils import split_tensor_along_last_dim
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder import Decoder, DecoderConfig
from models.errors import ModelError
from models.weights import META_NAMES, load_decoder, merge_shards, read_tensors

ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
COLUMNS = ("wo", "w2")


def meta_state(config: DecoderConfig) -> dict[str, torch.Tensor]:
    decoder = Decoder(config)
    state = {}
    for name, parameter in decoder.named_parameters():
        if name.startswith("blocks."):
            _, layer, leaf = name.split(".", 2)
            state[f"layers.{layer}.{META_NAMES[leaf]}"] = torch.randn_like(parameter)
        else:
            state[META_NAMES[name]] = torch.randn_like(parameter)
    return state


def split(state: dict[str, torch.Tensor], count: int, embed_axis: int) -> list[dict[str, torch.Tensor]]:
    """What `count` model-parallel processes would each save (fairscale splits the same way)."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, tensor in state.items():
        module = name.split(".")[-2]
        if module in ROWS or (module == "tok_embeddings" and embed_axis == 0):
            parts = [part.T for part in split_tensor_along_last_dim(tensor.T, count)]
        elif module in COLUMNS or module == "tok_embeddings":
            parts = list(split_tensor_along_last_dim(tensor, count))
        else:
            parts = [tensor] * count
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.contiguous().clone()
    return shards


def write(folder, state_or_shards, **params) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for old in folder.glob("consolidated.*"):
        old.unlink()
    for index, shard in enumerate(state_or_shards):
        torch.save(shard, folder / f"consolidated.{index:02d}.pth")
    content = {"dim": 32, "n_layers": 2, "n_heads": 8, "multiple_of": 32, "vocab_size": -1, **params}
    (folder / "params.json").write_text(json.dumps(content))


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
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "asks for scaled rotary positions"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "asks for scaled rotary positions"),
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
    with pytest.raises(ModelError, match=r"no model.safetensors and no index"):
        load_decoder(folder, dtype=torch.float32)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "gone"}}')
    with pytest.raises(ModelError, match="has no tensor model.embed_tokens.weight"):
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
