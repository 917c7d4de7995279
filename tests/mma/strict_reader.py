"""A second, strict reader of adapter folders, from docs/format.md and the safetensors format alone.

It says how a loaded adapter differs from what the files hold. Slow, plain Python, and shares no code with the
reader it judges.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OUR_CONFIG, OUR_TENSORS = (
    "mma_config.json",
    "mma_model.safetensors",
)  # beside a LoRA, which has PEFT's own pair
ABOUT = {
    "peft_type",
    "format_version",
    "base",
    "preprocess",
    "template",
    "sites",
    "provenance",
    "routing_table",
}
ABOUT |= {"base_digest", "tower_digest", "tokenizer_digest"}
THEIRS = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "bias": "lora_bias",
}
WIDTHS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
Stored = tuple[list[int], list[float]]  # shape and values


class Unreadable(Exception):
    """The folder holds no adapter, and should have been refused."""


def difference(
    path: Path, held: Mapping[str, Tensor], settings: dict[str, Any], names: Mapping[str, str]
) -> str:
    """What of an adapter is not as the files say; empty: nothing. Names: those of PEFT's layers here."""
    about = table(path / CONFIG)
    stored = tensors(path / TENSORS)
    if about.get("peft_type") != "LORA":
        return different_settings(settings, wanted_of(about, settings)) or different_tensors(held, stored)
    stored = {renamed(name, names): value for name, value in stored.items()}
    if (path / OUR_TENSORS).is_file():
        parts = tensors(path / OUR_TENSORS)
        if stored.keys() & parts.keys():
            raise Unreadable("a tensor is in both files")
        stored |= parts
    ours = table(path / OUR_CONFIG) if (path / OUR_CONFIG).is_file() else {}
    if ours:
        check_version(ours)
    found = different_settings(settings, {key: value for key, value in ours.items() if key in settings})
    effect = {**settings, "alpha": settings["alpha"] or 2 * settings["r"]}
    wanted = {key: about[name] for key, name in THEIRS.items() if about.get(name) is not None}
    return found or different_settings(effect, wanted) or different_tensors(held, stored)


def wanted_of(about: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a description; a newer one may have others, an older one lacks the newest ones."""
    newer = check_version(about)
    wanted = {key: value for key, value in about.items() if key not in ABOUT}
    if (unknown := wanted.keys() - settings.keys()) and not newer:
        raise Unreadable(f"unknown setting {min(unknown)!r}")
    if lacking := settings.keys() - wanted.keys() - {"layers", "projector", "tuned"}:
        raise Unreadable(f"no {min(lacking)}")
    return {key: value for key, value in wanted.items() if key in settings}


def different_settings(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first setting that is not as it was stored; 8 and 8.0 are the same, 1 and true are not."""
    for key, value in wanted.items():
        if settings[key] != value or isinstance(settings[key], bool) != isinstance(value, bool):
            return f"{key} is {settings[key]!r}, the file has {value!r}"
    return ""


def different_tensors(held: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> str:
    """The first tensor that is not as it was stored."""
    if held.keys() != stored.keys():
        return f"tensors {sorted(held.keys() ^ stored.keys())[:3]} are held or stored, not both"
    for name, (shape, values) in stored.items():
        if list(held[name].shape) != shape:
            return f"{name} is {list(held[name].shape)}, the file has {shape}"
        if held[name].flatten().tolist() != values:
            return f"{name} has other values than the file"
    return ""


def renamed(name: str, names: Mapping[str, str]) -> str:
    """The name here of one of PEFT's tensors."""
    for theirs, ours in names.items():
        if name.startswith(f"{theirs}.lora_"):
            return ours + name.removeprefix(theirs)
    raise Unreadable(f"{name!r} is no layer's")


def check_version(content: Mapping[str, Any]) -> bool:
    """Whether the format is newer than 1.2; another major version is not readable."""
    version = content.get("format_version")
    major, dot, minor = version.partition(".") if isinstance(version, str) else ("", "", "")
    if major != "1" or not dot or not minor.isascii() or not minor.isdecimal():
        raise Unreadable(f"format version {version!r}")
    return int(minor) > 2


def table(file: Path) -> dict[str, Any]:
    """The table in a JSON file."""
    return table_in(content_of(file))


def content_of(file: Path) -> bytes:
    """The bytes of a file; the real ones here have some kilobytes."""
    if not file.is_file() or file.stat().st_size > 2**26:
        raise Unreadable("no file of any use")
    return file.read_bytes()


def table_in(content: bytes) -> dict[str, Any]:
    """The table in a JSON text; every key once."""
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    except ValueError as error:
        raise Unreadable(f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreadable("no table")
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of which no key comes twice."""
    if len(dict(pairs)) < len(pairs):
        raise Unreadable("a key comes twice")
    return dict(pairs)


def tensors(file: Path) -> dict[str, Stored]:
    """The tensors in a safetensors file: no gap between them, no byte left over, every value finite."""
    content = content_of(file)
    if len(content) < 8:
        raise Unreadable("no header")
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise Unreadable("a header longer than the file")
    header, data = table_in(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    found, place = {}, 0
    for name, (kind, shape, begin, end) in sorted(map_of(header).items(), key=lambda item: item[1][2:]):
        if begin != place or end - begin != math.prod(shape) * WIDTHS[kind]:
            raise Unreadable(f"{name!r} does not lie where it should")
        place = end
        found[name] = shape, values_of(kind, data[begin:end])
        if not all(map(math.isfinite, found[name][1])):
            raise Unreadable(f"{name!r} is not finite")
    if place != len(data):
        raise Unreadable("bytes of no tensor")
    return found


def map_of(header: Mapping[str, Any]) -> dict[str, tuple[str, list[int], int, int]]:
    """Type, shape and place by name."""
    found = {}
    for name, info in header.items():
        try:
            kind, shape, (begin, end) = info["dtype"], info["shape"], info["data_offsets"]
            fits = kind in WIDTHS and all(type(x) is int and x >= 0 for x in (*shape, begin, end))
        except (TypeError, KeyError, ValueError) as error:
            raise Unreadable(f"{name!r} is not described") from error
        if not fits:
            raise Unreadable(f"{name!r} is described wrongly")
        found[name] = kind, shape, begin, end
    return found


def values_of(kind: str, data: bytes) -> list[float]:
    """The values as they are in 32 bits."""
    count = len(data) // WIDTHS[kind]
    if kind == "BF16":  # the upper half of a float
        words = struct.unpack(f"<{count}H", data)
        return list(struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(word << 16 for word in words))))
    values = struct.unpack(f"<{count}{dict(F16='e', F32='f', F64='d')[kind]}", data)
    try:
        return list(struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *values)))
    except OverflowError as error:
        raise Unreadable("a value is too large for 32 bits") from error
