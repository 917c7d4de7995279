"""Saves the active adapter of a model and reads one for it, in the format of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mma import folder, hub, peft_folder
from mma.adapter import ModalityRouted
from mma.config import AdapterConfig, LoraConfig, plain
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


def begin_from(adapters: Adapters, path: Path) -> tuple[str, ...]:
    """Copies the tensors of a folder into the active adapter, which may have more; gives their names.

    The kinds may differ: a projector trained alone goes on with any adapter. Raises AdapterError when the
    folder was made for another base, or has a tensor that the active adapter has no place for.
    """
    # Stages may write their samples otherwise: captions first, conversations then.
    _, tensors = read(adapters, path, {key: x for key, x in adapters.identity.items() if key != "template"})
    wanted = adapters.trainable_parameters()
    for name, tensor in tensors.items():
        if name not in wanted or wanted[name].shape != tensor.shape:
            here = f"it is {list(wanted[name].shape)}" if name in wanted else "there is none"
            raise AdapterError(
                f"adapter: {path} has {plain(name)} {list(tensor.shape)}, but here {here}; "
                "give the new adapter the same projector and tuned parts"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
    return tuple(tensors)


def describe(path: Path) -> dict[str, Any]:
    """What a folder says of its base and where it comes from; nothing where PEFT wrote it."""
    description = folder.read_description(path)
    if description["peft_type"] != LoraConfig.peft_type:
        return description
    ours = path / peft_folder.OUR_CONFIG
    return folder.read_json(ours) if ours.is_file() else {}


def read(
    adapters: Adapters, path: Path, identity: Mapping[str, Any] | None = None
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Settings and tensors of a folder, or a repository of the Hub, checked against this base."""
    identity = adapters.identity if identity is None else identity
    path = hub.find(path)
    if folder.read_description(path)["peft_type"] == LoraConfig.peft_type:
        config, tensors, description = peft_folder.read(path, adapters.sites, adapters.exported_name)
        if description:  # written here; a folder that PEFT wrote says nothing of the base's tensors
            folder.check_identity(path, description, identity)
        return config, tensors
    description, tensors = folder.read(path)
    folder.check_identity(path, description, identity)
    return folder.config_of(path, description, adapters.identity), tensors
