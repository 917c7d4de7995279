"""Hugging Face's `config.json` of the families there are, read and written.

What would be computed otherwise than here is refused by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from models.checkpoint import checked_config, positive
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.rope import RopeScaling
from models.tensor_files import read_json

FAMILIES = {
    "llama": "LLaMA",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "stablelm": "StableLM",
    "phi": "Phi",
}
CLASSES = {
    family: f"{'StableLm' if family == 'stablelm' else family.capitalize()}ForCausalLM" for family in FAMILIES
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
WRITTEN_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
TURNING = {"stablelm": 0.25, "phi": 0.5}  # which part of a head turns where config.json does not say
OTHERWISE = ("qk_layernorm", "num_experts", "num_local_experts")
# LLaVA describes its decoder in a table of its own, or (as it was first written) beside everything else.
LLAVA = {
    "llava": "",
    "llava_next": "",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
# What such a table leaves out.
LLAVA_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "vocab_size": 32000},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131_072,
    },
    "qwen2": {"intermediate_size": 22016, "vocab_size": 151_936, "max_position_embeddings": 32768},
}
LLAVA_SHAPE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}


def read_hf_config(folder: Path) -> DecoderConfig:
    """The shape of the decoder that a folder's config.json describes."""
    path = folder / "config.json"
    return parse_hf_config(path, language_part(path, read_json(path)))


def is_llava(folder: Path) -> bool:
    """Whether a folder holds a whole LLaVA, not its decoder alone."""
    return read_json(folder / "config.json").get("model_type") in LLAVA


