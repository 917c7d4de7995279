"""The adapter folder: `adapter_config.json`, `adapter_model.safetensors`, `README.md` (docs/format.md).

Written whole to a temporary name and then put in place, so that a folder under its own name is always
complete. Read strictly: what does not fit is refused with a message that names it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mma.card import model_card
from mma.config import CONFIGS, AdapterConfig, LoraConfig, MMAConfig, brief, plain
from mma.errors import AdapterError
from mma.tensor_file import views

FORMAT_VERSION = "1.2"
CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
IDENTITY = ("base_digest", "tower_digest", "tokenizer_digest")
# What is read before anything is known of a file. A real description has some kilobytes, and so has a header.
LARGEST_JSON, LARGEST_HEADER, DEEPEST = 2**20, 2**22, 32
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What a description holds beside the settings of the adapter.
ABOUT = (
    *("peft_type", "format_version", "base", *IDENTITY, "preprocess", "template"),
    *("sites", "routing_table", "provenance"),
)


def write(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes an adapter folder; after a crash the old one is still there, whole.

    Raises AdapterError when it cannot be written, or when something else has its name.
    """
    content = {"peft_type": MMAConfig.peft_type, "format_version": FORMAT_VERSION, **description}
    files = {
        TENSORS: tensor_bytes(tensors),
        CARD: model_card(content, tensors).encode(),
        CONFIG: json_bytes(content),
    }
    write_files(path, files)


