"""An adapter folder as it lies on disk, told without its base: where it sits, how large it is, what it says.

Sites and parts are told by the names of the tensors. Knows no model, and checks less than loading does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mma import folder, peft_folder
from mma.config import CONFIGS, AdapterConfig, LoraConfig, MMAConfig, brief
from mma.errors import AdapterError
from mma.routing_report import Table

UP = re.compile(r"(.+)\.(?:up|lora_A\.weight)")  # every site has exactly one of these
BLOCK = re.compile(r"\.(\d{1,6})(?=\.)")
GROUPS = {
    "down": "down",
    "lora_A": "down",
    "up": "up",
    "up_bias": "up",
    "lora_B": "up",
    "router": "router",
    "route_logits": "router",
}
FILES = (folder.CONFIG, folder.TENSORS, folder.CARD, peft_folder.OUR_CONFIG, peft_folder.OUR_TENSORS)


@dataclass(frozen=True)
class StoredSite:
    """A place where the adapter sits, by the name its tensors have."""

    path: str
    part: str  # "decoder" or "tower"
    layer: int | None


@dataclass(frozen=True)
class Stored:
    """What is in an adapter folder.

    Args:
        path: The folder.
        description: What was recorded here; nothing for a LoRA that PEFT wrote.
        peft: PEFT's own settings of a LoRA; empty for other kinds.
        config: The settings; the targets of a LoRA are those that have tensors.
        settings: Those that are recorded; PEFT has no word for some.
        tensors: All tensors by the names they have in the files.
    """

    path: Path
    description: dict[str, Any]
    peft: dict[str, Any]
    config: AdapterConfig
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @cached_property
    def sites(self) -> dict[str, StoredSite]:
        """The sites by the beginning of their tensors' names, in the order of the blocks."""
        found = {match[1] for name in self.tensors if (match := UP.fullmatch(name))}
        sites = {name: _site(name.removeprefix(peft_folder.PREFIX)) for name in found}
        return dict(sorted(sites.items(), key=lambda item: (item[1].part, item[1].layer or 0, item[0])))

    def owner_of(self, name: str) -> str:
        """The site a tensor belongs to, or the part (`projector`)."""
        steps = name.split(".")
        starts = (".".join(steps[:count]) for count in range(len(steps) - 1, 0, -1))
        return next((start for start in starts if start in self.sites), steps[0])

    def group_of(self, name: str) -> str:
        """What a tensor is for: `down`, `up` or `router` at a site, or the name of its part."""
        owner = self.owner_of(name)
        if owner not in self.sites:
            return owner
        leaf = name.removeprefix(f"{owner}.").partition(".")[0]
        return GROUPS.get(leaf, leaf)

    @property
    def bytes_on_disk(self) -> int:
        """Of all files that belong to an adapter folder."""
        return sum((self.path / name).stat().st_size for name in FILES if (self.path / name).is_file())

    @property
    def base(self) -> dict[str, Any]:
        """Where the base was, as far as it is recorded."""
        base = self.description.get("base") or self.peft.get("base_model_name_or_path")
        return dict(base) if isinstance(base, Mapping) else {"decoder": base} if base else {}

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the adapter comes from, as far as it is recorded."""
        return table(self.description.get("provenance"))

    def routing_table(self) -> Table | None:
        """The routing table that was stored; raises AdapterError for something else of that name."""
        stored = self.description.get("routing_table")
        if stored is None:
            return None
        rows = table(stored)
        here = {site for site in rows if any(name.startswith(f"{site}.") for name in self.tensors)}
        if not rows or rows.keys() != here or not all(map(self._is_row, rows.values())):
            raise AdapterError(
                f"adapter: the routing_table of {self.path} has no route weights by site and modality "
                f"({brief(stored, 60)}); fetch the folder again"
            )
        # In the order of blocks and modalities; JSON has them by the alphabet.
        order = {site: index for index, site in enumerate(self.sites)}
        return {
            site: {name: rows[site][name] for name in self.config.modalities}
            for site in sorted(rows, key=lambda site: order.get(site, len(order)))
        }

    def _is_row(self, row: object) -> bool:
        """Whether these are the route weights of a site."""
        return (
            isinstance(self.config, MMAConfig)
            and isinstance(row, Mapping)
            and row.keys() == set(self.config.modalities)
            and all(isinstance(x, list) and len(x) == self.config.routes for x in row.values())
            and all(type(weight) in (int, float) and 0 <= weight <= 1 for x in row.values() for weight in x)
        )


def read_stored(path: Path) -> Stored:
    """Reads a folder of any kind.

    Raises AdapterError when it is not one, or is not readable, or has settings out of their range.
    """
    content, tensors = folder.read(path)
    if content["peft_type"] != LoraConfig.peft_type:
        config = _config(path, content, content)
        return Stored(path, content, {}, config, config.to_dict(), tensors)
    description = {}
    if (path / peft_folder.OUR_CONFIG).is_file():
        description = folder.read_json(path / peft_folder.OUR_CONFIG)
    if (path / peft_folder.OUR_TENSORS).is_file():
        tensors |= folder.read_tensors(path / peft_folder.OUR_TENSORS)
    named = {match[1] for name in tensors if (match := UP.fullmatch(name))}
    told = {
        "r": content.get("r", 8),
        "alpha": content.get("lora_alpha", 8),
        "dropout": content.get("lora_dropout", 0.0),
        "rslora": content.get("use_rslora") or False,
        "bias": content.get("lora_bias") or False,
        "targets": sorted({name.rpartition(".")[2] for name in named}),
    }
    config = _config(path, content, {**description, **told})
    settings = config.to_dict() if description else {key: config.to_dict()[key] for key in told}
    return Stored(path, description, content, config, settings, tensors)


def table(value: object) -> dict[str, Any]:
    """A table of a description, where somebody may have put something else."""
    return dict(value) if isinstance(value, Mapping) else {}


def _config(path: Path, content: Mapping[str, Any], values: Mapping[str, Any]) -> AdapterConfig:
    """The settings among these values; others are an owner's own, or of a newer version."""
    kind = CONFIGS[content["peft_type"]]
    defaults = kind() if kind is LoraConfig else None  # PEFT records neither placement nor modalities
    known = {} if defaults is None else defaults.to_dict()
    known |= {field.name: values[field.name] for field in fields(kind) if field.name in values}
    try:
        return kind.from_dict(known)
    except AdapterError as error:
        raise AdapterError(f"{error} (in {path / folder.CONFIG})") from error


def _site(path: str) -> StoredSite:
    blocks = BLOCK.findall(path)
    part = "tower" if path.startswith("tower.") else "decoder"
    return StoredSite(path, part, int(blocks[-1]) if blocks else None)
