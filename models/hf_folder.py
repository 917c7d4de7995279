"""Decoders in Hugging Face's layout: `config.json`, and safetensors or PyTorch files, maybe with an index."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from models.checkpoint import Checkpoint
from models.errors import ModelError
from models.hf_config import is_llava, read_hf_config
from models.tensor_files import Reopened, map_tensors, open_safetensors, read_json
from models.weight_names import hf_name

# Parts of LLaVA beside its decoder.
BESIDE = re.compile(r"(model\.)?(vision_tower|multi_modal_projector|mm_projector|image_newline)(\.|$)")
SINGLE = ("model.safetensors", "pytorch_model.bin")  # the first that is there counts; so do its shards


class TensorFolder:
    """The tensors of a folder, each read when it is asked for; safetensors come before PyTorch files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self._open = Reopened(_open)

    def read(self, name: str) -> Tensor:
        """The tensor of that name, which must be among `files`: a part of the mapped file."""
        path = self.folder / self.files[name]
        tensor = _get(self._open(path), path, name)
        self._open.count(tensor)
        return tensor


def open_hf(folder: Path) -> Checkpoint:
    """The decoder's tensors in a folder, which may hold a whole LLaVA."""
    config = read_hf_config(folder)
    tensors = TensorFolder(folder)
    joined = is_llava(folder)
    held = frozenset(name for name in tensors.files if not (joined and BESIDE.match(name)))

    def read(name: str, shape: torch.Size) -> Tensor:
        tensor = tensors.read(name)
        if tensor.shape != shape:
            raise ModelError(
                f"weights: {name} in {folder / tensors.files[name]} is {tuple(tensor.shape)}, "
                f"but config.json asks for {tuple(shape)}"
            )
        return tensor

    inside = _place(held)
    return Checkpoint(folder, config, held, lambda name: inside(hf_name(config, name)), read)


def _place(held: frozenset[str]) -> Callable[[str], str]:
    """From a decoder's own tensor names to those it has inside a LLaVA, which changed over the years."""
    if any(name.startswith("language_model.") for name in held):
        return lambda name: f"language_model.{name}"
    if any(name.startswith("model.language_model.") for name in held):
        return lambda name: re.sub(r"^model\.", "model.language_model.", name)
    return lambda name: name


def _files(folder: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    for single in SINGLE:
        index = folder / f"{single}.index.json"
        if index.is_file():
            files = read_json(index).get("weight_map")
            if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
                raise ModelError(
                    f"weights: {index} has no table weight_map of tensor to file; fetch it again"
                )
            for name in sorted(set(files.values())):
                if not (folder / name).is_file():
                    raise ModelError(f"weights: there is no file {folder / name}, but {index.name} says so")
            return files
        if (folder / single).is_file():
            return dict.fromkeys(_open(folder / single).keys(), single)
    raise ModelError(
        f"weights: {folder} has config.json but no model.safetensors and no "
        "pytorch_model.bin, nor an index of shards"
    )


def _open(path: Path) -> Any:
    return open_safetensors(path) if path.suffix == ".safetensors" else map_tensors(path)


def _get(file: Any, path: Path, name: str) -> Tensor:
    try:
        tensor: Tensor = file[name] if isinstance(file, dict) else file.get_tensor(name)
    except (SafetensorError, KeyError) as error:
        raise ModelError(f"weights: {path} has no tensor {name}, but the index says so") from error
    return tensor
