"""LoRA folders as PEFT writes and reads them, and adapters of other kinds exported to such a folder.

    adapter_config.json, adapter_model.safetensors    PEFT's own, nothing else in them
    mma_config.json, mma_model.safetensors            what PEFT has no place for: digests, provenance, parts

The second pair is missing in folders that PEFT wrote.

Shapes: C channels of a linear layer's input, O of its output, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mma import folder
from mma.card import model_card
from mma.config import LoraConfig, brief
from mma.errors import AdapterError
from mma.export_card import export_card
from mma.merge import readers_of, seen_by
from mma.sites import Site

if TYPE_CHECKING:
    from mma.adapters import Adapters

PREFIX = "base_model.model."
OUR_CONFIG, OUR_TENSORS = "mma_config.json", "mma_model.safetensors"
LEAVES = ("lora_A.weight", "lora_B.weight", "lora_B.bias")
# Settings of PEFT that would make another computation, with the values that do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "fan_in_fan_out": (False, None),
    "megatron_config": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "exclude_modules": (None, []),
}
# Starts that also change the base's weights when PEFT attaches the adapter.
MOVES_BASE = ("pissa", "olora", "corda", "loftq")


def write(
    path: Path,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    exported_name: Callable[[str], str],
) -> None:
    """Writes a LoRA under PEFT's names, with the description and the parts beside it."""
    theirs, parts = {}, {}
    for name, tensor in tensors.items():
        module, leaf = _split(name)
        if leaf is None:
            parts[name] = tensor
        else:
            theirs[f"{PREFIX}{exported_name(module)}.{leaf}"] = tensor
    targets = sorted({_split(name)[0] for name in tensors if _split(name)[1] is not None})
    settings = _peft_settings(
        [exported_name(target) for target in targets], config, description.get("base"), bias=config.bias
    )
    ours = {**description, **config.to_dict(), "format_version": folder.FORMAT_VERSION}
    files = {
        folder.TENSORS: folder.tensor_bytes(theirs),
        folder.CARD: model_card(ours, tensors).encode(),
        OUR_CONFIG: folder.json_bytes(ours),
        folder.CONFIG: folder.json_bytes(settings),
    }
    if parts:
        files[OUR_TENSORS] = folder.tensor_bytes(parts)
    folder.write_files(path, files)


def read(
    path: Path, sites: Sequence[Site], exported_name: Callable[[str], str]
) -> tuple[LoraConfig, dict[str, Tensor], dict[str, Any]]:
    """Settings and tensors of a LoRA folder under this model's names, and the description if made here.

    Raises AdapterError for what this LoRA cannot compute, and for layers the model does not have.
    """
    settings = folder.read_description(path)
    _check_plain(path, settings)
    places = {f"{PREFIX}{exported_name(site.path)}": site for site in sites if site.kind == "linear"}
    tensors: dict[str, Tensor] = {}
    found: set[Site] = set()
    for name, tensor in folder.read_tensors(path / folder.TENSORS).items():
        module, leaf = _split(name)
        if leaf is None or module not in places:
            raise AdapterError(
                f"adapter: {path} has a tensor for {name}, which is no linear layer of this base"
            )
        tensors[f"{places[module].path}.{leaf}"] = tensor
        found.add(places[module])
    description = folder.read_json(path / OUR_CONFIG) if (path / OUR_CONFIG).is_file() else {}
    if (path / OUR_TENSORS).is_file():
        tensors |= folder.read_tensors(path / OUR_TENSORS)
    config = _config_of(path, settings, description, found, sites)
    return config, tensors, description


