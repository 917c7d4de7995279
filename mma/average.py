"""Weighted sums of adapter folders, and a plain word on where a sum of tensors is not a sum of adapters.

What an adapter adds at a site is linear in its up-projection and in nothing else: the down-projection is
multiplied with it, and the router stands in a softmax. Works on folders and tensors by name; knows no base.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mma import folder, peft_folder
from mma.card import model_card
from mma.config import LoraConfig, brief, plain
from mma.errors import AdapterError

# Last part of the names of the tensors that enter linearly, at sites of every kind and in the projector.
LINEAR = ("up", "up_bias", "lora_B")
# Why others do not.
OBSTACLES = {
    "down": "multiplied with up",
    "lora_A": "multiplied with lora_B",
    "router": "in a softmax",
    "route_logits": "in a softmax",
    "modality": "read by the routers",
}
# What adapters may differ in: where they come from, and what is evaluated from the tensors.
FREE = ("provenance", "routing_table", "format_version", "peft_version", "base")


class _Adapter(NamedTuple):
    """A folder with its settings and tensors by file; a LoRA has up to two of each (mma/peft_folder.py)."""

    path: Path
    settings: dict[str, dict[str, Any]]
    files: dict[str, dict[str, Tensor]]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors."""
        return {name: tensor for tensors in self.files.values() for name, tensor in tensors.items()}


def average(
    folders: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = None,
    *,
    weighted_sum: bool = False,
) -> str | None:
    """Writes the weighted mean (the plain one without weights) of adapters of one base and the same settings.

    Tensors that all adapters share, and that do not enter linearly, stay as they are; the others are summed.
    Returns what `exactness` says. Raises AdapterError when the adapters do not fit together, and when the
    weights do not sum to 1 unless a `weighted_sum` is asked for.
    """
    if weights is None:
        weights = [1 / len(folders) for _ in folders]
    _check_request(folders, out, weights, weighted_sum)
    adapters = [_read(path) for path in folders]
    for other in adapters[1:]:
        _check_settings(adapters[0], other)
        _check_tensors(adapters[0], other)
    obstacle = exactness([adapter.tensors for adapter in adapters])
    provenance = {
        **_common([_provenance(adapter) for adapter in adapters]),
        "made": f"weighted {'sum' if weighted_sum else 'mean'} of {len(folders)} adapters",
        "sources": [str(path) for path in folders],
        "weights": list(weights),
        "exact": obstacle is None,
    }
    _write(out, adapters[0], provenance, _summed([adapter.tensors for adapter in adapters], weights))
    return obstacle


def exactness(adapters: Sequence[Mapping[str, Tensor]]) -> str | None:
    """Why a weighted sum of these adapters' tensors is not that of what they add; None where it is.

    It is where they differ in tensors that enter linearly only. Then, at every site and for the same input
    and route weights, the result adds the weighted sum of what the adapters add, and with weights that sum to
    1 its output is the weighted mean of theirs. The base between sites is not linear: of logits it is none.
    """
    differ = Counter(_kind(name) for name in adapters[0] if not _linear(name) and not _shared(name, adapters))
    if not differ:
        return None
    kinds = [
        f"{kind} ({count} tensors{', ' + OBSTACLES[kind] if kind in OBSTACLES else ''})"
        for kind, count in sorted(differ.items())
    ]
    return (
        f"not exact: the adapters also differ in {', '.join(kinds)}; "
        "the result is the weighted sum of their tensors, not of what they add to the base"
    )


def _kind(name: str) -> str:
    """What a tensor is, at whatever site: the last part of its name."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def _linear(name: str) -> bool:
    return _kind(name) in LINEAR


def _shared(name: str, adapters: Sequence[Mapping[str, Tensor]]) -> bool:
    first = adapters[0][name].double()
    return all(torch.equal(first, tensors[name].double()) for tensors in adapters[1:])


def _summed(adapters: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sums, added up in fp64 and kept in fp32."""
    summed = {}
    for name, tensor in adapters[0].items():
        total = tensor.double()
        if _linear(name) or not _shared(name, adapters):
            parts = zip(weights, adapters, strict=True)
            total = torch.stack([weight * tensors[name].double() for weight, tensors in parts]).sum(0)
        summed[name] = total.float()
        if not summed[name].isfinite().all():
            raise AdapterError(f"adapter: with these weights {name} does not stay finite; lower them")
    return summed


