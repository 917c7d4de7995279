"""Reads the checkpoints that the public LaVIN code writes (`checkpoint-NN.pth`).

Such a file is a pickle of the trained tensors beside optimizer state and an argparse namespace. It is
opened through the restricted loader; of all classes only the plain namespace is let in.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mma.adapters import Adapters
from mma.config import MMAConfig
from mma.errors import AdapterError

TOWER_RULES = {  # visual_adapter_type -> rule and placement in the tower
    "router": ("token", "attn"),
    "router_block": ("token", "both"),
    "normal": ("legacy_no_residual", "attn"),
}
PLACEMENTS = {"attn": "attn", "block": "both"}  # adapter_type -> placement in the decoder
SITES = (
    (re.compile(r"layers\.(\d+)\.adapter_attn\.(.+)"), "decoder.blocks.{}.attn_norm"),
    (re.compile(r"layers\.(\d+)\.adapter_mlp\.(.+)"), "decoder.blocks.{}.mlp_norm"),
    (
        re.compile(r"backbone\.visual\.transformer\.resblocks\.(\d+)\.adapter_attn\.(.+)"),
        "tower.visual.transformer.resblocks.{}.ln_1",
    ),
    (
        re.compile(r"backbone\.visual\.transformer\.resblocks\.(\d+)\.adapter_mlp\.(.+)"),
        "tower.visual.transformer.resblocks.{}.ln_2",
    ),
)
LEAVES = {
    f"{layer}.{leaf}"
    for layer in ("conv_A", "conv_B", "conv_D", "expert_weights")
    for leaf in ("weight", "bias")
}
PARTS = {
    "adapter_proj.conv_A.weight": "projector.down.weight",
    "adapter_proj.conv_A.bias": "projector.down.bias",
    "adapter_proj.conv_B.weight": "projector.up.weight",
    "adapter_proj.conv_B.bias": "projector.up.bias",
    "adapter_modality_embedding.weight": "modality.weight",
}


@dataclass(frozen=True)
class LavinCheckpoint:
    """The trained tensors under this project's names, and the settings if the file holds them."""

    tensors: dict[str, Tensor]
    config: MMAConfig | None


def read_lavin(path: Path | str) -> LavinCheckpoint:
    """The adapter in a LaVIN checkpoint.

    Raises AdapterError when the file cannot be read, or holds a tensor that is not LaVIN's.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"adapter: there is no file {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        first_line = str(error).split("\n", maxsplit=1)[0]
        raise AdapterError(f"adapter: {path} cannot be read, it may be truncated ({first_line})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise AdapterError(f"adapter: {path} holds no LaVIN model")
    stored = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
    if odd := sorted(name for name, tensor in stored.items() if not isinstance(tensor, Tensor)):
        raise AdapterError(f"adapter: {path} holds no tensor under {', '.join(odd[:3])}")
    if unknown := sorted(name for name in stored if _site_of(name) is None and name not in PARTS):
        raise AdapterError(f"adapter: {path} has tensors LaVIN does not train: {', '.join(unknown[:3])}")
    try:
        return LavinCheckpoint(rename(stored), _config(content.get("args"), stored))
    except (KeyError, RuntimeError) as error:
        raise AdapterError(
            f"adapter: {path} is damaged: a tensor is missing or misshapen ({error})"
        ) from error


def load_lavin(adapters: Adapters, path: Path | str, config: MMAConfig | None = None) -> None:
    """Adds the adapter of a LaVIN checkpoint under the name `default`.

    The settings are taken from the file; `config` is for files that do not hold them. Raises AdapterError
    when the file does not fit this base; the model is then as it was.
    """
    checkpoint = read_lavin(path)
    chosen = config or checkpoint.config
    if chosen is None:
        raise AdapterError(f"adapter: {path} does not say its settings; pass the MMAConfig it was made with")
    adapters.add_trained("default", chosen, checkpoint.tensors, Path(path))


def rename(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LaVIN's tensors (or their gradients) under this project's names and in its shapes."""
    renamed = {PARTS[name]: tensor for name, tensor in stored.items() if name in PARTS}
    per_site: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        if (found := _site_of(name)) is not None:
            site, leaf = found
            per_site.setdefault(site, {})[leaf] = tensor
    for site, leaves in per_site.items():
        renamed[f"{site}.down.weight"] = leaves["conv_A.weight"].squeeze(-1)  # a 1x1 convolution
        renamed[f"{site}.down.bias"] = leaves["conv_A.bias"]
        routes = [route for route in ("conv_B", "conv_D") if f"{route}.weight" in leaves]
        renamed[f"{site}.up"] = torch.stack([leaves[f"{route}.weight"].squeeze(-1) for route in routes])
        renamed[f"{site}.up_bias"] = torch.cat([leaves[f"{route}.bias"] for route in routes])
        for leaf in ("weight", "bias"):
            if f"expert_weights.{leaf}" in leaves:
                renamed[f"{site}.router.{leaf}"] = leaves[f"expert_weights.{leaf}"]
    return renamed


def _site_of(name: str) -> tuple[str, str] | None:
    for pattern, site in SITES:
        if (match := pattern.fullmatch(name)) and match[2] in LEAVES:
            return site.format(match[1]), match[2]
    return None


def _config(arguments: object, stored: Mapping[str, Tensor]) -> MMAConfig | None:
    if not isinstance(arguments, argparse.Namespace):
        return None
    values = vars(arguments)
    needed = ("adapter_dim", "adapter_scale", "temperature", "visual_adapter_type")
    if any(name not in values for name in needed) or values["visual_adapter_type"] not in TOWER_RULES:
        return None
    if values.get("adapter_type", "attn") not in PLACEMENTS:
        return None
    rule, tower_placement = TOWER_RULES[values["visual_adapter_type"]]
    return MMAConfig(
        r=values["adapter_dim"],
        scale=values["adapter_scale"],
        temperature=values["temperature"],
        placement=PLACEMENTS[values.get("adapter_type", "attn")],
        tower=rule,
        tower_placement=tower_placement,
        projector_hidden=stored["adapter_proj.conv_A.weight"].shape[0],
    )
