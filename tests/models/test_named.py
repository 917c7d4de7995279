"""Every named decoder has exactly as many parameters as the one that was published."""

from __future__ import annotations

import json

import pytest
import torch

from models.decoder import Decoder
from models.errors import ModelError
from models.hf_config import hf_settings
from models.named import NAMED, named
from models.weights import read_config

TOTALS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "vicuna-7b-v1.3": 6_738_415_616,
    "vicuna-13b-v1.3": 13_015_864_320,
    "vicuna-33b-v1.3": 32_528_943_616,
    "vicuna-7b-v1.5": 6_738_415_616,
    "vicuna-13b-v1.5": 13_015_864_320,
    "vicuna-7b-v1.5-16k": 6_738_415_616,
    "vicuna-13b-v1.5-16k": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen1.5-0.5b": 463_987_712,
    "qwen1.5-1.8b": 1_836_828_672,
    "qwen1.5-4b": 3_950_369_280,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-14b": 14_167_290_880,
    "qwen1.5-32b": 32_512_218_112,
    "qwen1.5-72b": 72_287_920_128,
    "qwen1.5-110b": 111_209_914_368,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "stablelm-2-1.6b": 1_644_515_328,
    "phi-2": 2_779_683_840,
}

# What no total shows, as published (sources: docs/models.md): theta, positions, epsilon, factor of the rope.
PUBLISHED = {
    "llama-3-70b": (5e5, 8192, 1e-5, None),
    "llama-3.1-8b": (5e5, 131072, 1e-5, 8.0),
    "llama-3.1-70b": (5e5, 131072, 1e-5, 8.0),
    "llama-3.2-1b": (5e5, 131072, 1e-5, 32.0),
    "llama-3.2-3b": (5e5, 131072, 1e-5, 32.0),
    "tinyllama-1.1b": (1e4, 2048, 1e-5, None),
    "mistral-7b-v0.1": (1e4, 4096, 1e-5, None),
    "mistral-7b-v0.3": (1e6, 32768, 1e-5, None),
    "qwen1.5-4b": (5e6, 32768, 1e-6, None),
    "qwen2-0.5b": (1e6, 131072, 1e-6, None),
    "qwen2.5-0.5b": (1e6, 32768, 1e-6, None),
    "qwen2.5-1.5b": (1e6, 131072, 1e-6, None),
    "qwen2.5-3b": (1e6, 32768, 1e-6, None),
    "qwen2.5-7b": (1e6, 131072, 1e-6, None),
    "qwen2.5-14b": (1e6, 131072, 1e-5, None),
    "qwen2.5-32b": (1e6, 131072, 1e-5, None),
    "qwen2.5-72b": (1e6, 131072, 1e-5, None),
    "phi-2": (1e4, 2048, 1e-5, None),
}


def test_every_name_has_its_total():
    assert NAMED.keys() == TOTALS.keys()


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(NAMED[name]).parameters()) == TOTALS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_config_json_can_say_it(name, tmp_path):
    content = hf_settings(NAMED[name], "bfloat16", (None, 3))
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path) == NAMED[name]
    assert (content["bos_token_id"], content["eos_token_id"]) == (None, 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_no_total_shows(name):
    shape = NAMED[name]
    factor = shape.rope_scaling and shape.rope_scaling.factor
    assert (shape.rope_theta, shape.max_positions, shape.norm_eps, factor) == PUBLISHED[name]


def test_names_of_tuned_decoders():
    assert named("LLaMA-2-70B-chat") is NAMED["llama-2-70b"]
    assert named("llama-3-8b-instruct") is NAMED["llama-3-8b"]
    assert named("mistral-7b-instruct-v0.2") is NAMED["mistral-7b-v0.2"]


def test_a_name_that_is_near_is_shown():
    with pytest.raises(ModelError, match="no decoder named 'llama-8b'; near it are .*llama-3-8b"):
        named("llama-8b")
    with pytest.raises(ModelError, match="no decoder named '#'"):
        named("#")