def export(adapters: Adapters, path: Path, modality: str | None) -> None:
    """See `Adapters.export_peft_lora`."""
    config, name = adapters.config, adapters.active_adapters[0]
    if adapters.merged is not None:
        raise AdapterError("adapter: cannot export while it is merged; call unmerge_adapter() first")
    if modality is None and len(config.modalities) == 1:
        modality = config.modalities[0]
    if modality not in config.modalities:
        raise AdapterError(f"adapter: name the modality to export: {', '.join(config.modalities)}")
    adapters.refresh_table()
    tensors: dict[str, Tensor] = {}
    targets: list[str] = []
    rank = config.r
    for site, module in adapters.places.modules_of(name):
        if site.part != "decoder":
            continue
        with torch.no_grad():
            low = module.fold(config.modalities.index(modality))
            for reader in readers_of(site):
                seen = seen_by(adapters.model, site, reader, low).to(torch.float32)
                target = adapters.exported_name(reader)
                leaves = (seen.down, seen.up, seen.up @ seen.down_bias + seen.bias)
                tensors |= {f"{PREFIX}{target}.{k}": t for k, t in zip(LEAVES, leaves, strict=True)}
                targets.append(target)
    if not targets:
        raise AdapterError(f"adapter: {name!r} has no site in the decoder; there is nothing to export")
    base = adapters.identity.get("base")
    folded = LoraConfig(r=rank, alpha=float(rank), bias=True)
    settings = _peft_settings(targets, folded, base, bias=True)
    card = export_card(
        f"LoRA of rank {rank} for the modality `{modality}`",
        base,
        adapters.prompt_notes.get(modality, ""),
        "from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, folder)",
    )
    files = {
        folder.TENSORS: folder.tensor_bytes(tensors),
        folder.CARD: card.encode(),
        folder.CONFIG: folder.json_bytes(settings),
    }
    folder.write_files(path, files)


def _peft_settings(targets: Sequence[str], config: LoraConfig, base: Any, *, bias: bool) -> dict[str, Any]:
    """PEFT's settings for these layers: by their last names where these name no other layer."""
    named = base.get("decoder") if isinstance(base, Mapping) else base
    return {
        "peft_type": LoraConfig.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named if isinstance(named, str) else None,
        "r": config.r,
        "lora_alpha": config.alpha or 2 * config.r,
        "lora_dropout": config.dropout,
        "lora_bias": bias,
        "use_rslora": config.rslora,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def _check_plain(path: Path, settings: Mapping[str, Any]) -> None:
    for key, allowed in PLAIN.items():
        if key in settings and settings[key] not in allowed:
            raise AdapterError(
                f"adapter: {path} was made with {key} {brief(settings[key])}, which cannot be computed here; "
                "merge it with PEFT, or train without it"
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(MOVES_BASE):
        raise AdapterError(
            f"adapter: {path} began as {start!r}, which changes the base's weights too; convert it with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _config_of(
    path: Path,
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
    found: set[Site],
    sites: Sequence[Site],
) -> LoraConfig:
    """This project's settings for the layers that were found."""
    decoder = {site for site in found if site.part == "decoder"}
    targets = {site.path.rpartition(".")[2] for site in found}
    layers = {site.layer for site in decoder if site.layer is not None}
    every = {site.layer for site in sites if site.part == "decoder" and site.layer is not None}
    try:
        return LoraConfig(
            r=settings.get("r", 8),
            alpha=settings.get("lora_alpha", 8),
            dropout=settings.get("lora_dropout", 0.0),
            rslora=settings.get("use_rslora") or False,
            bias=settings.get("lora_bias") or False,
            targets=tuple(sorted(targets)),
            layers=() if layers == every else tuple(sorted(layers)),
            tower_placement="both" if found - decoder else "none",
            modalities=tuple(description.get("modalities", ("text",))),
            projector_hidden=description.get("projector_hidden", 128),
        )
    except (AdapterError, TypeError) as error:
        raise AdapterError(f"{error} (in {path / folder.CONFIG})") from error


def _split(name: str) -> tuple[str, str | None]:
    """A tensor's module and leaf; no leaf where it is none of LoRA's."""
    for leaf in LEAVES:
        if name.endswith(f".{leaf}"):
            return name.removesuffix(f".{leaf}"), leaf
    return name, None
