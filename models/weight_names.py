"""What the tensors of a decoder are called in files."""

from __future__ import annotations

import re
from collections.abc import Mapping

from models.decoder_config import DecoderConfig

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
PHI_NAMES = HF_NAMES | {
    "norm.weight": "model.final_layernorm.weight",
    "attn.o_proj.weight": "self_attn.dense.weight",
    "mlp.up_proj.weight": "mlp.fc1.weight",
    "mlp.down_proj.weight": "mlp.fc2.weight",
}
META_LAYERS = "layers."
HF_LAYERS = "model.layers."


def name_in_file(name: str, names: Mapping[str, str], layer_prefix: str) -> str:
    """What a tensor of the decoder is called in a file; a bias is called like its weight."""
    layer = re.match(r"blocks\.(\d+)\.(.*)", name)
    inner, prefix = (name, "") if layer is None else (layer[2], f"{layer_prefix}{layer[1]}.")
    stem, _, leaf = inner.rpartition(".")
    return f"{prefix}{names[f'{stem}.weight'].removesuffix('weight')}{leaf}"


def meta_name(name: str) -> str:
    """What Meta's files call a tensor of the decoder."""
    return name_in_file(name, META_NAMES, META_LAYERS)


def hf_name(config: DecoderConfig, name: str) -> str:
    """What Hugging Face models of the decoder's family call a tensor, such as `blocks.0.attn.q_proj.bias`."""
    return name_in_file(name, PHI_NAMES if config.family == "phi" else HF_NAMES, HF_LAYERS)
