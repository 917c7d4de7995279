"""The file of a LaVIN checkpoint: a pickle in a zip, opened so that nothing in it can act.

It is followed without making anything first, and then read through torch's restricted loader; of all classes
only the plain argparse namespace is let in. Knows neither LaVIN's tensors nor its settings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mma.config import brief, plain
from mma.errors import AdapterError

GLOBALS = {  # all that a checkpoint names
    *("argparse Namespace", "collections OrderedDict", "__builtin__ set", "torch Size", "torch device"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short")),
    *(f"torch {kind}Storage" for kind in ("Char", "Byte", "Bool")),
}
GROWING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # change a value in place
LONGEST = 2**21  # bytes of the pickle; that of the largest model with its optimizer has a third of it
MOST_WORK = 10  # values handled by byte of the pickle; a checkpoint takes two


def read(path: Path) -> object:
    """What is stored in a checkpoint; its tensors are views of the file.

    Raises AdapterError when it is damaged, or is something else.
    """
    if not os.path.isfile(path):
        raise AdapterError(f"adapter: there is no file {path}; name a checkpoint of LaVIN's training")
    try:
        _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped: no storage is larger than the file then, and optimizer state takes no memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can make its reader raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # whose first line is about torch's versions
            reason = "torch's restricted loader refuses it"
        raise AdapterError(
            f"adapter: {path} cannot be read, it may be truncated or no LaVIN checkpoint "
            f"({plain(reason, 160)}); fetch it again"
        ) from error


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises AdapterError when it cannot be written, or when there is something of this name: a checkpoint of
    LaVIN's training holds optimizer state that would be lost.
    """
    if os.path.lexists(path):
        raise AdapterError(f"adapter: {path} exists and would be lost; choose another name")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError as error:
        raise AdapterError(f"adapter: {path} cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _check_archive(path: Path) -> None:
    """Refuses a file that is damaged, or unpacks to more than it is, or names what a checkpoint does not."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it unpacks to more than it is")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} does not have its checksum")
        names = [entry.filename for entry in entries]
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a TorchScript archive")
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it holds {len(pickles)} pickles")
        if archive.getinfo(pickles[0]).file_size > LONGEST:
            raise ValueError("its pickle is too long")
        _follow(archive.read(pickles[0]))


def _follow(code: bytes) -> None:
    """Follows a pickle without making anything: refuses foreign names, and more work than a checkpoint takes.

    A value's size counts what is in it as often as it is in it, so that a small file which unfolds is seen.
    """
    stack: list[list[int] | None] = []  # sizes of the values; None is a mark
    memo: dict[Any, list[int] | None] = {}
    work = 0
    for op, argument, _ in pickletools.genops(code):
        if op.name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"it names {brief(argument)}, which no checkpoint does")
        if op.name == "PROTO" and argument != 2:
            raise ValueError(f"it is a pickle of protocol {argument}, torch writes 2")
        if op.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif op.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif op.name == "MARK":
            stack.append(None)
        else:
            taken = _taken(stack, op)
            size = 1 + sum(value[0] for value in taken)
            work += size
            if work > MOST_WORK * len(code):
                raise ValueError("it unfolds beyond measure")
            if op.name in GROWING:
                taken[0][0] = size
                stack.append(taken[0])
            elif op.stack_after:
                stack.append([size])


def _taken(stack: list[list[int] | None], op: pickletools.OpcodeInfo) -> list[list[int]]:
    """Takes what an operation uses from the stack."""
    taken: list[list[int]] = []
    kinds = op.stack_before
    if pickletools.markobject in kinds:
        while (value := stack.pop()) is not None:
            taken.append(value)
        kinds = kinds[: kinds.index(pickletools.markobject)]
    for _ in kinds:
        if (value := stack.pop()) is None:
            raise ValueError("a mark stands where a value should")
        taken.append(value)
    return taken[::-1]
