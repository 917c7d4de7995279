"""An opened folder of weights, whatever its layout, and the check of its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.decoder_config import DecoderConfig
from models.errors import ModelError


@dataclass(frozen=True)
class Checkpoint:
    """What a folder describes, which tensors it has, and how one is read."""

    folder: Path
    config: DecoderConfig
    held: frozenset[str]  # names as in the files
    name_of: Callable[[str], str]  # a tensor's name in the decoder -> in the files
    read: Callable[[str, torch.Size], Tensor]  # (name in the files, expected shape) -> the whole tensor
    arrange: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor  # name and tensor -> as the decoder's

    def tensor(self, name: str, shape: torch.Size) -> Tensor:
        """One tensor of the decoder, rotary pairs being (j, j + E/2)."""
        there = self.name_of(name)
        tensor = self.read(there, shape)
        if not tensor.is_floating_point():
            raise ModelError(
                f"weights: {there} in {self.folder} is {tensor.dtype}; unquantised weights are needed"
            )
        return self.arrange(name, tensor)


def positive(path: Path, values: Mapping[str, Any], name: str) -> Any:
    """A number above 0 of a description."""
    if name not in values:
        raise ModelError(f"weights: {path} has no {name!r}; fetch it again")
    value = values[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelError(f"weights: {path} has {name} {value!r}, which is no number above 0; fetch it again")
    return value


def checked_config(path: Path, **values: Any) -> DecoderConfig:
    """The shape of a decoder from the values of a description, which may hold anything."""
    for field in fields(DecoderConfig):
        value = values.get(field.name, field.default)
        if field.type not in ("bool", "int", "float") or field.name == "rotary_dim":
            continue  # what is no number, and the one that may be 0, comes from the reader itself
        if field.type == "bool":
            fits = isinstance(value, bool)
        else:
            fits = positive(path, {field.name: value}, field.name) and (
                field.type == "float" or isinstance(value, int)
            )
        if not fits:
            raise ModelError(f"weights: {path} has {field.name} {value!r}, which is no {field.type}")
    try:
        return DecoderConfig(**values)
    except ValueError as error:
        raise ModelError(f"weights: {path} describes no decoder ({error}); fetch it again") from error
