"""Files of settings and of tensors: read without unpickling anything but tensors and plain containers."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import ModelError

MAPPED = 64 * 2**20  # bytes after which a file is opened anew


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table of settings."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"weights: {path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"weights: {path} does not hold a table of settings")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors or PyTorch file, the latter through the restricted loader."""
    if path.suffix == ".safetensors":
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return map_tensors(path)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one PyTorch file, mapped into memory: a tensor is read when it is used."""
    content = _unpickle(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ModelError(f"weights: {path} does not hold a plain table of tensors")
    return content


def open_safetensors(path: Path) -> Any:
    """A safetensors file, for reading one tensor after the other."""
    if not path.is_file():
        raise ModelError(f"weights: there is no file {path}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"weights: {path} cannot be read, it may be truncated ({error}); fetch it again"
        ) from error


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"weights: there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"weights: {path} cannot be read: it holds more than tensors; save its tensors alone"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = re.split(r"\n|\. ", str(error), maxsplit=1)[0]
        raise ModelError(
            f"weights: {path} cannot be read, it may be truncated ({reason}); fetch it again"
        ) from error


class Reopened:
    """Opens mapped files, and opens them anew after so many bytes of them.

    What was read of a mapped file counts as memory until the file is closed, also where a tensor was cast or
    moved to a device since.
    """

    def __init__(self, opener: Callable[[Path], Any]) -> None:
        self._opened = cache(opener)
        self._read = 0

    def __call__(self, path: Path) -> Any:
        """The opened file."""
        if self._read > MAPPED:
            self._opened.cache_clear()
            self._read = 0
        return self._opened(path)

    def count(self, tensor: Tensor) -> None:
        """A tensor has been read."""
        self._read += tensor.nbytes
