"""The adapter folder: `adapter_config.json`, `adapter_model.safetensors`, `README.md` (docs/format.md).

Written whole to a temporary name and then put in place, so that a folder under its own name is always
complete. Read strictly: what does not fit is refused with a message that names it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mma.card import model_card
from mma.config import MMAConfig
from mma.errors import AdapterError

PEFT_TYPE = "MMA"
FORMAT_VERSION = "1.0"
CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
IDENTITY = ("base_digest", "tower_digest", "tokenizer_digest")
# What a description holds beside the settings of the adapter.
ABOUT = ("peft_type", "format_version", "base", *IDENTITY, "preprocess", "template", "sites", "provenance")


def write(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes an adapter folder; after a crash the old one is still there, whole.

    Raises AdapterError when it cannot be written, or when something else has its name.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not _replaceable(path):
        raise AdapterError(f"adapter: {path} exists and is not an adapter folder; choose another name")
    content = {"peft_type": PEFT_TYPE, "format_version": FORMAT_VERSION, **description}
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove_dead_drafts(path)
    try:
        draft.mkdir(parents=True)
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        _write_file(draft / TENSORS, save(plain, metadata={"format": "pt"}))
        _write_file(draft / CARD, model_card(content, plain).encode())
        _write_file(draft / CONFIG, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
        _put_in_place(draft, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AdapterError(
                f"adapter: the disk is full, {path} was not written; free some space"
            ) from error
        raise AdapterError(f"adapter: {path} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors in an adapter folder."""
    description = read_description(path)
    file_path = path / TENSORS
    if not file_path.is_file():
        raise AdapterError(f"adapter: {path} has no {TENSORS}; the folder is incomplete")
    try:
        with safe_open(file_path, framework="pt") as file:
            return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"adapter: {file_path} cannot be read, it may be truncated ({error}); fetch it again"
        ) from error


def read_description(path: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`, of a format this version reads."""
    file_path = path / CONFIG
    if not file_path.is_file():
        raise AdapterError(f"adapter: {path} has no {CONFIG}; name an adapter folder")
    try:
        content = json.loads(file_path.read_text())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"adapter: {file_path} is not JSON ({error}); save or fetch it again") from error
    except OSError as error:
        raise AdapterError(f"adapter: {file_path} cannot be read ({error.strerror})") from error
    kind = content.get("peft_type") if isinstance(content, dict) else None
    if kind != PEFT_TYPE:
        raise AdapterError(
            f"adapter: {file_path} has peft_type {kind!r}, not {PEFT_TYPE!r}; name one made here"
        )
    version = str(content.get("format_version"))
    if version.split(".", maxsplit=1)[0] != FORMAT_VERSION.split(".", maxsplit=1)[0]:
        raise AdapterError(
            f"adapter: {path} has format version {version}, this program reads {FORMAT_VERSION}; "
            "install a newer version"
        )
    return dict(content)


def config_of(path: Path, description: Mapping[str, Any], identity: Mapping[str, Any]) -> MMAConfig:
    """The adapter's settings in its description: all that is neither about the base nor about the folder.

    A folder of a newer minor version may hold settings this one does not know; they are left out.
    """
    about = {*ABOUT, *identity}
    if str(description["format_version"]) != FORMAT_VERSION:
        about |= description.keys() - {field.name for field in fields(MMAConfig)}
    try:
        return MMAConfig.from_dict({key: value for key, value in description.items() if key not in about})
    except AdapterError as error:
        raise AdapterError(f"{error} (in {path / CONFIG})") from error


def check_identity(path: Path, description: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuses an adapter of another decoder, tower or tokenizer, or one whose samples were made otherwise."""
    for key in IDENTITY:
        wanted, here = description.get(key), identity.get(key)
        if key in identity and wanted != here:
            part = key.removesuffix("_digest").replace("base", "decoder")
            raise AdapterError(
                f"adapter: {path} was made for another {part} ({_short(wanted)}, here is {_short(here)}); "
                f"load the base it names: {description.get('base', 'not recorded')}"
            )
    for key in ("template", "preprocess"):
        if key in identity and key in description:
            wanted, here = description[key], json.loads(json.dumps(identity[key]))
            if wanted != here:
                raise AdapterError(
                    f"adapter: {path} was trained with {key} {wanted}, here it is {here}; "
                    f"load the base it names: {description.get('base', 'not recorded')}"
                )


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Refuses a folder whose tensors are not exactly those of the settings."""
    if missing := sorted(expected.keys() - tensors.keys()):
        names = ", ".join(missing[:3])
        raise AdapterError(f"adapter: {path} lacks {len(missing)} tensors: {names}; save or fetch it again")
    if extra := sorted(tensors.keys() - expected.keys()):
        names = ", ".join(extra[:3])
        raise AdapterError(
            f"adapter: {path} has {len(extra)} tensors too many: {names}; save or fetch it again"
        )
    for name, shape in expected.items():
        if not tensors[name].is_floating_point():
            raise AdapterError(
                f"adapter: {name} in {path} is of {tensors[name].dtype}, not a floating type; "
                "save or fetch it again"
            )
        if tensors[name].shape != shape:
            raise AdapterError(
                f"adapter: {name} in {path} is {tuple(tensors[name].shape)}, but the settings ask for "
                f"{tuple(shape)}; put back the {CONFIG} it was saved with"
            )


def _short(digest: object) -> str:
    return str(digest)[:12]


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replaceable(path: Path) -> bool:
    """Whether nothing but an adapter is lost with this folder."""
    return path.is_dir() and ((path / CONFIG).is_file() or not any(path.iterdir()))


def _remove_dead_drafts(path: Path) -> None:
    """Removes what saves of this folder left behind that were killed, and this process's own draft."""
    for draft in path.parent.glob(f".{path.name}.*.part"):
        writer = draft.name.split(".")[-2]
        if writer == str(os.getpid()) or (writer.isdigit() and not _alive(int(writer))):
            shutil.rmtree(draft, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _put_in_place(draft: Path, path: Path) -> None:
    """Moves the draft to its name; an old folder there is exchanged for it in one step."""
    if not path.exists():
        draft.rename(path)
    elif _exchange(draft, path):
        shutil.rmtree(draft)
    else:  # the file system cannot exchange: two steps, the old folder kept beside until the new is there
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(old)
        try:
            draft.rename(path)
        except BaseException:
            old.rename(path)
            raise
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders in one atomic step (Linux renameat2); False where that is not possible."""
    at_cwd, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    result = rename(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange)
    return bool(result == 0)
