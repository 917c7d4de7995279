"""Towers of Hugging Face: CLIP, SigLIP and the vision part of LLaVA, as towers of open_clip.

Shapes: C tower width, K positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.hf_folder import TensorFolder
from models.tensor_files import read_json
from models.tower_spec import TowerSpec

HF_CONFIG = "config.json"
# What a description leaves out, by family.
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
PREPROCESS: dict[str, dict[str, Any]] = {
    "clip": {"resize_mode": "shortest"},
    "siglip": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"},
}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
TANH, EXACT, QUICK = "gelu_pytorch_tanh", "gelu", "quick_gelu"

# Where the tower is in a file: in LLaVA's, in a model with a text part (and in older ones), or by itself.
PLACES = (
    re.compile(r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.+)"),
    re.compile(r"vision_model\.(.+)"),
    re.compile(r"((?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\..+)"),
)
# The head of pooled features, which no one reads, and what is computed anew.
LEFT_OUT = re.compile(r"head\.|visual_projection\.|embeddings\.position_ids$")
OWN_NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # spelt so in the files
    "post_layernorm": "ln_post",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TIMM_NAMES = {
    "embeddings.patch_embedding": "trunk.patch_embed.proj",
    "embeddings.position_embedding.weight": "trunk.pos_embed",
    "post_layernorm": "trunk.norm",
    "encoder.layers": "trunk.blocks",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
}
QKV = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def read_hf_tower(folder: Path) -> TowerSpec:
    """The spec of a tower that `config.json` and `preprocessor_config.json` describe.

    The folder is of CLIP, of SigLIP (each whole or its vision part), or of a LLaVA with such a tower. Raises
    ModelError for another kind of model, and for settings open_clip's modules do not have.
    """
    family, settings = _vision_settings(folder)
    size, patch = (_pair(folder, settings, key) for key in ("image_size", "patch_size"))
    width, hidden, layers, heads = (
        _whole(folder, settings, key)
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    if width % heads:
        raise ModelError(f"tower: {folder / HF_CONFIG} has hidden_size {width}, but {heads} attention heads")
    ratio = (hidden + 0.5) / width  # times the width and rounded down it is hidden again
    activation = settings["hidden_act"]
    known = (TANH, EXACT, QUICK) if family == "clip" else (TANH, EXACT)
    if activation not in known:
        raise ModelError(
            f"tower: {folder / HF_CONFIG} has hidden_act {activation!r}; known are {', '.join(known)}"
        )
    preprocess, gelu = _preprocess(folder, family, size), "tanh" if activation == TANH else ""
    eps = settings["layer_norm_eps"]
    if family == "siglip":
        trunk = {"img_size": size, "patch_size": patch, "embed_dim": width, "depth": layers}
        trunk |= {"num_heads": heads, "mlp_ratio": ratio, "eps": eps}
        return TowerSpec({"vision_cfg": {"image_size": size}}, preprocess, gelu, trunk)
    vision = {"image_size": size, "patch_size": patch, "width": width, "layers": layers}
    vision |= {"head_width": width // heads, "mlp_ratio": ratio, "norm_kwargs": {"eps": eps}}
    model = {"quick_gelu": activation == QUICK, "vision_cfg": vision}
    return TowerSpec(model, preprocess, gelu)


def _vision_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The family of a folder's tower, and its settings, whole."""
    path = folder / HF_CONFIG
    config = read_json(path)
    kind = config.get("model_type")
    if isinstance(named := config.get("mm_vision_tower"), str) and "vision_config" not in config:
        raise ModelError(
            f"tower: {path} says its tower is {named}, but not how that is built; "
            f"set base.tower to a folder of {named}"
        )
    settings = config.get("vision_config", {} if kind in ("clip", "siglip") else config)
    if not isinstance(settings, dict):
        raise ModelError(f"tower: {path} has vision_config {settings!r}, not a table of settings")
    usual = "clip_vision_model" if str(kind).startswith("llava") else kind
    family = str(settings.get("model_type", usual)).removesuffix("_vision_model")
    if family not in DEFAULTS:
        raise ModelError(f"tower: {path} describes {family!r}; towers are clip, siglip, or a LLaVA with one")
    given = {key: settings[key] for key in DEFAULTS[family] if settings.get(key) is not None}
    return family, DEFAULTS[family] | given


