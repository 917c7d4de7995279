"""Decoder weights from disk: Meta folders (`params.json`, shards) and Hugging Face folders (safetensors).

Tensors are read one by one, straight to their place, type and device; shards are memory-mapped and never
held together. Loading is strict both ways. Nothing is unpickled but tensors and plain containers.

Inside, rotary pairs are (j, j + E/2) as in Hugging Face files; Meta pairs (2j, 2j + 1), so q and k rows of
Meta files are permuted (docs/differences.md).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.decoder import Decoder, DecoderConfig, Rotary
from models.errors import ModelError

META_NAMES = {
    "embed.weight": "tok_embeddings.weight",
    "norm.weight": "norm.weight",
    "head.weight": "output.weight",
    "attn_norm.weight": "attention_norm.weight",
    "attn.q_proj.weight": "attention.wq.weight",
    "attn.k_proj.weight": "attention.wk.weight",
    "attn.v_proj.weight": "attention.wv.weight",
    "attn.o_proj.weight": "attention.wo.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
}
HF_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.o_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate_proj.weight": "mlp.gate_proj.weight",
    "mlp.down_proj.weight": "mlp.down_proj.weight",
    "mlp.up_proj.weight": "mlp.up_proj.weight",
}
HF_LAYERS = "model.layers."
IGNORED = re.compile(r"rope\.freqs$|rotary_emb\.inv_freq$")

Read = Callable[[str, torch.Size], Tensor]
"""(name in the file, expected shape) -> the whole tensor."""


@dataclass(frozen=True)
class _Source:
    """An opened checkpoint: what it describes, which tensors it has, and how to read one."""

    folder: Path
    config: DecoderConfig
    names: Mapping[str, str]
    layer_prefix: str
    held: frozenset[str]
    read: Read
    pairs_interleaved: bool


def load_decoder(folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Decoder:
    """The decoder in a Meta or Hugging Face folder.

    Raises ModelError when a file is missing, unreadable or does not fit the folder's own description.
    """
    source = _open(folder)
    with torch.device("meta"):
        decoder = Decoder(source.config)
    state = {}
    used = set()
    for name, parameter in decoder.named_parameters():
        there = name_in_file(name, source.names, source.layer_prefix)
        used.add(there)
        if there not in source.held:
            raise ModelError(f"weights: {folder} has no tensor {there}; the files are incomplete")
        tensor = source.read(there, parameter.shape)
        if not tensor.is_floating_point():
            raise ModelError(
                f"weights: {there} in {folder} is {tensor.dtype}; unquantised weights are needed"
            )
        if source.pairs_interleaved and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = rearrange(tensor, "(h e two) d -> (h two e) d", two=2, e=source.config.head_dim // 2)
        state[name] = tensor.to(device=device, dtype=dtype)
    if source.config.tied:
        state["head.weight"] = state["embed.weight"]
        used.add(source.names["head.weight"])
    if unknown := sorted(name for name in source.held - used if not IGNORED.search(name)):
        raise ModelError(f"weights: {folder} has {len(unknown)} tensors no LLaMA decoder has: {unknown[:3]}")
    decoder.load_state_dict(state, assign=True)
    if source.config.tied:
        decoder.head.weight = decoder.embed.weight
    decoder.rotary = Rotary(source.config.head_dim, source.config.rope_theta).to(device)
    return decoder.eval()


def read_config(folder: Path) -> DecoderConfig:
    """The shape of the decoder in a folder, without reading any weight."""
    return _open(folder).config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors or PyTorch file, the latter through the restricted loader."""
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = _unpickle(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ModelError(f"weights: {path} does not hold a plain table of tensors")
    return content


def _open(folder: Path) -> _Source:
    if (folder / "params.json").is_file():
        return _open_meta(folder)
    if (folder / "config.json").is_file():
        return _open_hf(folder)
    if not folder.is_dir():
        raise ModelError(f"weights: there is no folder {folder}; set base.decoder to the decoder's folder")
    raise ModelError(f"weights: {folder} has neither params.json (Meta) nor config.json (Hugging Face)")


def name_in_file(name: str, names: Mapping[str, str], layer_prefix: str) -> str:
    """What a tensor of the decoder is called in a file; a bias is called like its weight."""
    layer = re.match(r"blocks\.(\d+)\.(.*)", name)
    inner, prefix = (name, "") if layer is None else (layer[2], f"{layer_prefix}{layer[1]}.")
    stem, _, leaf = inner.rpartition(".")
    return f"{prefix}{names[f'{stem}.weight'].removesuffix('weight')}{leaf}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"weights: {path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"weights: {path} does not hold a table of settings")
    return content


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"weights: there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"weights: {path} cannot be read: it holds more than tensors; save its tensors alone"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = re.split(r"\n|\. ", str(error), maxsplit=1)[0]
        raise ModelError(
            f"weights: {path} cannot be read, it may be truncated ({reason}); fetch it again"
        ) from error


def _open_safetensors(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"weights: there is no file {path}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"weights: {path} cannot be read, it may be truncated ({error}); fetch it again"
        ) from error


# Meta


def _open_meta(folder: Path) -> _Source:
    params = _read_json(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"), key=_shard_number)
    if not paths:
        raise ModelError(f"weights: {folder} has params.json but no consolidated.NN.pth")
    if [_shard_number(path) for path in paths] != list(range(len(paths))):
        raise ModelError(f"weights: shards in {folder} are not numbered 00 to {len(paths) - 1:02d}")
    shards = [read_tensors(path) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())
            raise ModelError(f"weights: {path} holds other tensors than {paths[0].name}: {odd[:3]}")

    def read(name: str, shape: torch.Size) -> Tensor:
        return merge_shards(name, [shard[name] for shard in shards], shape, folder)

    config = _meta_config(folder, params, shards)
    return _Source(folder, config, META_NAMES, "layers.", frozenset(shards[0]), read, True)


def _shard_number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else -1


def _meta_config(folder: Path, params: dict[str, Any], shards: list[dict[str, Tensor]]) -> DecoderConfig:
    path = folder / "params.json"
    heads, dim = (_positive(path, params, name) for name in ("n_heads", "dim"))
    vocab = params.get("vocab_size", -1)
    if vocab == -1:  # LLaMA 1 and 2 leave it to the tokenizer; the output layer is always split by rows
        if "output.weight" not in shards[0]:
            raise ModelError(f"weights: {folder} has no tensor output.weight; the files are incomplete")
        vocab = sum(shard["output.weight"].shape[0] for shard in shards)
    hidden = int(8 * dim / 3)
    if params.get("ffn_dim_multiplier"):
        hidden = int(_positive(path, params, "ffn_dim_multiplier") * hidden)
    multiple = _positive(path, {"multiple_of": 256, **params}, "multiple_of")
    return _checked_config(
        path,
        dim=dim,
        n_layers=_positive(path, params, "n_layers"),
        n_heads=heads,
        n_kv_heads=params.get("n_kv_heads") or heads,
        ffn_dim=multiple * -(-hidden // multiple),
        vocab_size=vocab,
        norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=params.get("rope_theta", 10_000.0),
    )


def _positive(path: Path, values: Mapping[str, Any], name: str) -> Any:
    """A number above 0 of a description."""
    if name not in values:
        raise ModelError(f"weights: {path} has no {name!r}; fetch it again")
    value = values[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelError(f"weights: {path} has {name} {value!r}, which is no number above 0; fetch it again")
    return value


def _checked_config(path: Path, **values: Any) -> DecoderConfig:
    """The shape of a decoder from the values of a description, which may hold anything."""
    for field in fields(DecoderConfig):
        value = values.get(field.name, field.default)
        if field.type == "bool":
            fits = isinstance(value, bool)
        else:
            fits = _positive(path, {field.name: value}, field.name) and (
                field.type == "float" or isinstance(value, int)
            )
        if not fits:
            raise ModelError(f"weights: {path} has {field.name} {value!r}, which is no {field.type}")
    try:
        return DecoderConfig(**values)
    except ValueError as error:
        raise ModelError(f"weights: {path} describes no decoder ({error}); fetch it again") from error


def merge_shards(name: str, parts: list[Tensor], shape: torch.Size, folder: Path) -> Tensor:
    """One tensor from its model-parallel parts; the axis follows from the shapes and must be the only one.

    Every part that is not split must be equal in all shards, or they belong to different models.
    """
    found = {tuple(part.shape) for part in parts}
    if found == {tuple(shape)}:
        if any(not torch.equal(part, parts[0]) for part in parts[1:]):
            raise ModelError(f"weights: shards in {folder} differ in {name}; they are of different models")
        return parts[0]
    axes = [
        axis
        for axis in range(len(shape))
        if sum(part.shape[axis] if part.ndim == len(shape) else 0 for part in parts) == shape[axis]
        and all(_without(part.shape, axis) == _without(shape, axis) for part in parts)
    ]
    if len(axes) != 1:
        raise ModelError(
            f"weights: {name} in {folder} is {' + '.join(str(tuple(part.shape)) for part in parts)}, "
            f"which does not make {tuple(shape)}; a shard is missing or of another model"
        )
    whole = parts[0].new_empty(shape)
    start = 0
    for part in parts:
        whole.narrow(axes[0], start, part.shape[axes[0]]).copy_(part)
        start += part.shape[axes[0]]
    return whole


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return tuple(size for index, size in enumerate(shape) if index != axis)


# Hugging Face


def _open_hf(folder: Path) -> _Source:
    config = _hf_config(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = _read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ModelError(f"weights: {index} has no table weight_map of tensor to file; fetch it again")
    elif (folder / "model.safetensors").is_file():
        with _open_safetensors(folder / "model.safetensors") as file:
            files = dict.fromkeys(file.keys(), "model.safetensors")
    else:
        raise ModelError(f"weights: {folder} has config.json but no model.safetensors and no index of shards")

    def read(name: str, shape: torch.Size) -> Tensor:
        path = folder / files[name]
        with _open_safetensors(path) as file:
            try:
                tensor: Tensor = file.get_tensor(name)
            except SafetensorError as error:
                raise ModelError(f"weights: {path} has no tensor {name}, but the index says so") from error
        if tensor.shape != shape:
            raise ModelError(
                f"weights: {name} in {path} is {tuple(tensor.shape)}, but config.json asks for {tuple(shape)}"
            )
        return tensor

    return _Source(folder, config, HF_NAMES, HF_LAYERS, frozenset(files), read, False)


def _hf_config(folder: Path) -> DecoderConfig:
    content = _read_json(folder / "config.json")
    path = folder / "config.json"
    if content.get("model_type") != "llama":
        raise ModelError(f"weights: {path} describes a {content.get('model_type')!r} model, not a LLaMA")
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ModelError(f"weights: {path} asks for scaled rotary positions, which are not supported")
    try:
        heads, dim = content["num_attention_heads"], content["hidden_size"]
        config = _checked_config(
            path,
            dim=dim,
            n_layers=content["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=content.get("num_key_value_heads") or heads,
            ffn_dim=content["intermediate_size"],
            vocab_size=content["vocab_size"],
            norm_eps=content.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", content.get("rope_theta", 10_000.0)),
            max_positions=content.get("max_position_embeddings", 2048),
            tied=content.get("tie_word_embeddings", False),
            attention_bias=content.get("attention_bias", False),
            mlp_bias=content.get("mlp_bias", False),
        )
    except KeyError as error:
        raise ModelError(f"weights: {path} has no {error}; fetch it again") from error
    if content.get("head_dim", config.head_dim) != config.head_dim:
        raise ModelError(f"weights: {path} asks for head_dim {content['head_dim']}, which is not supported")
    return config
