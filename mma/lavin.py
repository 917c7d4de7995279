"""LaVIN's checkpoints (`checkpoint-NN.pth`) as adapters, and adapters as LaVIN's checkpoints.

Such a file holds the trained tensors beside optimizer state and an argparse namespace. Knows no base: tensors
and settings are checked against each other.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mma import folder as adapter_folder
from mma import lavin_file
from mma.adapters import Adapters
from mma.config import MMAConfig, brief, plain
from mma.errors import AdapterError
from mma.lavin_names import is_known, original, places, rename
from mma.routing import RouteState
from mma.sites import Site, make_module

TOWER_RULES = {  # visual_adapter_type -> rule and placement in the tower
    "router": ("token", "attn"),
    "router_block": ("token", "both"),
    "normal": ("legacy_no_residual", "attn"),
}
PLACEMENTS = {"attn": "attn", "block": "both"}  # adapter_type -> placement in the decoder
NEEDED = ("adapter_dim", "adapter_scale", "temperature", "visual_adapter_type")
# What else a namespace says about the training; paths of somebody's machine are not among it.
TOLD = (
    *("llm_model", "use_vicuna", "bits", "n_prompt", "max_seq_len", "drop_path", "gradient_checkpointing"),
    *("prompt_format", "use_caption", "do_pretrain", "batch_size", "accum_iter", "epochs", "warmup_epochs"),
    *("blr", "lr", "min_lr", "weight_decay", "clip_grad", "seed", "world_size"),
)
EVERY = 4  # LaVIN reads its tower after every fourth block
PREFIX = "module."  # of every name, where several processes have trained
DECODER_WIDTH, TOWER_WIDTH = "modality.weight", "projector.down.weight"  # their second axis


@dataclass(frozen=True)
class LavinCheckpoint:
    """A checkpoint under this project's names.

    Args:
        tensors: The trained tensors in this project's shapes.
        config: The settings, if the file holds them.
        missing: What is missing where it does not.
        epoch: The epoch it was written after, if the file says so.
        origin: What the way back needs beside the tensors: prefix, namespace, order of the names.
    """

    tensors: dict[str, Tensor]
    config: MMAConfig | None
    missing: str
    epoch: int | None
    origin: dict[str, Any]

    def settings(self, path: Path | str, chosen: MMAConfig | None) -> MMAConfig:
        """The settings somebody chose, else those of the file."""
        if (config := chosen or self.config) is None:
            raise AdapterError(
                f"adapter: {path} does not say its settings; pass the MMAConfig it was made with "
                f"({self.missing})"
            )
        return config


def from_lavin(
    checkpoint: Path | str,
    folder: Path | str,
    config: MMAConfig | None = None,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Writes the adapter of a LaVIN checkpoint as an adapter folder; no base is needed.

    Tensors keep their type. The settings are taken from the file; `config` is for files that do not hold
    them. `identity` is what somebody who has the base knows of it (digests, preprocessing, template); without
    it the folder does not say. Optimizer state is dropped. Raises AdapterError when the file cannot be read,
    or is not complete.
    """
    path = Path(checkpoint)
    read = read_lavin(path)
    settings = read.settings(path, config)
    _check_complete(path, settings, read.tensors)
    name = path.name.encode("utf-8", "replace").decode()
    description = {
        **(identity or {}),
        **settings.to_dict(),
        "sites": [place for place, _, _ in places(read.tensors) if f"{place}.up" in read.tensors],
        "provenance": {
            "converted_from": name,
            **({} if read.epoch is None else {"epoch": read.epoch}),
            "lavin": read.origin,
        },
    }
    adapter_folder.write(Path(folder), description, read.tensors)


