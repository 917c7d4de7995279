"""Writes a decoder as a Hugging Face folder of its family, also with an adapter merged into it.

The third of the files where models meet adapters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from mma.adapters import Adapters
from mma.errors import AdapterError
from mma.export_card import export_card
from mma.folder import CARD, CONFIG, write_folder
from mma.merge import MergeReport
from mma.merging import one_modality
from models.build import System
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.hf_config import hf_settings
from models.weight_names import hf_name

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
MLP_LINEARS = {"gate_proj", "up_proj", "down_proj"}
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
                ids = system.tokenizer.bos_id, system.tokenizer.eos_id
                write_hf(decoder, draft, decoder.embed.weight.dtype, ids)
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
    path = Path(system.tokenizer.path)
    shutil.copy(path, folder / f"tokenizer{path.suffix}")
    for name in TOKENIZER_FILES:
        if (Path(system.settings.decoder) / name).is_file():
            shutil.copy(Path(system.settings.decoder) / name, folder / name)


def write_hf(decoder: Decoder, folder: Path, dtype: torch.dtype, ids: tuple[Any, Any] = (1, 2)) -> None:
    """Writes the decoder as a Hugging Face folder of its family (config.json, safetensors in shards of 5 GB).

    `ids` are those of the tokens that begin and end a text. Raises ModelError when no family has a place for
    what the decoder computes, or its weights are quantised.
    """
    if quantised := [name for name, p in decoder.named_parameters() if not p.is_floating_point()]:
        raise ModelError(f"export: {quantised[0]} is quantised; export from the unquantised base")
    tensors = {
        WRAPPED.sub("", name): tensor.to(dtype).contiguous()
        for name, tensor in decoder.state_dict().items()
        if ".adapters." not in name and not (name == "head.weight" and decoder.config.tied)
    }
    config = with_biases(decoder.config, {name for name in tensors if name.endswith("_proj.bias")})
    content = hf_settings(config, str(dtype).removeprefix("torch."), ids)
    with torch.device("meta"):
        wanted = {name: parameter.shape for name, parameter in Decoder(config).named_parameters()}
    for name in (
        wanted.keys() - tensors.keys()
    ):  # a switch holds for all layers: those without a bias get zeros
        tensors[name] = decoder.embed.weight.new_zeros(wanted[name], dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    written = {hf_name(config, name): tensor for name, tensor in tensors.items()}
    save_torch_state_dict(written, folder, metadata={"format": "pt"})


def with_biases(config: DecoderConfig, biases: Collection[str]) -> DecoderConfig:
    """The config of a decoder that has these biases (names of tensors) in its blocks.

    A family without a place for them is written as LLaMA where that computes the same.
    """
    held = {name.split(".")[-2] for name in biases}
    qkv, o, mlp = held & {"q_proj", "k_proj", "v_proj"}, "o_proj" in held, held & MLP_LINEARS
    family = config.family
    if (family == "mistral" and held) or (family == "qwen2" and (o or mlp)):
        family = "llama"
    if family == "stablelm" and (o or mlp):
        raise ModelError(
            f"weights: a StableLM folder has no place for biases of {', '.join(sorted(held - qkv))}; "
            "export the adapter as a PEFT folder instead"
        )
    if family == "llama":
        return replace(
            config, family=family, attention_bias=bool(qkv or o), qkv_bias=False, mlp_bias=bool(mlp)
        )
    return replace(config, qkv_bias=bool(qkv) or family == "qwen2") if family != "phi" else config
