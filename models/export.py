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
from safetensors import SafetensorError
from torch import Tensor

from mma.adapters import Adapters
from mma.errors import AdapterError
from mma.export_card import export_card
from mma.folder import CARD, CONFIG, write_folder
from mma.merge import MergeReport
from mma.merging import one_modality
from models.build import System
from models.decoder import Decoder
from models.weights import HF_LAYERS, HF_NAMES, name_in_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
WRAPPED = re.compile(r"\.base(?=\.)")  # a module of the base behind its adapters


def export_merged(system: System, path: Path | str, modality: str | None = None) -> MergeReport:
    """Writes the decoder with what is merged, or the active adapter, in its weights, for `transformers`.

    The folder can also be a base of this project. The model is afterwards as it was. Raises AdapterError when
    the adapter cannot be merged or the folder not be written.
    """
    adapters, decoder = system.model.adapters, system.model.decoder
    with adapters.turns.changing("export an adapter"):
        modality, before = one_modality(adapters, modality), adapters.merged
        if (Path(path) / CONFIG).is_file():
            raise AdapterError(
                f"adapter: {path} holds an adapter, which the decoder would replace; choose another name"
            )
        _, names, weights = before.asked if before is not None else (None, None, None)
        report = adapters.merge_adapter(modality, names, weights)
        try:
            with write_folder(Path(path)) as draft:
                write_hf(decoder, draft, decoder.embed.weight.dtype)
                _copy_tokenizer(system, draft)
                (draft / CARD).write_text(_card(adapters, report))
        except SafetensorError as error:  # its way to say that the disk is full
            raise AdapterError(f"adapter: {path} cannot be written ({error}); free some space") from error
        finally:
            adapters.unmerge_adapter()
            if before is not None:
                adapters.merge_adapter(*before.asked)
    return report


def _card(adapters: Adapters, report: MergeReport) -> str:
    """The README of a merged decoder."""
    alike = not any(adapters.places.routed(report.taken[0]))
    held_for = adapters.config.modalities if alike else report.modalities
    return export_card(
        f"Decoder with {' and '.join(report.taken)} merged",
        adapters.config.peft_type,
        adapters.identity.get("base"),
        {modality: adapters.prompt_notes.get(modality, "") for modality in held_for},
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained(".")  # this folder',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        ],
    )


def _copy_tokenizer(system: System, folder: Path) -> None:
    """The tokenizer, and what else the base's folder tells other software of it."""
    shutil.copy(system.tokenizer.path, folder / "tokenizer.model")
    for name in TOKENIZER_FILES:
        if (Path(system.settings.decoder) / name).is_file():
            shutil.copy(Path(system.settings.decoder) / name, folder / name)


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