def to_lavin(folder: Path | str, checkpoint: Path | str) -> None:
    """Writes an adapter folder as a LaVIN checkpoint: `model` and `args`, as the public code names them.

    A folder that came from such a file gives its tensors back, bit for bit, under the same names and in the
    same order. There is no optimizer state in it: training cannot be resumed from it there. Raises
    AdapterError for an adapter that LaVIN cannot express.
    """
    path = Path(folder)
    description, tensors = adapter_folder.read(path)
    config = _config_of(path, description)
    _check_expressible(path, config, description)
    _check_complete(path, config, tensors)
    provenance = description.get("provenance")
    told = provenance if isinstance(provenance, dict) else {}
    origin = told["lavin"] if isinstance(told.get("lavin"), dict) else {}
    content: dict[str, Any] = {"model": _as_it_was(path, original(tensors), origin)}
    if origin and type(told.get("epoch")) is int:
        content["epoch"] = told["epoch"]
    tower_blocks = {block for _, site, block in places(tensors) if site.part == "tower"}
    content["args"] = _namespace(
        config, {"n_prompt": len(tower_blocks) // EVERY, **_told(origin.get("args"))}
    )
    lavin_file.write(Path(checkpoint), content)


def load_lavin(adapters: Adapters, path: Path | str, config: MMAConfig | None = None) -> None:
    """Adds the adapter of a LaVIN checkpoint under the name `default`.

    The settings are taken from the file; `config` is for files that do not hold them. Raises AdapterError
    when the file does not fit this base; the model is then as it was.
    """
    checkpoint = read_lavin(path)
    adapters.add_trained("default", checkpoint.settings(path, config), checkpoint.tensors, Path(path))


def read_lavin(path: Path | str) -> LavinCheckpoint:
    """The adapter in a LaVIN checkpoint.

    Raises AdapterError when the file cannot be read, or holds a tensor that is not LaVIN's.
    """
    path = Path(path)
    content = lavin_file.read(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise AdapterError(f"adapter: {path} holds no LaVIN model; name a checkpoint of LaVIN's training")
    stored, prefix = _model(path, content["model"])
    try:
        tensors = rename(stored)
        hidden, _ = tensors[TOWER_WIDTH].shape
    except (KeyError, ValueError) as error:
        raise AdapterError(
            f"adapter: {path} is damaged: a tensor is missing or misshapen ({plain(error, 160)}); "
            "fetch it again"
        ) from error
    config, missing = _settings(content.get("args"), hidden)
    epoch = content.get("epoch")
    known = type(epoch) is int and _is_plain(epoch)
    origin: dict[str, Any] = {"prefix": prefix, "args": _told(content.get("args"))}
    names = list(original(tensors))
    if list(stored) != names:
        origin["order"] = [names.index(name) for name in stored]
    return LavinCheckpoint(tensors, config, missing, epoch if known else None, origin)


def _model(path: Path, model: dict[Any, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint by LaVIN's names without prefix, and the prefix."""
    if not all(isinstance(name, str) for name in model):
        raise AdapterError(f"adapter: {path} has tensors without a name; fetch it again")
    prefix = PREFIX if any(name.startswith(PREFIX) for name in model) else ""
    if bare := [name for name in model if not name.startswith(prefix)]:
        raise AdapterError(
            f"adapter: {path} has names with and without {PREFIX!r}: {_listed(bare)}; fetch it again"
        )
    stored = {name.removeprefix(prefix): tensor for name, tensor in model.items()}
    if odd := [name for name, tensor in stored.items() if not isinstance(tensor, Tensor)]:
        raise AdapterError(f"adapter: {path} holds no tensor under {_listed(odd)}; fetch it again")
    if unknown := [name for name in stored if not is_known(name)]:
        raise AdapterError(
            f"adapter: {path} has tensors LaVIN does not train: {_listed(unknown)}; "
            "name a checkpoint of LaVIN's training"
        )
    if whole := [name for name, tensor in stored.items() if not tensor.is_floating_point()]:
        raise AdapterError(
            f"adapter: {path} has tensors of no floating type: {_listed(whole)}; fetch it again"
        )
    if sum(tensor.nbytes for tensor in stored.values()) > path.stat().st_size:
        raise AdapterError(f"adapter: the tensors of {path} are larger than the file; fetch it again")
    # Clones: the file may change, and what was stored may be a view or a parameter.
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in stored.items()
    }, prefix


def _settings(arguments: object, hidden: int) -> tuple[MMAConfig | None, str]:
    """The settings in a namespace, or none and what is missing."""
    if not isinstance(arguments, argparse.Namespace):
        return None, "it holds no namespace"
    values = {"adapter_type": "attn", **vars(arguments)}
    if lacking := [name for name in NEEDED if name not in values]:
        return None, f"its namespace lacks {', '.join(lacking)}"
    for name in (*NEEDED, "adapter_type"):
        if not _is_plain(values[name]):
            return None, f"its {name} is no plain value but a {type(values[name]).__name__}"
    for name, known in (("adapter_type", PLACEMENTS), ("visual_adapter_type", TOWER_RULES)):
        if values[name] not in known:
            return None, f"its {name} is {brief(values[name])}, not one of {', '.join(known)}"
    rule, tower_placement = TOWER_RULES[values["visual_adapter_type"]]
    try:
        config = MMAConfig(
            r=values["adapter_dim"],
            scale=values["adapter_scale"],
            temperature=values["temperature"],
            placement=PLACEMENTS[values["adapter_type"]],
            tower=rule,
            tower_placement=tower_placement,
            projector_hidden=hidden,
        )
    except AdapterError as error:
        return None, str(error).removeprefix("adapter: ")
    return config, ""


def _namespace(config: MMAConfig, told: Mapping[str, Any]) -> argparse.Namespace:
    """The settings by the options of the public code, beside what is told of the training."""
    rule = (config.tower, config.tower_placement)
    return argparse.Namespace(
        adapter_type={ours: theirs for theirs, ours in PLACEMENTS.items()}[config.placement],
        visual_adapter_type={ours: theirs for theirs, ours in TOWER_RULES.items()}[rule],
        adapter_dim=config.r,
        hidden_proj=config.projector_hidden,
        temperature=config.temperature,
        adapter_scale=config.scale,
        **told,
    )


def _as_it_was(path: Path, stored: dict[str, Tensor], origin: Mapping[str, Any]) -> dict[str, Tensor]:
    """LaVIN's tensors with the prefix and in the order of the file they came from."""
    prefix = PREFIX if origin.get("prefix") == PREFIX else ""
    order = origin.get("order", list(range(len(stored))))
    whole = isinstance(order, list) and all(type(index) is int for index in order)
    if not whole or sorted(order) != list(range(len(stored))):
        raise AdapterError(f"adapter: {path} has lost the order of LaVIN's tensors; convert the file again")
    names = list(stored)
    return {f"{prefix}{names[index]}": stored[names[index]] for index in order}


def _told(arguments: object) -> dict[str, Any]:
    """What a namespace, or the table kept of one, says about the training."""
    values = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    if not isinstance(values, dict):
        return {}
    return {name: values[name] for name in TOLD if name in values and _is_plain(values[name])}


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 100 and value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) < 2**63)


def _config_of(path: Path, description: Mapping[str, Any]) -> MMAConfig:
    if (kind := description.get("peft_type")) != "MMA":
        raise AdapterError(f"adapter: {path} has peft_type {brief(kind)}; LaVIN has MMA adapters only")
    known = [field.name for field in fields(MMAConfig) if field.name in description]
    try:
        config = MMAConfig.from_dict({name: description[name] for name in known})
    except AdapterError as error:
        raise AdapterError(f"{error} (in {path})") from error
    assert isinstance(config, MMAConfig), "it makes its own class"
    return config


def _check_expressible(path: Path, config: MMAConfig, description: Mapping[str, Any]) -> None:
    """Refuses settings that the public code has no option for."""
    base = description.get("base")
    every = base.get("tower_every", EVERY) if isinstance(base, dict) else EVERY
    wanted: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("routes", config.routes, (2,)),
        ("groups", config.groups, (2,)),
        ("modalities", config.modalities, (("text", "image"),)),
        ("layers", config.layers, ((),)),
        ("placement", config.placement, tuple(PLACEMENTS.values())),
        ("tower and tower_placement", (config.tower, config.tower_placement), tuple(TOWER_RULES.values())),
        ("base.tower_every", every, (EVERY,)),
    )
    for name, value, allowed in wanted:
        if value not in allowed:
            raise AdapterError(
                f"adapter: {path} cannot be written as LaVIN's: {name} is {brief(value)}, LaVIN has "
                f"{' or '.join(map(repr, allowed))} only; train one with that"
            )


