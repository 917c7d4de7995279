"""Decoders in Meta's layout made from those of transformers: names, rotary pairs (2j, 2j + 1), shards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from einops import rearrange
from fairscale.nn.model_parallel.utils import split_tensor_along_last_dim
from torch import Tensor
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "layers",
}  # fmt: skip
ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
COLUMNS = ("wo", "w2")


def meta_tensors(oracle: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a LLaMA of transformers as Meta's files hold them."""
    config, tensors = oracle.config, {}
    half = config.hidden_size // config.num_attention_heads // 2
    for name, tensor in oracle.state_dict().items():
        there = name
        for ours, theirs in NAMES.items():
            there = there.replace(ours, theirs)
        tensors[there] = tensor.clone()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[there] = rearrange(tensor, "(h two e) d -> (h e two) d", two=2, e=half)
    return {**tensors, "rope.freqs": torch.ones(half)}


def split(state: dict[str, Tensor], count: int, embed_axis: int) -> list[dict[str, Tensor]]:
    """What `count` model-parallel processes would each save (fairscale splits the same way)."""
    shards: list[dict[str, Tensor]] = [{} for _ in range(count)]
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


def write_shards(folder: Path, shards: list[dict[str, Tensor]], **params: object) -> None:
    """A folder of these shards and this params.json."""
    folder.mkdir(exist_ok=True, parents=True)
    for old in folder.glob("consolidated.*"):
        old.unlink()
    for index, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{index:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
