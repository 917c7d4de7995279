"""A decoder split over two processes gives what the whole one gives, forward and backward."""

import json
from dataclasses import asdict

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.errors import ModelError
from models.tensor_parallel import tensor_parallel
from tests.conftest import randomise
from tests.models.meta_files import meta_tensors, split, write_shards
from tests.models.test_meta import PARAMS, SHAPE
from tests.training.test_parallel import finish, start


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_base):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("split")
    oracle = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=4)).eval()
    randomise(oracle, 8)
    tensors, params = meta_tensors(oracle), {**PARAMS, "n_kv_heads": 4, "norm_eps": 1e-6}
    shards = {"words": (2, 0), "channels": (2, 1), "one-file": (1, 0), "four": (4, 1)}
    for name, (count, axis) in shards.items():
        write_shards(folder / name, split(tensors, count, axis), **params, vocab_size=64)
    request = {"meta": [str(folder / name) for name in shards], "base": asdict(tiny_base)}
    for code, text in finish(start(2, folder, module="workers_split", **request), within=150):
        assert code == 0, text
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["words", "channels", "one-file", "four", "phi", "tied"])
def test_a_split_decoder_gives_the_logits_of_the_whole_one(results, name):
    assert max(result[name] for result in results) < 1e-5


def test_an_adapters_gradients_are_those_on_the_whole_decoder_in_every_process(results):
    assert max(result["gradients"] for result in results) < 1e-5
    assert min(result["compared"] for result in results) > 10


def test_every_process_holds_its_share(results):
    for result in results:
        assert 0.5 <= result["share of the blocks"] < 0.52
        # One file per process: the embedding is split as Meta did; else by words.
        assert [name.removesuffix("Embedding") for name in result["embedding"]] == [
            "VocabParallel", "Parallel", "VocabParallel", "VocabParallel",
        ]  # fmt: skip
        assert result["threads"] == []


def test_what_cannot_be_split_is_refused(results):
    for result in results:
        assert result["heads"].startswith("tensor parallel: 2 processes do not divide the decoder's 3 heads;")
        assert "blocks.0.attn.q_proj is a Linear4bit; a quantised decoder" in result["quantised"]
        assert result["groups"] == "tensor parallel: 2 processes do not make groups of 3; start more"


def test_one_process_alone_is_no_group():
    assert not torch.distributed.is_initialized()
    with pytest.raises(ModelError, match="tensor parallel: 1 processes do not make groups of 2; start more"):
        tensor_parallel(2).__enter__()
