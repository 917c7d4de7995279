"""LoRA folders as PEFT writes and reads them, and adapters of other kinds exported to such a folder.

    adapter_config.json, adapter_model.safetensors    PEFT's own, nothing else in them
    mma_config.json, mma_model.safetensors            what PEFT has no place for: digests, provenance, parts

The second pair is missing in folders that PEFT wrote.

Shapes: C channels of a linear layer's input, O of its output, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mma import folder
from mma.card import model_card
from mma.config import LoraConfig, SiteConfig, brief, plain
from mma.errors import AdapterError
from mma.export_card import export_card
from mma.merge import readers_of, seen_by
from mma.merging import one_modality
from mma.sites import Site

if TYPE_CHECKING:
    from mma.adapters import Adapters

ExportedName = Callable[[str], str]
PREFIX = "base_model.model."
OUR_CONFIG, OUR_TENSORS = "mma_config.json", "mma_model.safetensors"
EXPORTED = "exported_from"  # in the provenance of folders that nothing is lost with
LEAVES = ("lora_A.weight", "lora_B.weight", "lora_B.bias")
# Settings of PEFT that would make another computation, with the values that do not. Which layers it was told
# to take or to leave is no matter: the tensors say it.
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "fan_in_fan_out": (False, None),
    "alora_invocation_tokens": (None,),
}
# So do variants, those of later versions of PEFT too (use_..., ..._config), but for these: they say how a
# start was found, or where things are kept.
NO_VARIANTS = ("use_rslora", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config")
# Starts that also change the base's weights when PEFT attaches the adapter.
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def write(
    adapters: Adapters, path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Writes the active adapter, a LoRA, under PEFT's names, with the description and the parts beside it."""
    config = adapters.config
    assert isinstance(config, LoraConfig), "other kinds have their own folder"
    names = {site.path: name for name, site in _places(adapters.sites, adapters.exported_name).items()}
    theirs, ours = {}, {}
    for name, tensor in tensors.items():
        module, leaf = _split(name)
        if leaf is not None and module in names:
            theirs[f"{PREFIX}{names[module]}.{leaf}"] = tensor
        else:
            ours[name] = tensor
    told = {**description, **config.to_dict(), "format_version": folder.FORMAT_VERSION}
    files = {
        folder.TENSORS: folder.tensor_bytes(theirs),
        folder.CARD: model_card(told, tensors).encode(),
        OUR_CONFIG: folder.json_bytes(told),
        folder.CONFIG: folder.json_bytes(_peft_settings(adapters, theirs, config)),
    }
    if ours:
        files[OUR_TENSORS] = folder.tensor_bytes(ours)
    folder.write_files(path, files)


def read(
    path: Path, sites: Sequence[Site], exported_name: ExportedName
) -> tuple[LoraConfig, dict[str, Tensor], dict[str, Any]]:
    """Settings and tensors of a LoRA folder under this model's names, and the description if made here.

    Raises AdapterError for what this LoRA cannot compute, and for layers the model does not have.
    """
    settings = folder.read_description(path)
    _check_plain(path, settings)
    places = _places(sites, exported_name)
    tensors: dict[str, Tensor] = {}
    found: set[Site] = set()
    for name, tensor in folder.read_tensors(path / folder.TENSORS).items():
        module, leaf = _split(name.removeprefix(PREFIX))
        if leaf is None or module not in places or not name.startswith(PREFIX):
            raise AdapterError(
                f"adapter: {path} has a tensor for {plain(name)}, which is no linear layer of this base that "
                "an adapter can sit at; load the base it was trained on, or train without that layer"
            )
        tensors[f"{places[module].path}.{leaf}"] = tensor
        found.add(places[module])
    if not found:
        raise AdapterError(f"adapter: {path} holds no LoRA tensors; save or fetch it again")
    description: dict[str, Any] = {}
    if (path / OUR_CONFIG).is_file():
        description = folder.read_json(path / OUR_CONFIG)
        folder.check_version(path / OUR_CONFIG, description)
    if (path / OUR_TENSORS).is_file():
        tensors |= folder.read_tensors(path / OUR_TENSORS)
    try:
        theirs = _config_of(path, settings, found, list(places.values()))
        config = _recorded(description, theirs) if description else theirs
    except AdapterError as error:
        raise AdapterError(f"{error} (in {path / folder.CONFIG})") from error
    return config, tensors, description


