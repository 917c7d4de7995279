"""From settings or an adapter folder to a system ready to train or answer.

The second of the two files where models meet adapters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mma import MMAConfig
from mma.digest import digest
from mma.hub import find
from mma.storage import describe
from models.errors import ModelError
from models.multimodal import MultimodalLM
from models.tokenizer import SentencePieceTokenizer
from models.tower import (
    Preprocess,
    Tower,
    find_tower_weights,
    load_tower_weights,
    preprocess_of,
    preprocess_settings,
    read_spec,
)
from models.weights import load_decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BaseSettings:
    """The frozen base of a run.

    Args:
        decoder: Folder of the decoder's weights, Meta or Hugging Face layout.
        tokenizer: SentencePiece model file; empty: tokenizer.model in the decoder's folder.
        tower: open_clip model name, JSON configuration, or folder with open_clip_config.json.
        tower_weights: File of the tower's weights, or an open_clip pretrained tag; empty: the file in the
            tower's folder.
        tower_every: The tower is read by its class token after every so many blocks.
        precision: Type of the frozen weights and the computation, fp32 or bf16.
    """

    decoder: str = "assets/mini/decoder"
    tokenizer: str = ""
    tower: str = "assets/mini/tower"
    tower_weights: str = ""
    tower_every: int = 4
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value).__name__ != field.type:
                kind = "a text" if field.type == "str" else "a whole number"
                raise ModelError(f"base: {field.name} is {value!r}; it must be {kind}")
        if self.precision not in DTYPES:
            raise ModelError(f"base: precision is {self.precision!r}; choose {' or '.join(DTYPES)}")


@dataclass(frozen=True)
class System:
    """A base with its tokenizer and preprocessing, and the adapters attached to it."""

    model: MultimodalLM
    tokenizer: SentencePieceTokenizer
    preprocess: Preprocess
    settings: BaseSettings

    @property
    def image_slots(self) -> int:
        """How many positions a picture takes in the sequence."""
        return self.model.tower.tokens

    @property
    def digests(self) -> dict[str, str]:
        """Digests of decoder, tower and tokenizer as they were loaded."""
        return {name: self.model.adapters.identity[name] for name in IDENTITY_DIGESTS}


IDENTITY_DIGESTS = ("base_digest", "tower_digest", "tokenizer_digest")


def build_base(settings: BaseSettings, device: torch.device | str = "cpu") -> System:
    """Reads decoder, tower and tokenizer; no adapter is attached yet.

    Raises ModelError when a file is missing, unreadable, or the parts do not belong together.
    """
    folder = Path(settings.decoder)
    if not folder.is_dir():
        raise ModelError(f"base: there is no folder {folder}; set base.decoder to the decoder's folder")
    tokenizer = SentencePieceTokenizer(Path(settings.tokenizer or folder / "tokenizer.model"))
    decoder = load_decoder(folder, dtype=DTYPES[settings.precision], device=device)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ModelError(
            f"base: the tokenizer {tokenizer.path} has {tokenizer.vocab_size} pieces, but the decoder in "
            f"{folder} embeds {decoder.config.vocab_size}; name the tokenizer this decoder was trained with"
        )
    spec = read_spec(settings.tower, settings.tower_weights)
    tower = Tower(spec, settings.tower_every)
    load_tower_weights(tower, find_tower_weights(settings.tower, settings.tower_weights))
    tower.to(device, DTYPES[settings.precision]).eval()
    identity = {
        "base": asdict(replace(settings, tokenizer=str(tokenizer.path))),
        "base_digest": digest(decoder.named_parameters()),
        "tower_digest": digest(tower.named_parameters()),
        "tokenizer_digest": tokenizer.digest,
        "preprocess": asdict(preprocess_settings(spec)),
        "template": "lavin",
    }
    model = MultimodalLM(decoder, tower).eval()
    model.adapters.identity = identity
    return System(model, tokenizer, preprocess_of(spec), settings)


def build_new(settings: BaseSettings, adapter: MMAConfig, device: torch.device | str = "cpu") -> System:
    """A base with a fresh adapter named `default`, frozen but for it."""
    system = build_base(settings, device)
    system.model.adapters.add_adapter("default", adapter)
    return system


def load(
    path: Path | str, settings: BaseSettings | None = None, device: torch.device | str = "cpu"
) -> System:
    """A base with the adapter of a folder, or of a repository of the Hub; by default on the base it names."""
    path = find(path)
    recorded = describe(path).get("base")
    if settings is None:
        if not isinstance(recorded, dict):
            raise ModelError(f"base: {path} does not say which base it was made for; pass its settings")
        try:
            settings = BaseSettings(**recorded)
        except TypeError as error:
            raise ModelError(f"base: {path} names its base by unknown settings ({error})") from error
    every = recorded.get("tower_every") if isinstance(recorded, dict) else None
    if every not in (None, settings.tower_every):
        raise ModelError(
            f"base: {path} was trained with class tokens after every {every} blocks of the tower, not "
            f"{settings.tower_every}; set base.tower_every to {every}"
        )
    system = build_base(settings, device)
    system.model.adapters.load_adapter(path)
    return system


def current_digests(model: MultimodalLM) -> dict[str, Any]:
    """Digests of the base as it lies in memory now: what training must not change."""
    parts = {"base_digest": "decoder.", "tower_digest": "tower."}
    return {
        name: digest((k.removeprefix(part), p) for k, p in model.adapters.base.items() if k.startswith(part))
        for name, part in parts.items()
    }