def write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of these files, whole or not at all; see `write`."""
    with write_folder(path) as draft:
        for name, content in files.items():
            _write_file(draft / name, content)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Gives a draft folder to write into: in place when the block ends well, gone otherwise."""
    path = Path(os.path.realpath(path))
    if path.exists() and not _replaceable(path):
        raise AdapterError(f"adapter: {path} exists and is not an adapter folder; choose another name")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove_dead_drafts(path)
    try:
        draft.mkdir(parents=True)
        yield draft
        _put_in_place(draft, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AdapterError(
                f"adapter: the disk is full, {path} was not written; free some space"
            ) from error
        raise AdapterError(f"adapter: {path} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={"format": "pt"})


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The content of a JSON file: sorted keys, indented."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors in an adapter folder."""
    description = read_description(path)
    return description, read_tensors(path / TENSORS)


def read_tensors(file_path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file of an adapter folder."""
    if not os.path.isfile(file_path):
        raise AdapterError(f"adapter: {file_path.parent} has no {file_path.name}; the folder is incomplete")
    try:
        header, start = _read_header(file_path)
        with safe_open(file_path, framework="pt"):  # checks types, shapes and places
            # Nothing of a tensor is read before its shape is compared with the settings.
            return views(file_path, header, start)
    # PyTorch raises the last two for shapes and files that no machine holds.
    except (SafetensorError, OSError, ValueError, RecursionError, TypeError, RuntimeError) as error:
        raise AdapterError(
            f"adapter: {file_path} cannot be read, it may be truncated ({plain(error, 160)}); fetch it again"
        ) from error


def read_description(path: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`, of a kind and format this version reads."""
    if not os.path.isfile(path / CONFIG):
        raise AdapterError(f"adapter: {path} has no {CONFIG}; name an adapter folder")
    content = read_json(path / CONFIG)
    kind = content.get("peft_type")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise AdapterError(
            f"adapter: {path / CONFIG} has peft_type {brief(kind)}, not one of {', '.join(CONFIGS)}; "
            "name one made here"
        )
    if kind == LoraConfig.peft_type:  # PEFT's own format, which has no version
        return content
    check_version(path, content)
    return content


def check_version(path: Path, description: Mapping[str, Any]) -> None:
    """Refuses a description of another major version of the format."""
    version = description.get("format_version")
    major = FORMAT_VERSION.partition(".")[0]
    if not isinstance(version, str) or not re.fullmatch(rf"{major}\.[0-9]{{1,6}}", version):
        raise AdapterError(
            f"adapter: {path} has format version {plain(version)}, this program reads {FORMAT_VERSION}; "
            "install a newer version"
        )


def read_json(file_path: Path) -> dict[str, Any]:
    """The table in a JSON file."""
    try:
        size = file_path.stat().st_size
        if size > LARGEST_JSON:
            raise ValueError(f"{size} bytes are too many for settings")
        with file_path.open("rb") as file:
            content = _parsed(file.read(size))
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"adapter: {file_path} is not JSON ({plain(error, 160)}); save or fetch it again"
        ) from error
    except OSError as error:
        raise AdapterError(f"adapter: {file_path} cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise AdapterError(f"adapter: {file_path} holds no table of settings; save or fetch it again")
    return content


def config_of(path: Path, description: Mapping[str, Any], identity: Mapping[str, Any]) -> AdapterConfig:
    """The adapter's settings in its description: all that is neither about the base nor about the folder.

    A folder of a newer minor version may hold settings this one does not know; they are left out.
    """
    kind = CONFIGS[description["peft_type"]]
    about = {*ABOUT, *identity}
    if _minor(description) > _minor({"format_version": FORMAT_VERSION}):
        about |= description.keys() - {field.name for field in fields(kind)}
    try:
        return kind.from_dict({key: value for key, value in description.items() if key not in about})
    except AdapterError as error:
        raise AdapterError(f"{error} (in {path / CONFIG})") from error


def _minor(description: Mapping[str, Any]) -> int:
    """The minor number of a format version."""
    return int(description["format_version"].partition(".")[2])


def check_identity(path: Path, description: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuses an adapter of another decoder, tower or tokenizer, or one whose samples were made otherwise."""
    for key in IDENTITY:
        wanted, here = description.get(key), identity.get(key)
        if key in identity and wanted != here:
            part = key.removesuffix("_digest").replace("base", "decoder")
            raise AdapterError(
                f"adapter: {path} was made for another {part} ({_short(wanted)}, here is {_short(here)}); "
                f"load the base it names: {brief(description.get('base'), 400)}"
            )
    for key in ("template", "preprocess"):
        if key in identity and key in description:
            wanted, here = description[key], json.loads(json.dumps(identity[key]))
            if wanted != here:
                raise AdapterError(
                    f"adapter: {path} was trained with {key} {plain(wanted, 120)}, here it is "
                    f"{plain(here, 160)}; load the base it names: {brief(description.get('base'), 200)}"
                )


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], *, complete: bool = True
) -> None:
    """Refuses a folder whose tensors are not exactly those of the settings, or not finite.

    Where the expected ones are not complete, only their types and shapes are looked at.
    """
    if missing := sorted(expected.keys() - tensors.keys()):
        names = ", ".join(missing[:3])
        raise AdapterError(f"adapter: {path} lacks {len(missing)} tensors: {names}; save or fetch it again")
    if complete and (extra := sorted(tensors.keys() - expected.keys())):
        names = ", ".join(map(plain, extra[:3]))
        raise AdapterError(
            f"adapter: {path} has {len(extra)} tensors too many: {names}; save or fetch it again"
        )
    for name, shape in expected.items():
        if tensors[name].dtype not in FLOATS:
            raise AdapterError(
                f"adapter: {name} in {path} is of {tensors[name].dtype}, not a floating type of 16 bits or "
                "more; save or fetch it again"
            )
        if tensors[name].shape != shape:
            raise AdapterError(
                f"adapter: {name} in {path} is {brief(tuple(tensors[name].shape))}, but the settings ask for "
                f"{tuple(shape)}; put back the {CONFIG} it was saved with"
            )
    for name in expected if complete else ():
        if not tensors[name].float().isfinite().all():
            raise AdapterError(
                f"adapter: {name} in {path} is not finite, its training has failed; use an earlier checkpoint"
            )


def _short(digest: object) -> str:
    return plain(digest)[:12]


def _read_header(file_path: Path) -> tuple[dict[str, Any], int]:
    """A header and where it ends; refused if it is too long to be one, or names a tensor twice."""
    with file_path.open("rb") as file:
        size = min(file_path.stat().st_size, 8)
        length = int.from_bytes(file.read(size), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = _parsed(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is no table")
    return header, 8 + length


def _parsed(content: bytes) -> Any:
    """The value of a JSON text; raises ValueError for what is none, is ambiguous or nested without end."""
    value = json.loads(content.decode(), object_pairs_hook=_table)
    level = [value]
    for _ in range(DEEPEST):
        inner = (x.values() if isinstance(x, dict) else x for x in level if isinstance(x, (dict, list)))
        level = list(chain.from_iterable(inner))
    if level:
        raise ValueError(f"nested deeper than {DEEPEST}")
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{brief(key)} is there twice")
        table[key] = value
    return table


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