def export(adapters: Adapters, path: Path, modality: str | None) -> None:
    """See `Adapters.export_peft_lora`."""
    config, name = adapters.config, adapters.active_adapters[0]
    if adapters.merged is not None:
        raise AdapterError("adapter: cannot export while it is merged; call unmerge_adapter() first")
    modality = one_modality(adapters, modality)
    if not isinstance(config, SiteConfig) or config.tuned:
        raise AdapterError(f"adapter: {name!r} tunes parts of the base in full, which no LoRA can hold")
    _check_no_loss(path)
    adapters.refresh_table()
    tensors: dict[str, Tensor] = {}
    for site, module in adapters.places.modules_of(name):
        if site.part != "decoder":
            continue
        with torch.no_grad():
            low = module.fold(config.modalities.index(modality))
            for reader in readers_of(site):
                seen = seen_by(adapters.model, site, reader, low).to(torch.float32)
                target = f"{PREFIX}{adapters.exported_name(reader)}"
                leaves = (seen.down, seen.up, seen.up @ seen.down_bias + seen.bias)
                tensors |= {f"{target}.{leaf}": t for leaf, t in zip(LEAVES, leaves, strict=True)}
    if not tensors:
        raise AdapterError(f"adapter: {name!r} has no site in the decoder; there is nothing to export")
    held_for = [modality] if any(adapters.places.routed(name)) else list(config.modalities)
    folded = _folded(config, tensors)
    provenance = {EXPORTED: config.peft_type, "adapter": name, "modalities": held_for}
    told = {**adapters.identity, **folded.to_dict(), "provenance": provenance}
    told |= {"format_version": folder.FORMAT_VERSION, "peft_type": folded.peft_type}
    base = adapters.identity.get("base")
    card = export_card(
        f"LoRA of rank {config.r}",
        config.peft_type,
        base,
        {known: adapters.prompt_notes.get(known, "") for known in held_for},
        [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{_decoder(base) or "BASE"}")',
            'model = PeftModel.from_pretrained(model, ".")  # this folder',
        ],
    )
    files = {
        folder.TENSORS: folder.tensor_bytes(tensors),
        folder.CARD: card.encode(),
        OUR_CONFIG: folder.json_bytes(told),
        folder.CONFIG: folder.json_bytes(_peft_settings(adapters, tensors, folded)),
    }
    folder.write_files(path, files)


def _folded(config: SiteConfig, tensors: Mapping[str, Tensor]) -> LoraConfig:
    """The settings of an adapter's decoder part as a LoRA: it knows no modality and brings no projector."""
    targets = {_split(name)[0].rpartition(".")[2] for name in tensors}
    return LoraConfig(
        r=config.r,
        alpha=float(config.r),
        bias=True,
        targets=tuple(sorted(targets)),
        layers=config.layers,
        modalities=("text",),
    )


def _check_no_loss(path: Path) -> None:
    """Refuses to put an export in the place of an adapter that was trained: there is no way back from it."""
    if (path / folder.CONFIG).is_file():
        recorded = folder.read_json(path / OUR_CONFIG) if (path / OUR_CONFIG).is_file() else {}
        provenance = recorded.get("provenance")
        if not isinstance(provenance, Mapping) or EXPORTED not in provenance:
            raise AdapterError(
                f"adapter: {path} holds a trained adapter, which an export would replace; choose another name"
            )


def _places(sites: Sequence[Site], exported_name: ExportedName) -> dict[str, Site]:
    """The linear layers by the names they have in the model that PEFT gets: the decoder, or a lone tower."""
    part = "decoder" if any(site.part == "decoder" for site in sites) else "tower"
    linear = [site for site in sites if site.kind == "linear" and site.part == part]
    return {exported_name(site.path): site for site in linear}