def _whole(folder: Path, settings: Mapping[str, Any], key: str) -> int:
    value = settings[key]
    if type(value) is not int or value < 1:
        raise ModelError(f"tower: {folder / HF_CONFIG} has {key} {value!r}; it must be a whole number")
    return value


def _pair(folder: Path, settings: Mapping[str, Any], key: str) -> tuple[int, int]:
    value = settings[key]
    both = value if isinstance(value, list) and len(value) == 2 else [value, value]
    high, wide = (_whole(folder, {key: each}, key) for each in both)
    return high, wide


def _preprocess(folder: Path, family: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Settings of open_clip's preprocessing for what a folder says, or its family has."""
    settings: dict[str, Any] = {"size": image_size, **PREPROCESS[family]}
    path = folder / "preprocessor_config.json"
    if path.is_file():
        content: Any = read_json(path)
    elif (path := folder / "processor_config.json").is_file():
        content = read_json(path).get("image_processor", {})
    else:
        return settings
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        settings |= {ours: content[theirs]} if content.get(theirs) else {}
    number = content.get("resample", 3)
    if number not in INTERPOLATIONS:
        raise ModelError(f"tower: {path} has resample {number!r}; known are 2 (bilinear) and 3 (bicubic)")
    settings["interpolation"] = INTERPOLATIONS[number]
    size = content.get("size") or {}
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    if size:
        settings["resize_mode"] = "shortest" if "shortest_edge" in size else "squash"
    crop = content.get("crop_size") if content.get("do_center_crop") else None
    crop = crop if isinstance(crop, dict) else {"height": crop} if crop else {}
    for side in (*size.values(), *crop.values()):
        if side not in image_size:
            raise ModelError(
                f"tower: {path} prepares pictures of {side} pixels, but {HF_CONFIG} says the tower sees "
                f"{image_size[0]} x {image_size[1]}; correct one of them"
            )
    return settings


def hf_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the tower in a folder, by their names without what is before the tower's own."""
    tensors = TensorFolder(folder)
    return {ours: tensors.read(name) for name, ours in _inner_names(tensors.files).items()}


def open_clip_names(tensors: Mapping[str, Tensor], timm: bool) -> dict[str, Tensor]:
    """A tower's tensors by the names of open_clip's modules, whose transformer is timm's or its own.

    Queries, keys and values are one tensor there; where one of the three is missing, so is that tensor.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, ours in _inner_names(tensors).items():
        if part := QKV.fullmatch(ours):
            stem, leaf = _renamed(part[1], timm), part[3]
            whole = f"{stem}.attn.qkv.{leaf}" if timm else f"{stem}.attn.in_proj_{leaf}"
            parts.setdefault(whole, {})[part[2]] = tensors[name]
        else:
            found[_renamed(ours, timm)] = tensors[name]
    for name, three in parts.items():
        if len(three) == 3:
            found[name] = torch.cat([three[letter] for letter in "qkv"])
    if timm and "trunk.pos_embed" in found:
        found["trunk.pos_embed"] = found["trunk.pos_embed"][None]  # float[K, C] -> float[1, K, C]
    return found


def _inner_names(names: Mapping[str, Any]) -> dict[str, str]:
    """From the names in a file to those within the tower, for the tensors that are the tower's."""
    for place in PLACES:
        if inner := {name: match[1] for name in names if (match := place.fullmatch(name))}:
            return {name: ours for name, ours in inner.items() if not LEFT_OUT.match(ours)}
    return {}


def _renamed(name: str, timm: bool) -> str:
    for theirs, ours in (TIMM_NAMES if timm else OWN_NAMES).items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(\.|$)", rf"\g<1>{ours}\g<2>", name)
    return name