def _check_complete(source: Path, config: MMAConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are not exactly those of the settings, in every block up to the last."""
    for name in (DECODER_WIDTH, TOWER_WIDTH):
        if name not in tensors or tensors[name].ndim != 2 or not tensors[name].numel():
            raise AdapterError(f"adapter: {source} has no {name} to tell a width by; fetch it again")
    if {kind.part for _, kind, _ in places(tensors)} != {"decoder", "tower"}:
        raise AdapterError(f"adapter: {source} has no sites in its decoder, or in its tower; LaVIN has both")
    decoder, tower = tensors[DECODER_WIDTH].shape[1], tensors[TOWER_WIDTH].shape[1]
    hidden = config.projector_hidden
    shapes = {
        "projector.down.weight": (hidden, tower),
        "projector.down.bias": (hidden,),
        "projector.up.weight": (decoder, hidden),
        "projector.up.bias": (decoder,),
        "modality.weight": (len(config.modalities), decoder),
    }
    expected = {name: torch.Size(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        for path, kind, block in places(tensors):
            channels = decoder if kind.part == "decoder" else tower
            module = make_module(Site(path, channels, kind.part, kind.role, block), config, RouteState())
            if module is not None:
                expected |= {f"{path}.{leaf}": tensor.shape for leaf, tensor in module.named_parameters()}
    adapter_folder.check_tensors(source, tensors, expected)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(plain(name) for name in sorted(names)[:3])