def _decoder(base: Any) -> str | None:
    """What the decoder is called, where that is recorded."""
    named = base.get("decoder") if isinstance(base, Mapping) else None
    return named if isinstance(named, str) else None


def _peft_settings(adapters: Adapters, theirs: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Any]:
    """PEFT's settings; every layer is named whole, so that no other one is meant."""
    causal = any(site.part == "decoder" for site in adapters.sites)
    return {
        "peft_type": LoraConfig.peft_type,
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": _decoder(adapters.identity.get("base")),
        "r": config.r,
        "lora_alpha": config.alpha or 2 * config.r,
        "lora_dropout": config.dropout,
        "lora_bias": config.bias,
        "use_rslora": config.rslora,
        "target_modules": sorted({_split(name.removeprefix(PREFIX))[0] for name in theirs}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def foreign_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT's settings ask for and cannot be computed here."""
    variants = [key for key in settings if key.startswith("use_") or key.endswith("_config")]
    allowed = {**{key: (False, None, {}) for key in variants if key not in NO_VARIANTS}, **PLAIN}
    return {key: settings[key] for key in allowed if key in settings and settings[key] not in allowed[key]}


def _check_plain(path: Path, settings: Mapping[str, Any]) -> None:
    for key, value in foreign_settings(settings).items():
        raise AdapterError(
            f"adapter: {path} was made with {plain(key)} {brief(value)}, which cannot be computed here; "
            "merge it with PEFT, or train without it"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(MOVES_BASE):
        raise AdapterError(
            f"adapter: {path} began as {brief(start)}, which changes the base's weights too; convert it with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if settings.get("lora_alpha") == 0:
        raise AdapterError(f"adapter: {path} has lora_alpha 0, so it adds nothing; train it with another one")


def _config_of(
    path: Path, settings: Mapping[str, Any], found: set[Site], places: Sequence[Site]
) -> LoraConfig:
    """This project's settings for the layers that were found, each in the same blocks."""
    targets = {_leaf(site) for site in found}
    layers = {site.layer for site in found}
    for site in places:
        if _leaf(site) in targets and site.layer in layers and site not in found:
            raise AdapterError(
                f"adapter: {path} has nothing for {site.path}, but for this layer of other blocks; "
                "train all the layers it targets in the same blocks"
            )
    every = layers == {site.layer for site in places}
    return LoraConfig(
        r=settings.get("r", 8),
        alpha=settings.get("lora_alpha", 8),
        dropout=settings.get("lora_dropout", 0.0),
        rslora=False if settings.get("use_rslora") is None else settings["use_rslora"],
        bias=False if settings.get("lora_bias") is None else settings["lora_bias"],
        targets=tuple(sorted(targets)),
        layers=() if every else tuple(sorted(layer for layer in layers if layer is not None)),
        tower_placement="none" if any(site.part == "decoder" for site in places) else "both",
        modalities=("text",),
    )


def _recorded(description: Mapping[str, Any], theirs: LoraConfig) -> LoraConfig:
    """The settings in a description; PEFT's own must say the same."""
    names = [field.name for field in fields(LoraConfig) if field.name in description]
    config = LoraConfig.from_dict({name: description[name] for name in names})
    assert isinstance(config, LoraConfig), "from_dict makes its own class"
    told = {
        "r": (config.r, theirs.r),
        "lora_alpha": (config.alpha or 2 * config.r, theirs.alpha),
        "lora_dropout": (config.dropout, theirs.dropout),
        "use_rslora": (config.rslora, theirs.rslora),
        "lora_bias": (config.bias, theirs.bias),
    }
    for key, (recorded, there) in told.items():
        if recorded != there:
            raise AdapterError(
                f"adapter: {key} is {there}, but {recorded} in {OUR_CONFIG}; delete that file to go by PEFT's"
            )
    return config


def _leaf(site: Site) -> str:
    return site.path.rpartition(".")[2]


def _split(name: str) -> tuple[str, str | None]:
    """A tensor's module and leaf; no leaf where it is none of LoRA's."""
    for leaf in LEAVES:
        if name.endswith(f".{leaf}"):
            return name.removesuffix(f".{leaf}"), leaf
    return name, None
