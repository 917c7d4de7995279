"""A decoder from the files of a folder, tensor by tensor.

A tensor is read, put in the decoder's order, added to its delta, cast, moved and placed (or turned into its
quantised form) before the next one is read. Loading is strict both ways.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.hf_config import FAMILIES, read_hf_config
from models.hf_folder import open_hf
from models.meta_folder import open_meta
from models.offload import held_away, is_away, keep_away
from models.quantise import Quantise
from models.rope import Rotary

IGNORED = re.compile(r"rope\.freqs$|rotary_emb\.inv_freq$")  # computed here
# What a delta may say otherwise than its base: v0 of Vicuna has one more token.
DELTA_MAY_DIFFER = ("vocab_size", "max_positions", "norm_eps", "rope_theta", "rope_scaling", "tied", "family")


def load_decoder(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    delta: Path | None = None,
    quantise: Quantise | None = None,
    offload: int = 0,
) -> Decoder:
    """The decoder in a Meta or Hugging Face folder.

    A delta is a Hugging Face folder whose tensors are added (Vicuna v0 and v1.1); its rows beyond the base's
    vocabulary are left out. `quantise` is asked for every linear layer of a block, never for embedding,
    output layer or norms. The weights of `offload` blocks stay in the host's memory (models/offload.py).
    Raises ModelError when a file is missing, unreadable or does not fit the folder's own description, and for
    a delta of another model.
    """
    source = open_folder(folder)
    added = None if delta is None else _open_delta(delta, source)
    with torch.device("meta"):
        decoder = Decoder(source.config)
    wanted = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    _check_names(source, wanted)
    away = held_away(offload, source.config.n_layers)
    for name, shape in wanted.items():
        tensor = source.tensor(name, shape)
        if added is not None:
            tensor = _plus_delta(added, name, tensor)
        there = "cpu" if is_away(name, shape, away) else device
        _place(decoder, name, tensor.to(device=there, dtype=dtype), quantise)
        del tensor  # it would be held while the next one is read
    if source.config.tied:
        decoder.head.weight = decoder.embed.weight
    if away:
        keep_away(decoder, away, torch.device(device))
    config = source.config
    decoder.rotary = Rotary(config.turning, config.rope_theta, config.rope_scaling).to(device)
    return decoder.eval()


def read_config(folder: Path) -> DecoderConfig:
    """The shape of the decoder in a folder, without reading any weight."""
    if (folder / "config.json").is_file() and not (folder / "params.json").is_file():
        return read_hf_config(folder)
    return open_folder(folder).config


def open_folder(folder: Path) -> Checkpoint:
    """The weights in a Meta or Hugging Face folder, none of them read yet."""
    if (folder / "params.json").is_file():
        return open_meta(folder)
    if (folder / "config.json").is_file():
        return open_hf(folder)
    if not folder.is_dir():
        raise ModelError(f"weights: there is no folder {folder}; set base.decoder to the decoder's folder")
    raise ModelError(f"weights: {folder} has neither params.json (Meta) nor config.json (Hugging Face)")


def _check_names(source: Checkpoint, wanted: dict[str, torch.Size]) -> None:
    """Every tensor that is wanted is there, and no other; a tied output layer may be stored again."""
    names = {source.name_of(name) for name in wanted}
    if missing := sorted(names - source.held):
        raise ModelError(f"weights: {source.folder} has no tensor {missing[0]}; the files are incomplete")
    known = names | {source.name_of("head.weight")}
    if unknown := sorted(name for name in source.held - known if not IGNORED.search(name)):
        family = FAMILIES[source.config.family]
        raise ModelError(
            f"weights: {source.folder} has {len(unknown)} tensors no {family} decoder has: {unknown[:3]}"
        )


def _place(decoder: Decoder, name: str, tensor: Tensor, quantise: Quantise | None) -> None:
    stem, _, leaf = name.rpartition(".")
    module = decoder.get_submodule(stem)
    if (
        quantise is not None
        and leaf == "weight"
        and stem.startswith("blocks.")
        and isinstance(module, nn.Linear)
    ):
        parent, _, child = stem.rpartition(".")
        setattr(decoder.get_submodule(parent), child, quantise(module, tensor))
    else:
        setattr(module, leaf, nn.Parameter(tensor))


def _open_delta(delta: Path, base: Checkpoint) -> Checkpoint:
    if not (delta / "config.json").is_file():
        raise ModelError(f"weights: the delta {delta} is no Hugging Face folder, it has no config.json")
    added = open_hf(delta)
    for field in fields(DecoderConfig):
        ours, theirs = getattr(base.config, field.name), getattr(added.config, field.name)
        if ours != theirs and field.name not in DELTA_MAY_DIFFER:
            raise ModelError(
                f"weights: the delta {delta} is of another model than {base.folder}: "
                f"its {field.name} is {theirs!r}, not {ours!r}"
            )
    if added.config.vocab_size < base.config.vocab_size:
        raise ModelError(
            f"weights: the delta {delta} has {added.config.vocab_size} tokens, fewer than the "
            f"{base.config.vocab_size} of {base.folder}; it is of another model"
        )
    with torch.device("meta"):
        wanted = {name: parameter.shape for name, parameter in Decoder(added.config).named_parameters()}
    _check_names(added, wanted)
    return added


def _plus_delta(added: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """The sum, in fp32: what 16-bit files are added in makes a difference of one rounding."""
    shape = tensor.shape
    if name in ("embed.weight", "head.weight"):
        shape = torch.Size((added.config.vocab_size, shape[1]))
    return tensor.float() + added.tensor(name, shape)[: len(tensor)].float()
