"""From settings or an adapter folder to a system ready to train or answer.

The second of the two files where models meet adapters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mma import AdapterConfig, PartsConfig
from mma.digest import digest
from mma.hub import find
from mma.storage import describe
from models.decoder import Decoder
from models.errors import ModelError
from models.llava import fill_parts, read_llava
from models.multimodal import MultimodalLM
from models.named import named
from models.quantise import quantiser
from models.tokenizer import Tokenizer, load_tokenizer
from models.tower import Features, Tower, load_tower_weights
from models.tower_files import find_tower_weights, read_spec
from models.tower_spec import TowerSpec, preprocess_settings
from models.views import Layout
from models.weights import load_decoder, read_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BaseSettings:
    """The frozen base of a run.

    Args:
        decoder: Folder of the decoder's weights, Meta or Hugging Face layout.
        tokenizer: SentencePiece model file; empty: tokenizer.model in the decoder's folder.
        tower: open_clip model name, JSON configuration, folder with open_clip_config.json, or Hugging Face
            folder of CLIP, SigLIP or a LLaVA.
        tower_weights: File or Hugging Face folder of the tower's weights, or an open_clip pretrained tag;
            empty: those in the tower's folder.
        tower_every: The tower is read by its class token after every so many blocks.
        precision: Type of the frozen weights and the computation, fp32 or bf16.
        architecture: Name of the decoder's architecture (docs/models.md), for a plan without weights; a
            folder's own description counts where there is one.
        delta: Folder of a delta that is added to the decoder's weights (old Vicuna).
        quantise: Decoder blocks in fewer bits: none, int8, nf4 or fp8.
        tower_features: What is read of the tower: class (its class token after every n-th block) or patches.
        tower_gelu: Form of GELU in the tower: exact or tanh; empty: as its weights were trained with.
        tower_layer: Which layer patches are read of, counted as hidden states: -2 is the last but one.
        pictures: How a picture becomes views: own (the tower's own way), square, pad, squash or anyres.
        grids: Grids of views that anyres chooses among.
    """

    decoder: str = "assets/mini/decoder"
    tokenizer: str = ""
    tower: str = "assets/mini/tower"
    tower_weights: str = ""
    tower_every: int = 4
    precision: str = "fp32"
    architecture: str = ""
    delta: str = ""
    quantise: str = "none"
    tower_features: str = "class"
    tower_layer: int = -2
    tower_gelu: str = ""
    pictures: str = "own"
    grids: str = "1x2,2x1,2x2,3x1,1x3"

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
    tokenizer: Tokenizer
    settings: BaseSettings

    @property
    def preprocess(self) -> Layout:
        """From a picture to its views float32[V, 3, H, W]."""
        return self.model.layout

    @property
    def image_slots(self) -> int | None:
        """How many positions a picture takes in the sequence; None where that depends on its size."""
        return self.model.layout.fixed(self.model.view_tokens)

    @property
    def digests(self) -> dict[str, str]:
        """Digests of decoder, tower and tokenizer as they were loaded."""
        return {name: self.model.adapters.identity[name] for name in IDENTITY_DIGESTS}


# What pictures look like to an adapter, which works with no other.
SEEN = ("tower_features", "tower_every", "tower_layer", "tower_gelu", "pictures", "grids")
IDENTITY_DIGESTS = ("base_digest", "tower_digest", "tokenizer_digest")


def build_base(settings: BaseSettings, device: torch.device | str = "cpu", offload: int = 0) -> System:
    """Reads decoder, tower and tokenizer; no adapter is attached yet.

    The weights of `offload` blocks of the decoder stay in the host's memory (models/offload.py). Raises
    ModelError when a file is missing, unreadable, or the parts do not belong together.
    """
    folder = Path(settings.decoder)
    if not folder.is_dir():
        raise ModelError(f"base: there is no folder {folder}; set base.decoder to the decoder's folder")
    if offload and settings.quantise != "none":
        raise ModelError("offload: only full weights are held away; turn off base.quantise or run.offload")
    dtype = DTYPES[settings.precision]
    tokenizer = load_tokenizer(Path(settings.tokenizer or folder))
    decoder = load_decoder(
        folder,
        dtype=dtype,
        device=device,
        delta=Path(settings.delta) if settings.delta else None,
        quantise=quantiser(settings.quantise, dtype),
        offload=offload,
    )
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ModelError(
            f"base: the tokenizer {tokenizer.path} has {tokenizer.vocab_size} pieces, but the decoder in "
            f"{folder} embeds {decoder.config.vocab_size}; name the tokenizer this decoder was trained with"
        )
    spec = spec_of(settings)
    tower = Tower(spec, features_of(settings))
    load_tower_weights(tower, find_tower_weights(settings.tower, settings.tower_weights))
    tower.to(device, dtype).eval()
    identity = {
        "base": asdict(replace(settings, tokenizer=str(tokenizer.path))),
        "base_digest": digest(decoder.named_parameters()),
        "tower_digest": digest(tower.named_parameters()),
        "tokenizer_digest": tokenizer.digest,
        "preprocess": asdict(preprocess_settings(spec)),
        "template": "lavin",
    }
    model = MultimodalLM(decoder, tower, layout_of(settings, spec, tower)).eval()
    model.adapters.identity = identity
    return System(model, tokenizer, settings)


def spec_of(settings: BaseSettings) -> TowerSpec:
    """What the tower is built from."""
    spec = read_spec(settings.tower, settings.tower_weights)
    return replace(spec, gelu=settings.tower_gelu or spec.gelu)


def features_of(settings: BaseSettings) -> Features:
    """What is read of the tower."""
    return Features(settings.tower_features, settings.tower_every, settings.tower_layer)


def layout_of(settings: BaseSettings, spec: TowerSpec, tower: Tower) -> Layout:
    """How pictures become views."""
    if settings.pictures == "anyres" and settings.tower_features != "patches":
        raise ModelError("base: pictures of any resolution need patches; set base.tower_features to patches")
    return Layout(preprocess_settings(spec), settings.pictures, settings.grids, tower.grid)


def outline(settings: BaseSettings, blocks: int | None = None) -> MultimodalLM:
    """The base without memory for its weights (on the meta device), from descriptions alone.

    The decoder's folder describes it, or where there is none, its architecture's name. A number of blocks can
    be set: all are alike.
    """
    folder = Path(settings.decoder)
    if folder.is_dir():
        config = read_config(folder)
    elif settings.architecture:
        config = named(settings.architecture)
    else:
        raise ModelError(
            f"base: there is no folder {folder}, and base.architecture names no decoder to plan with; set one"
        )
    if blocks is not None:
        config = replace(config, n_layers=blocks)
    spec = spec_of(settings)
    with torch.device("meta"):
        tower = Tower(spec, features_of(settings))
        return MultimodalLM(Decoder(config), tower, layout_of(settings, spec, tower)).eval()


def build_new(settings: BaseSettings, adapter: AdapterConfig, device: torch.device | str = "cpu") -> System:
    """A base with a fresh adapter named `default`, frozen but for it."""
    system = build_base(settings, device)
    system.model.adapters.add_adapter("default", adapter)
    return system


def load_llava(
    folder: Path | str, tower: str = "", precision: str = "fp32", device: torch.device | str = "cpu"
) -> System:
    """A LLaVA or LLaVA-NeXT folder, its projector (and newline) as the adapter `default`.

    A folder of Hugging Face describes its tower; for one as LLaVA was published name the tower too. Raises
    ModelError when the folder is of another model, incomplete, or joins its parts otherwise.
    """
    folder = Path(folder)
    joined = read_llava(folder, tower)
    settings = BaseSettings(precision=precision, **joined.settings)
    system = build_new(settings, PartsConfig(projector=joined.projector), device)
    held = system.model.adapters
    parts = {name: part for name in ("projector", "newline") if (part := held.part(name)) is not None}
    fill_parts(parts, folder)
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
    for name in SEEN if isinstance(recorded, dict) else ():
        if (before := recorded.get(name, getattr(settings, name))) != getattr(settings, name):
            raise ModelError(
                f"base: {path} was trained with {name} {before}, not {getattr(settings, name)}; "
                f"set base.{name} to {before}"
            )
    system = build_base(settings, device)
    adapters = system.model.adapters
    adapters.identity = {**adapters.identity, "template": describe(path).get("template", "lavin")}
    adapters.load_adapter(path)
    return system


def current_digests(model: MultimodalLM) -> dict[str, Any]:
    """Digests of the base as it lies in memory now: what training must not change."""
    parts = {"base_digest": "decoder.", "tower_digest": "tower."}
    return {
        name: digest((k.removeprefix(part), p) for k, p in model.adapters.base.items() if k.startswith(part))
        for name, part in parts.items()
    }
