"""Writes a decoder as a Hugging Face LLaMA folder, also with an adapter merged into it.

The third of the files where models meet adapters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from mma.export_card import export_card
from mma.folder import write_folder
from models.build import System
from models.decoder import Decoder
from models.weights import HF_LAYERS, HF_NAMES, name_in_file

WRAPPED = re.compile(r"\.base(?=\.)")  # a module of the base behind its adapters


def export_merged(system: System, path: Path | str, modality: str) -> None:
    """Writes the decoder with the active adapter merged for one modality, for plain `transformers`.

    The folder can also be a base of this project. Raises AdapterError when the adapter cannot be merged or
    the folder not be written; the model is unmerged afterwards.
    """
    adapters, decoder = system.model.adapters, system.model.decoder
    with adapters.turns.changing("export an adapter"):
        report = adapters.merge_adapter(modality)
        try:
            dtype = decoder.embed.weight.dtype
            with write_folder(Path(path)) as draft:
                write_hf(decoder, draft, dtype)
                shutil.copy(system.tokenizer.path, draft / "tokenizer.model")
                card = export_card(
                    f"Decoder with {', '.join(report.taken)} merged for the modality `{modality}`",
                    adapters.identity.get("base"),
                    adapters.prompt_notes.get(modality, ""),
                    "from transformers import AutoModelForCausalLM\n\n"
                    "model = AutoModelForCausalLM.from_pretrained(folder)",
                )
                (draft / "README.md").write_text(card)
        finally:
            adapters.unmerge_adapter()


def write_hf(decoder: Decoder, folder: Path, dtype: torch.dtype) -> None:
    """Writes the decoder as a Hugging Face LLaMA folder (config.json, safetensors in shards of 5 GB)."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in _hf_tensors(decoder)}
    biases = {
        kind for kind in ("self_attn", "mlp") if any(f".{kind}." in n for n in tensors if n.endswith(".bias"))
    }
    # There is one switch for all layers of a kind: those without a bias get zeros.
    for name in [n for n in tensors if n.endswith("_proj.weight") and n.split(".")[-3] in biases]:
        tensors.setdefault(f"{name.removesuffix('weight')}bias", tensors[name].new_zeros(len(tensors[name])))
    folder.mkdir(parents=True, exist_ok=True)
    content = _hf_config(decoder, dtype, attention_bias="self_attn" in biases, mlp_bias="mlp" in biases)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})


def _hf_config(decoder: Decoder, dtype: torch.dtype, **biases: bool) -> dict[str, Any]:
    config = decoder.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **biases,
    }


def _hf_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in decoder.state_dict().items():
        if ".adapters." not in name and not (name == "head.weight" and decoder.config.tied):
            yield name_in_file(WRAPPED.sub("", name), HF_NAMES, HF_LAYERS), tensor