def _check_request(folders: Sequence[Path], out: Path, weights: Sequence[float], weighted_sum: bool) -> None:
    if len(folders) < 2:
        raise AdapterError(f"adapter: there are {len(folders)} adapters to average; name two or more")
    if len(weights) != len(folders):
        raise AdapterError(
            f"adapter: there are {len(weights)} weights for {len(folders)} adapters; give one each"
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise AdapterError(f"adapter: the weight {weight} is not a finite number")
    total = math.fsum(weights)
    if not weighted_sum and abs(total - 1) > 1e-6:
        raise AdapterError(
            f"adapter: the weights sum to {total:g}, a mean's to 1; change them, or ask for a weighted sum"
        )
    if out.resolve() in [path.resolve() for path in folders]:
        raise AdapterError(f"adapter: {out} is one of the adapters to average; choose another name")


def _check_settings(first: _Adapter, other: _Adapter) -> None:
    """Refuses adapters of other settings or of another base."""
    for file in sorted(first.settings.keys() | other.settings.keys()):
        a, b = (_settled(adapter.settings.get(file, {})) for adapter in (first, other))
        keys = sorted((key for key in a.keys() | b.keys() if a.get(key) != b.get(key)), key=_rank)
        if keys:
            named = ", ".join(
                f"{key} ({brief(a.get(key), 40)} and {brief(b.get(key), 40)})" for key in keys[:3]
            )
            raise AdapterError(
                f"adapter: {first.path} and {other.path} differ in {named}; "
                "average adapters of one base and the same settings"
            )


def _settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same in a table of settings.

    Empty values are left out: a setting that a later minor version added may be missing. Where digests tell
    which base it was, it may have lain at other places.
    """
    base = settings.get("base")
    parts = base.items() if isinstance(base, Mapping) else [("name", base)]
    named = {f"base.{k}": x for k, x in parts if not ("base_digest" in settings and isinstance(x, str))}
    kept = {key: x for key, x in {**settings, **named}.items() if key not in FREE and x}
    if isinstance(targets := kept.get("target_modules"), list):
        kept["target_modules"] = sorted(map(str, targets))  # a set to PEFT, which writes it in any order
    return kept


def _rank(key: str) -> tuple[bool, str]:
    return key != "peft_type", key  # another kind of adapter has other settings: that is no news


def _check_tensors(first: _Adapter, other: _Adapter) -> None:
    """Refuses adapters whose tensors have other names or shapes."""
    a, b = first.tensors, other.tensors
    for name in sorted(a.keys() ^ b.keys()):
        has, lacks = (first, other) if name in a else (other, first)
        raise AdapterError(
            f"adapter: {lacks.path} has no tensor {plain(name)}, {has.path} has one; "
            "average adapters with the same tensors"
        )
    for name, tensor in a.items():
        here, there = tuple(tensor.shape), tuple(b[name].shape)
        if here != there:
            raise AdapterError(
                f"adapter: {plain(name)} is {here} in {first.path} and {there} in {other.path}; "
                "average adapters with the same tensors"
            )


def _read(path: Path) -> _Adapter:
    """A folder, with tensors that can be summed."""
    description, tensors = folder.read(path)
    adapter = _Adapter(path, {folder.CONFIG: description}, {folder.TENSORS: tensors})
    if description["peft_type"] == LoraConfig.peft_type:
        if (path / peft_folder.OUR_CONFIG).is_file():
            adapter.settings[peft_folder.OUR_CONFIG] = folder.read_json(path / peft_folder.OUR_CONFIG)
        if (path / peft_folder.OUR_TENSORS).is_file():
            adapter.files[peft_folder.OUR_TENSORS] = folder.read_tensors(path / peft_folder.OUR_TENSORS)
    folder.check_tensors(path, adapter.tensors, {name: x.shape for name, x in adapter.tensors.items()})
    return adapter


def _provenance(adapter: _Adapter) -> Mapping[str, Any]:
    """Where an adapter comes from, as far as its folder says."""
    for settings in adapter.settings.values():
        if isinstance(provenance := settings.get("provenance"), Mapping):
            return provenance
    return {}


def _common(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all say of where they come from, but for scores: nobody has measured the average."""
    first, *others = tables
    return {
        key: value
        for key, value in first.items()
        if key != "scores" and all(key in table and table[key] == value for table in others)
    }


def _write(out: Path, like: _Adapter, provenance: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors in the format of another adapter, with their own provenance."""
    settings = {file: dict(table) for file, table in like.settings.items()}
    # PEFT's own table has no place for it: of a folder that PEFT wrote, the card alone tells.
    own = settings.get(peft_folder.OUR_CONFIG, settings[folder.CONFIG])
    card = model_card({**own, "provenance": provenance}, tensors)
    if (
        like.settings[folder.CONFIG]["peft_type"] != LoraConfig.peft_type
        or peft_folder.OUR_CONFIG in settings
    ):
        own["provenance"] = dict(provenance)
    own.pop("routing_table", None)  # evaluated from the tensors, on the base
    content = {file: folder.json_bytes(table) for file, table in settings.items()}
    content |= {
        file: folder.tensor_bytes({name: tensors[name] for name in names})
        for file, names in like.files.items()
    }
    folder.write_files(out, {**content, folder.CARD: card.encode()})
