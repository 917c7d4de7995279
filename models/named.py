"""The decoders that have a name: their shapes, for plans and parameter counts without any file.

A folder's own config always counts more than this table.
"""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.rope import RopeScaling

TUNED = re.compile(r"-(chat|instruct)(?=-|$)")  # tuning leaves the shape as it is

LLAMA_3 = DecoderConfig(4096, 32, 32, 8, 14336, 128256, rope_theta=5e5, max_positions=8192)
LLAMA_3_70B = replace(LLAMA_3, dim=8192, n_layers=80, n_heads=64, ffn_dim=28672)
LONGER: dict[str, Any] = {"max_positions": 131072, "rope_scaling": RopeScaling("llama3", 8.0, 8192)}
LONGER_SMALL: dict[str, Any] = {
    "max_positions": 131072,
    "rope_scaling": RopeScaling("llama3", 32.0, 8192),
    "tied": True,
}
MISTRAL = DecoderConfig(
    4096, 32, 32, 8, 14336, 32000, rope_theta=1e6, max_positions=32768, family="mistral"
)  # fmt: skip


def _llama(dim: int, n_layers: int, n_heads: int, ffn_dim: int, eps: float = 1e-6) -> DecoderConfig:
    return DecoderConfig(dim, n_layers, n_heads, n_heads, ffn_dim, 32000, norm_eps=eps)


def _qwen(  # noqa: PLR0913, PLR0917, a row of the table
    dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int, vocab_size: int = 152064,
    eps: float = 1e-6, theta: float = 1e6, max_positions: int = 32768, tied: bool = False,
) -> DecoderConfig:  # fmt: skip
    return DecoderConfig(
        dim, n_layers, n_heads, n_kv_heads, ffn_dim, vocab_size, norm_eps=eps, rope_theta=theta,
        max_positions=max_positions, tied=tied, qkv_bias=True, family="qwen2",
    )  # fmt: skip


LLAMA = {
    "7b": _llama(4096, 32, 32, 11008),
    "13b": _llama(5120, 40, 40, 13824),
    "33b": _llama(6656, 60, 52, 17920),
    "65b": _llama(8192, 80, 64, 22016, 1e-5),
}
LLAMA_2 = {
    size: replace(LLAMA[size], norm_eps=1e-5, max_positions=4096) for size in ("7b", "13b")
}  # fmt: skip
LONG_VICUNA: dict[str, Any] = {"max_positions": 16384, "rope_scaling": RopeScaling("linear", 4.0)}
SMALL, LONG = 151936, 131072  # rows of the smaller Qwen vocabulary, positions of the longer Qwen context

NAMED: dict[str, DecoderConfig] = {
    **{f"llama-{size}": shape for size, shape in LLAMA.items()},
    **{f"vicuna-{size}-v1.3": LLAMA[size] for size in ("7b", "13b", "33b")},
    **{f"vicuna-{size}-v1.5": shape for size, shape in LLAMA_2.items()},
    **{f"vicuna-{size}-v1.5-16k": replace(shape, **LONG_VICUNA) for size, shape in LLAMA_2.items()},
    **{f"llama-2-{size}": shape for size, shape in LLAMA_2.items()},
    "llama-2-70b": DecoderConfig(8192, 80, 64, 8, 28672, 32000, max_positions=4096),
    "llama-3-8b": LLAMA_3,
    "llama-3-70b": LLAMA_3_70B,
    "llama-3.1-8b": replace(LLAMA_3, **LONGER),
    "llama-3.1-70b": replace(LLAMA_3_70B, **LONGER),
    "llama-3.2-1b": replace(LLAMA_3, dim=2048, n_layers=16, ffn_dim=8192, **LONGER_SMALL),
    "llama-3.2-3b": replace(LLAMA_3, dim=3072, n_layers=28, n_heads=24, ffn_dim=8192, **LONGER_SMALL),
    "tinyllama-1.1b": DecoderConfig(2048, 22, 32, 4, 5632, 32000),
    "mistral-7b-v0.1": replace(MISTRAL, rope_theta=1e4, max_positions=4096),  # the length of its window
    "mistral-7b-v0.2": MISTRAL,
    "mistral-7b-v0.3": replace(MISTRAL, vocab_size=32768),
    "qwen1.5-0.5b": _qwen(1024, 24, 16, 16, 2816, SMALL, tied=True),
    "qwen1.5-1.8b": _qwen(2048, 24, 16, 16, 5504, SMALL),
    "qwen1.5-4b": _qwen(2560, 40, 20, 20, 6912, SMALL, theta=5e6),
    "qwen1.5-7b": _qwen(4096, 32, 32, 32, 11008, SMALL),
    "qwen1.5-14b": _qwen(5120, 40, 40, 40, 13696),
    "qwen1.5-32b": _qwen(5120, 64, 40, 8, 27392),
    "qwen1.5-72b": _qwen(8192, 80, 64, 64, 24576),
    "qwen1.5-110b": _qwen(8192, 80, 64, 8, 49152),
    "qwen2-0.5b": _qwen(896, 24, 14, 2, 4864, SMALL, max_positions=LONG, tied=True),
    "qwen2-1.5b": _qwen(1536, 28, 12, 2, 8960, SMALL, max_positions=LONG, tied=True),
    "qwen2-7b": _qwen(3584, 28, 28, 4, 18944, max_positions=LONG),
    "qwen2-72b": _qwen(8192, 80, 64, 8, 29568, eps=1e-5, max_positions=LONG),
    "qwen2.5-0.5b": _qwen(896, 24, 14, 2, 4864, SMALL, tied=True),
    "qwen2.5-1.5b": _qwen(1536, 28, 12, 2, 8960, SMALL, max_positions=LONG, tied=True),
    "qwen2.5-3b": _qwen(2048, 36, 16, 2, 11008, SMALL, tied=True),
    "qwen2.5-7b": _qwen(3584, 28, 28, 4, 18944, max_positions=LONG),
    "qwen2.5-14b": _qwen(5120, 48, 40, 8, 13824, eps=1e-5, max_positions=LONG),
    "qwen2.5-32b": _qwen(5120, 64, 40, 8, 27648, eps=1e-5, max_positions=LONG),
    "qwen2.5-72b": _qwen(8192, 80, 64, 8, 29568, eps=1e-5, max_positions=LONG),
    "stablelm-2-1.6b": DecoderConfig(
        2048, 24, 32, 32, 5632, 100352, max_positions=4096, norm="layer", rotary_dim=16, qkv_bias=True,
        family="stablelm",
    ),
    "phi-2": DecoderConfig(
        2560, 32, 32, 32, 10240, 51200, norm="layer", rotary_dim=32, attention_bias=True, mlp_bias=True,
        head_bias=True, gated=False, activation="gelu_tanh", parallel=True, family="phi",
    ),
}  # fmt: skip


def named(name: str) -> DecoderConfig:
    """The shape of a decoder with a name; `-chat` and `-instruct` in it make no difference.

    Raises ModelError for a name that is not in the table, with those that are like it.
    """
    asked = TUNED.sub("", name.lower())
    if asked not in NAMED:
        near = get_close_matches(asked, NAMED, n=4, cutoff=0.5) or ["llama-7b"]
        raise ModelError(f"decoder: there is no decoder named {name!r}; near it are {', '.join(near)}")
    return NAMED[asked]