def language_part(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What the content of a config.json says of its decoder: of LLaVA's it is a part, else all of it."""
    kind = content.get("model_type")
    if kind not in LLAVA:
        return content
    if "text_config" not in content and "hidden_size" in content:
        return {**content, "model_type": LLAVA[kind] or "llama"}
    told = content.get("text_config", {})
    if not isinstance(told, dict):
        raise ModelError(f"weights: {path} has text_config {told!r}, not a table of settings; fetch it again")
    family = told.get("model_type", "llama")
    both = ("tie_word_embeddings", "quantization_config")  # may be said outside the table too
    whole = {name: content.get(name) or told.get(name) or False for name in both}
    return {**LLAVA_SHAPE, **LLAVA_SHAPES.get(family, {}), **told, "model_type": family, **whole}


def parse_hf_config(path: Path, content: dict[str, Any]) -> DecoderConfig:
    """The same from the content of the file.

    Raises ModelError for a family or a setting that the decoder does not compute.
    """
    family = content.get("model_type")
    if family not in FAMILIES:
        *others, last = FAMILIES.values()
        raise ModelError(
            f"weights: {path} describes a {family!r} model, not a {', '.join(others)} or {last} decoder"
        )
    for name in OTHERWISE:
        if content.get(name):
            raise ModelError(f"weights: {path} asks for {name}, which is not supported; take another decoder")
    if content.get("quantization_config"):
        raise ModelError(f"weights: {path} has a quantization_config; unquantised weights are needed")
    try:
        heads, dim = content["num_attention_heads"], content["hidden_size"]
        shape = {
            "dim": dim,
            "n_layers": content["num_hidden_layers"],
            "n_heads": heads,
            "n_kv_heads": content.get("num_key_value_heads") or heads,
            "ffn_dim": content["intermediate_size"],
            "vocab_size": content["vocab_size"],
        }
    except KeyError as error:
        raise ModelError(f"weights: {path} has no {error}; fetch it again") from error
    for name in ("dim", "n_heads"):
        positive(path, shape, name)
    if content.get("head_dim") not in (None, dim // heads):
        raise ModelError(f"weights: {path} asks for head_dim {content['head_dim']}, which is not supported")
    return checked_config(
        path,
        **shape,
        max_positions=_positions(path, content),
        tied=content.get("tie_word_embeddings", False),
        activation=_activation(path, content),
        family=family,
        **_rope(path, content, family, dim // heads),
        **_switches(content, family),
    )


def _switches(content: dict[str, Any], family: str) -> dict[str, Any]:
    """What the families do differently."""
    if family in ("stablelm", "phi"):
        switches = {"norm": "layer", "norm_eps": content.get("layer_norm_eps", 1e-5)}
    else:
        switches = {"norm_eps": content.get("rms_norm_eps", 1e-6)}
    if family == "llama":
        switches["attention_bias"] = content.get("attention_bias", False)
        switches["mlp_bias"] = content.get("mlp_bias", False)
    if family == "qwen2":
        switches["qkv_bias"] = True
    if family == "stablelm":
        switches["qkv_bias"] = content.get("use_qkv_bias", False)
        switches["parallel"] = content.get("use_parallel_residual", False)
    if family == "phi":
        switches |= dict.fromkeys(("attention_bias", "mlp_bias", "head_bias", "parallel"), True)
        switches["gated"] = False
    return switches


def _activation(path: Path, content: dict[str, Any]) -> str:
    name = content.get("hidden_act", "gelu_new" if content["model_type"] == "phi" else "silu")
    if name not in ACTIVATIONS:
        raise ModelError(
            f"weights: {path} asks for hidden_act {name!r}, which is not supported; "
            f"{', '.join(ACTIVATIONS)} are"
        )
    return ACTIVATIONS[name]


def _positions(path: Path, content: dict[str, Any]) -> Any:
    """How many positions there are; a sliding window ends them (see DecoderConfig)."""
    positions = content.get("max_position_embeddings", 2048)
    family = content["model_type"]
    slides = family == "mistral" or (family == "qwen2" and content.get("use_sliding_window"))
    window = content.get("sliding_window", 4096) if slides else None
    if window is None:
        return positions
    return min(
        positive(path, {"max_positions": positions}, "max_positions"),
        positive(path, {"sliding_window": window}, "sliding_window"),
    )


def _rope(path: Path, content: dict[str, Any], family: str, head_dim: int) -> dict[str, Any]:
    """Rotary settings; new files keep them in `rope_parameters`, old ones in three places."""
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ModelError(f"weights: {path} asks for scaled rotary positions that are not supported: {rope!r}")
    part = rope.get("partial_rotary_factor", content.get("partial_rotary_factor", TURNING.get(family, 1.0)))
    part = positive(path, {"partial_rotary_factor": part}, "partial_rotary_factor")
    if family not in TURNING and part != 1:
        raise ModelError(
            f"weights: {path} asks for partial_rotary_factor {part}, which no {FAMILIES[family]} decoder has"
        )
    return {
        "rope_theta": rope.get("rope_theta", content.get("rope_theta", 10_000.0)),
        "rotary_dim": 0 if part == 1 else int(head_dim * part),
        "rope_scaling": _scaling(path, content, rope),
    }


def _scaling(path: Path, content: dict[str, Any], rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ModelError(
            f"weights: {path} asks for scaled rotary positions of the kind {kind!r}, which is not supported: "
            "linear, llama3 and yarn are"
        )

    def number(name: str, default: Any = None) -> Any:
        value = rope.get(name)
        held = {} if value is None and default is None else {name: default if value is None else value}
        return positive(path, held, name)

    if kind == "linear":
        return RopeScaling("linear", number("factor"))
    longest = content.get("max_position_embeddings", 2048)
    original = content.get("original_max_position_embeddings") or number(
        "original_max_position_embeddings", longest
    )
    if kind == "llama3":
        return RopeScaling(
            "llama3", number("factor"), original, number("low_freq_factor"), number("high_freq_factor")
        )
    factor = number("factor", longest / original)
    lengthened = number(
        "attention_factor", _yarn_attention(factor, rope.get("mscale"), rope.get("mscale_all_dim"))
    )
    truncate = bool(rope.get("truncate", True))
    return RopeScaling(
        "yarn", factor, original, number("beta_slow", 1.0), number("beta_fast", 32.0), lengthened, truncate
    )


def _yarn_attention(factor: float, over: float | None, under: float | None) -> float:
    """How much longer queries and keys become (arXiv 2309.00071, equation 22, and DeepSeek's variant)."""

    def length(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return length(over) / length(under) if over and under else length(1.0)


def hf_settings(config: DecoderConfig, dtype: str, ids: tuple[Any, Any]) -> dict[str, Any]:
    """The content of config.json for a decoder; `ids` are those of the tokens that begin and end a text.

    Raises ModelError when its family has no setting for what it computes.
    """
    content = {
        "architectures": [CLASSES[config.family]],
        "model_type": config.family,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps" if config.norm == "rms" else "layer_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "hidden_act": WRITTEN_ACTIVATIONS[config.activation],
        "bos_token_id": ids[0],
        "eos_token_id": ids[1],
        "torch_dtype": dtype,
        **_family_settings(config),
    }
    if config.rope_scaling is not None:
        content["rope_scaling"] = _scaling_settings(config.rope_scaling)
    # Reading it back is the check: a switch that the family cannot express gets lost on the way.
    if parse_hf_config(Path("config.json"), content) != config:
        raise ModelError(f"weights: no {FAMILIES[config.family]} folder can describe this decoder: {config}")
    return content


def _family_settings(config: DecoderConfig) -> dict[str, Any]:
    if config.family == "llama":
        return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    if config.family == "mistral":
        return {"sliding_window": None}
    if config.family == "qwen2":
        return {"use_sliding_window": False}
    part = {"partial_rotary_factor": config.turning / config.head_dim}
    if config.family == "phi":
        return part
    return part | {"use_qkv_bias": config.qkv_bias, "use_parallel_residual": config.parallel}


def _scaling_settings(scaling: RopeScaling) -> dict[str, Any]:
    kind = {"rope_type": scaling.kind, "type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return kind
    kind["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        return kind | {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    return kind | {
        "beta_slow": scaling.low,
        "beta_fast": scaling.high,
        "attention_factor": scaling.attention_factor,
        "truncate": scaling.truncate,
    }
