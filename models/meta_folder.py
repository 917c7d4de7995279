"""Decoders in Meta's layout: `params.json` and model-parallel shards `consolidated.NN.pth`.

Meta's rotary pairs are (2j, 2j + 1), the decoder's (j, j + E/2), so rows of q and k are permuted
(docs/differences.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from models.checkpoint import Checkpoint, checked_config, positive
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.rope import RopeScaling
from models.tensor_files import Reopened, map_tensors, read_json
from models.weight_names import meta_name


def open_meta(folder: Path) -> Checkpoint:
    """The shards of a folder, mapped into memory; a tensor is put together when it is asked for."""
    params = read_json(folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"), key=_shard_number)
    if not paths:
        raise ModelError(f"weights: {folder} has params.json but no consolidated.NN.pth")
    if [_shard_number(path) for path in paths] != list(range(len(paths))):
        raise ModelError(f"weights: shards in {folder} are not numbered 00 to {len(paths) - 1:02d}")
    shards = [map_tensors(path) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())
            raise ModelError(f"weights: {path} holds other tensors than {paths[0].name}: {odd[:3]}")
    config = _config(folder, params, shards)

    held, opened = frozenset(shards[0]), Reopened(map_tensors)
    del shards, shard

    def read(name: str, shape: torch.Size) -> Tensor:
        parts = [opened(path)[name] for path in paths]
        for part in parts:
            opened.count(part)
        return merge_shards(name, parts, shape, folder)

    def arrange(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        return rearrange(tensor, "(h e two) d -> (h two e) d", two=2, e=config.head_dim // 2)

    return Checkpoint(folder, config, held, meta_name, read, arrange)


def _shard_number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else -1


def _config(folder: Path, params: dict[str, Any], shards: list[dict[str, Tensor]]) -> DecoderConfig:
    path = folder / "params.json"
    heads, dim = (positive(path, params, name) for name in ("n_heads", "dim"))
    vocab = params.get("vocab_size", -1)
    if vocab == -1:  # LLaMA 1 and 2 leave it to the tokenizer; the output layer is always split by rows
        if "output.weight" not in shards[0]:
            raise ModelError(f"weights: {folder} has no tensor output.weight; the files are incomplete")
        vocab = sum(shard["output.weight"].shape[0] for shard in shards)
    hidden = int(8 * dim / 3)
    if params.get("ffn_dim_multiplier"):
        hidden = int(positive(path, params, "ffn_dim_multiplier") * hidden)
    multiple = positive(path, {"multiple_of": 256, **params}, "multiple_of")
    return checked_config(
        path,
        dim=dim,
        n_layers=positive(path, params, "n_layers"),
        n_heads=heads,
        n_kv_heads=params.get("n_kv_heads") or heads,
        ffn_dim=multiple * -(-hidden // multiple),
        vocab_size=vocab,
        norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=params.get("rope_theta", 10_000.0),
        **_context(path, params, dim),
    )


def _context(path: Path, params: dict[str, Any], dim: int) -> dict[str, Any]:
    """How long a context may be, which params.json only hints at: LLaMA 1 and 2 look alike."""
    if params.get("use_scaled_rope"):
        # LLaMA 3.1 has factor 8; the two of 3.2, known by their width, have 32, which no file of theirs says.
        factor = positive(
            path, {"rope_scaling_factor": 32.0 if dim < 4096 else 8.0, **params}, "rope_scaling_factor"
        )
        return {"max_positions": 131072, "rope_scaling": RopeScaling("llama3", factor, 8192)}
    return {"max_positions": 8192 if "rope_theta" in params else 2048}


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
