"""Saves the active adapter of a model and reads one for it, in the format of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mma import folder, hub, peft_folder
from mma.adapter import ModalityRouted
from mma.config import AdapterConfig, LoraConfig
from mma.errors import AdapterError

if TYPE_CHECKING:
    from mma.adapters import Adapters


def save(adapters: Adapters, path: Path, provenance: Mapping[str, Any]) -> None:
    """See `Adapters.save_pretrained`."""
    config = adapters.config
    tensors = {key: p.detach() for key, p in adapters.trainable_parameters().items()}
    sites = list(adapters.places.modules_of(adapters.active_adapters[0]))
    description: dict[str, Any] = {
        **adapters.identity,
        "peft_type": config.peft_type,
        "sites": [site.path for site, _ in sites],
        "provenance": dict(provenance),
    }
    if any(isinstance(module, ModalityRouted) for _, module in sites):
        description["routing_table"] = adapters.routes()
    if isinstance(config, LoraConfig):
        peft_folder.write(adapters, path, tensors, description)
    else:
        folder.write(path, {**description, **config.to_dict()}, tensors)


def load(adapters: Adapters, path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """What `read` reads, the tensors checked against the settings.

    Those at the sites are compared before any module is made: settings that were tampered with may ask for
    more than the memory holds.
    """
    config, tensors = read(adapters, path)
    try:
        shapes = adapters.places.shapes_of(config)
    except AdapterError as error:
        raise AdapterError(f"{error} (in {path})") from error
    folder.check_tensors(path, tensors, shapes, complete=False)
    return config, tensors


def describe(path: Path) -> dict[str, Any]:
    """What a folder says of its base and where it comes from; nothing where PEFT wrote it."""
    description = folder.read_description(path)
    if description["peft_type"] != LoraConfig.peft_type:
        return description
    ours = path / peft_folder.OUR_CONFIG
    return folder.read_json(ours) if ours.is_file() else {}


def read(adapters: Adapters, path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Settings and tensors of a folder, or a repository of the Hub, checked against this base."""
    path = hub.find(path)
    if folder.read_description(path)["peft_type"] == LoraConfig.peft_type:
        config, tensors, description = peft_folder.read(path, adapters.sites, adapters.exported_name)
        if description:  # written here; a folder that PEFT wrote says nothing of the base's tensors
            folder.check_identity(path, description, adapters.identity)
        return config, tensors
    description, tensors = folder.read(path)
    folder.check_identity(path, description, adapters.identity)
    return folder.config_of(path, description, adapters.identity), tensors
