"""A delta on a base gives the full weights, and weights are read and placed one after the other."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config

from models import meta_folder
from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.errors import ModelError
from models.weights import load_decoder
from tests.conftest import randomise
from tests.models.meta_files import meta_tensors, split, write_shards

SHAPE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "rms_norm_eps": 1e-5,
}  # fmt: skip
PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 4, "multiple_of": 32, "norm_eps": 1e-5}


@pytest.fixture
def models(tmp_path):
    """A base, full weights, and the folder of their difference, which has one token more (as v0 has)."""
    models = [LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": n})) for n in (40, 40, 41)]
    for seed, model in enumerate(models):
        randomise(model, seed)
    base, full, delta = models
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            rows = base.get_parameter(name).shape[0]
            parameter[:rows] = full.get_parameter(name) - base.get_parameter(name)
    base.save_pretrained(tmp_path / "base")
    full.save_pretrained(tmp_path / "full")
    delta.save_pretrained(tmp_path / "delta")
    write_shards(tmp_path / "meta", split(meta_tensors(base), 2, 1), **PARAMS)
    return tmp_path


def distance(folder, base: str) -> float:
    """The largest difference between base plus delta and the full weights."""
    found = load_decoder(folder / base, dtype=torch.float32, delta=folder / "delta").state_dict()
    wanted = load_decoder(folder / "full", dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    return max((found[name] - wanted[name]).abs().max().item() for name in wanted)


@pytest.mark.parametrize("base", ["base", "meta"])
def test_base_and_delta_are_the_full_weights(models, base):
    assert distance(models, base) < 1e-6


def test_the_order_of_rotary_rows_matters(models, monkeypatch):
    monkeypatch.setattr(meta_folder, "rearrange", lambda tensor, *_, **__: tensor)
    assert distance(models, "meta") > 0.05


def test_a_delta_of_another_model_is_refused(models):
    def load(name, **changed):
        LlamaForCausalLM(LlamaConfig(**SHAPE | changed)).save_pretrained(models / name)
        load_decoder(models / "base", dtype=torch.float32, delta=models / name)

    with pytest.raises(ModelError, match="of another model than .*base: its n_layers is 3, not 2"):
        load("deeper", num_hidden_layers=3)
    with pytest.raises(ModelError, match="has 39 tokens, fewer than the 40 of .*base"):
        load("smaller", vocab_size=39)
    with pytest.raises(ModelError, match="delta .*meta is no Hugging Face folder, it has no config.json"):
        load_decoder(models / "base", dtype=torch.float32, delta=models / "meta")


class Held(nn.Module):
    """Stands where a quantised layer would and keeps none of the weight it was given."""

    def __init__(self, linear: nn.Linear, weight: torch.Tensor) -> None:
        super().__init__()
        self.shape, self.total = tuple(weight.shape), weight.double().sum().item()
        self.bias = linear.bias


@pytest.fixture(params=["meta", "base", "delta"])
def asked(request, models):
    """What load_decoder is asked for, for each kind of source."""
    delta = {"delta": models / "delta"} if request.param == "delta" else {}
    return {"folder": models / ("base" if delta else request.param), "dtype": torch.bfloat16, **delta}


def test_linear_layers_of_blocks_are_quantised_one_by_one(asked):
    given = []

    def quantise(linear, weight):
        assert linear.weight.is_meta and linear.weight.shape == weight.shape
        assert weight.dtype == torch.bfloat16
        assert not any(earlier() is not None for earlier in given), "an earlier weight is still held"
        given.append(weakref.ref(weight))
        return Held(linear, weight)

    decoder = load_decoder(**asked, quantise=quantise)
    plain = load_decoder(**asked)
    assert len(given) == 14
    for name, module in plain.named_modules():
        there = decoder.get_submodule(name)
        if isinstance(module, nn.Linear) and name != "head":
            assert isinstance(there, Held)
            assert (there.shape, there.total) == (module.weight.shape, module.weight.double().sum().item())
        elif not list(module.children()):
            assert type(there) is type(module)
            for key, parameter in module.named_parameters(recurse=False):
                assert torch.equal(getattr(there, key), parameter)


def test_nothing_but_what_is_placed_is_held(asked, monkeypatch):
    """When a tensor is read, every one that was read before has been cast and let go."""
    read, tensor_of = [], Checkpoint.tensor

    def counting(self, name, shape):
        # A Meta shard's norms are mapped from its file and take no memory.
        held = [earlier for earlier, tensor in read if tensor() is not None and "norm" not in earlier]
        assert len(held) <= ("delta" in asked), f"{held} are still held when {name} is read"
        tensor = tensor_of(self, name, shape)
        read.append((name, weakref.ref(tensor)))
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", counting)
    decoder = load_decoder(**asked)
    with torch.device("meta"):
        names = [name for name, _ in Decoder(decoder.config).named_parameters()]
    assert list(dict.fromkeys(name for name, _ in read)) == names


def test_biases_of_quantised_layers_are_filled(tmp_path):
    oracle = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE, num_key_value_heads=2))
    randomise(oracle, 3)
    oracle.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, dtype=torch.float32, quantise=Held)
    attention = decoder.blocks[1].attn
    assert torch.equal(attention.k_proj.bias, oracle.model.layers[1].self_attn.k_proj.bias)
    assert attention.o_proj.bias is None
    assert not any(p.is_meta for p in decoder.parameters())


def test_a_missing_tensor_is_seen_before_any_is_read(models, monkeypatch):
    index = models / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": "model.safetensors"}}))
    monkeypatch.setattr(Checkpoint, "tensor", None)
    with pytest.raises(ModelError, match="no tensor lm_head.weight; the files are incomplete"):
        load_decoder(models / "base", dtype=torch.float32)
