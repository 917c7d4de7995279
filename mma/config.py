"""The hyper-parameters of one adapter, by kind, as they are stored in its folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar

from mma.errors import AdapterError

PLACEMENTS = ("attn", "mlp", "both")
TOWER_PLACEMENTS = (*PLACEMENTS, "none")
TOWER_RULES = ("token", "modality", "none", "legacy_no_residual")
ACTIVATIONS = ("none", "relu", "gelu", "silu")
LARGEST = 65536  # of a width: products of a few of them still are sizes of tensors
MOST_MODALITIES = 64


def brief(value: object, most: int = 80) -> str:
    """A value of unknown origin for a message: one line, and not a long one."""
    return plain(repr(value), most)


def plain(text: object, most: int = 80) -> str:
    """The same for a name or a message of another program, without quotes where none are needed."""
    shown = str(text) if str(text).isprintable() else repr(str(text))
    return shown if len(shown) <= most else f"{shown[:most]}... ({len(shown)} characters)"


def _words(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: type(x) is tuple and all(map(kind, x))


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: Any) -> bool:
    # Compared, not converted: a whole number can be too large for a float, or for a tensor's arithmetic.
    return type(x) in (int, float) and abs(x) <= 1e18


# What a field of each type may hold; JSON and command lines do not know the types.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _whole),
    "bool": ("true or false", lambda x: isinstance(x, bool)),
    "float": ("a number, at most 1e18", _number),
    "str": ("a word", lambda x: isinstance(x, str)),
    "tuple[str, ...]": ("several words", _words(lambda x: isinstance(x, str))),
    "tuple[int, ...]": ("several whole numbers", _words(_whole)),
}


@dataclass(frozen=True)
class AdapterConfig:
    """Settings that every kind of adapter has.

    Args:
        modalities: What a sample can carry.
        projector: Kind of the projector, one the model knows.
        projector_hidden: Hidden width of a projector that has one.
        tuned: Parts of the base that are tuned in full: beginnings of parameter names, or words the model
            knows.
    """

    peft_type: ClassVar[str] = ""
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    newer: ClassVar[tuple[str, ...]] = ("layers", "projector", "tuned")  # not in folders of format 1.0

    modalities: tuple[str, ...] = ("text", "image")
    projector: str = "class_token"
    projector_hidden: int = 128
    tuned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, fits = KINDS[str(field.type)]
            if not fits(value := getattr(self, field.name)):
                raise AdapterError(f"adapter: {field.name} is {brief(value)}; it must be {kind}")
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                chosen = brief(getattr(self, name))
                raise AdapterError(f"adapter: {name} is {chosen}; choose {', '.join(allowed)}")
        for name in ("r", "routes", "groups", "projector_hidden"):
            width = getattr(self, name, 1)
            if not 1 <= width <= LARGEST:
                bound = "at least 1" if width < 1 else f"at most {LARGEST}"
                raise AdapterError(f"adapter: {name} is {brief(width)}; it must be {bound}")
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise AdapterError(f"adapter: modalities are {brief(self.modalities)}; name each once")
        if (count := len(self.modalities)) > MOST_MODALITIES:
            raise AdapterError(f"adapter: there are {count} modalities; name at most {MOST_MODALITIES}")

    def placed(self, part: str, role: str, layer: int | None) -> bool:
        """Whether an adapter sits at a site of this part, role and block; a shared norm has role `both`."""
        return False

    def differences(self, other: AdapterConfig) -> str:
        """What differs from other settings, in words; empty: nothing but the dropout may."""
        if type(self) is not type(other):
            return f"it is of kind {self.peft_type}, not {other.peft_type}"
        names = [field.name for field in fields(self) if field.name != "dropout"]
        different = [name for name in names if getattr(self, name) != getattr(other, name)]
        told = (f"{name} is {brief(getattr(self, name))}, not {getattr(other, name)}" for name in different)
        return ", ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdapterConfig:
        """The settings in a table; an unknown or missing key is an error naming it."""
        known = {field.name: str(field.type) for field in fields(cls)}
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ""
                raise AdapterError(f"adapter: unknown setting {brief(key)}{hint}")
        if missing := sorted(known.keys() - values.keys() - set(cls.newer)):
            raise AdapterError(f"adapter: the settings lack {', '.join(missing)}")
        made: dict[str, Any] = {
            key: tuple(x) if known[key].startswith("tuple") and isinstance(x, list) else x
            for key, x in values.items()
        }
        return cls(**made)


@dataclass(frozen=True)
class PartsConfig(AdapterConfig):
    """Settings of an adapter without sites: the projector, and parts of the base that are tuned in full.

    Args:
        modalities: What a sample can carry.
        projector: Kind of the projector, one the model knows.
        projector_hidden: Hidden width of a projector that has one.
        tuned: Parts of the base that are tuned in full: beginnings of parameter names, or words the model
            knows.
    """

    peft_type: ClassVar[str] = "PARTS"


@dataclass(frozen=True)
class SiteConfig(AdapterConfig):
    """Settings of the kinds that sit at norms or linear layers.

    Args:
        r: Width of the bottleneck, the rank.
        dropout: Dropout while training.
        placement: Where in a decoder block: attn, mlp or both.
        layers: Decoder blocks with an adapter, counted from 0; empty: all of them.
    """

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"placement": PLACEMENTS}

    r: int = 8
    dropout: float = 0.1
    placement: str = "attn"
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"adapter: dropout is {brief(self.dropout)}; it must be in [0, 1)")
        if self.layers and (min(self.layers) < 0 or len(set(self.layers)) != len(self.layers)):
            raise AdapterError(f"adapter: layers are {brief(self.layers)}; name each once, counted from 0")

    def placed(self, part: str, role: str, layer: int | None) -> bool:
        where = self.placement if part == "decoder" else self.tower_where
        if where == "none" or (part == "decoder" and self.layers and layer not in self.layers):
            return False
        return "both" in (where, role) or where == role

    @property
    def tower_where(self) -> str:
        """Where in a block of the tower; `none`: nowhere."""
        return "none"


@dataclass(frozen=True)
class MMAConfig(SiteConfig):
    """Settings of LaVIN's mixture-of-modality adapters (arXiv 2305.15023, section 3.1).

    Args:
        r: Width of the bottleneck.
        dropout: Dropout on the bottleneck while training.
        placement: Decoder norms with an adapter behind them: attn, mlp or both.
        layers: Decoder blocks with an adapter, counted from 0; empty: all of them.
        modalities: What a sample can carry; each has a learned modality token.
        projector: Kind of the projector, one the model knows.
        projector_hidden: Hidden width of a projector that has one.
        tuned: Parts of the base that are tuned in full beside the adapters.
        routes: Number of expert paths the router chooses among.
        groups: Blocks of the block-diagonal up-projections.
        temperature: The router's softmax is taken of its logits divided by this.
        scale: Factor of the adapter's output.
        tower: Routing in the image tower: token (each by itself), modality (one learned vector per site),
            none (no adapters there), legacy_no_residual (only to read old files: no router, the adapter's
            output replaces its input).
        tower_placement: Norms of the tower with an adapter behind them: attn, mlp or both.
    """

    peft_type: ClassVar[str] = "MMA"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "placement": PLACEMENTS,
        "tower": TOWER_RULES,
        "tower_placement": PLACEMENTS,
    }

    routes: int = 2
    groups: int = 2
    temperature: float = 10.0
    scale: float = 1.0
    tower: str = "token"
    tower_placement: str = "attn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r % self.groups:
            raise AdapterError(f"adapter: r {self.r} is not a multiple of groups {self.groups}")
        if self.temperature < 1e-6:
            given = self.temperature
            raise AdapterError(f"adapter: temperature is {given}; it must be positive, at least 1e-6")

    @property
    def tower_where(self) -> str:
        return "none" if self.tower == "none" else self.tower_placement


@dataclass(frozen=True)
class BottleneckConfig(SiteConfig):
    """Settings of plain bottleneck adapters behind a norm (arXiv 1902.00751).

    Args:
        r: Width of the bottleneck.
        dropout: Dropout on the bottleneck while training.
        placement: Decoder norms with an adapter behind them: attn, mlp or both.
        layers: Decoder blocks with an adapter, counted from 0; empty: all of them.
        modalities: What a sample can carry.
        projector: Kind of the projector, one the model knows.
        projector_hidden: Hidden width of a projector that has one.
        tuned: Parts of the base that are tuned in full beside the adapters.
        activation: Between down and up: none, relu, gelu or silu; only none can be merged.
        scale: Factor of the adapter's output.
        tower_placement: Norms of the tower with an adapter behind them: attn, mlp, both or none.
    """

    peft_type: ClassVar[str] = "BOTTLENECK"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "placement": PLACEMENTS,
        "tower_placement": TOWER_PLACEMENTS,
        "activation": ACTIVATIONS,
    }

    activation: str = "none"
    scale: float = 1.0
    tower_placement: str = "attn"

    @property
    def tower_where(self) -> str:
        return self.tower_placement


@dataclass(frozen=True)
class LoraConfig(SiteConfig):
    """Settings of LoRA on linear layers (arXiv 2106.09685), stored as PEFT stores them.

    Args:
        r: Rank.
        dropout: Dropout on the input while training.
        placement: Linear layers of the decoder: attn, mlp or both.
        layers: Decoder blocks with an adapter, counted from 0; empty: all of them.
        modalities: What a sample can carry.
        projector: Kind of the projector, one the model knows.
        projector_hidden: Hidden width of a projector that has one.
        tuned: Parts of the base that are tuned in full beside the adapters.
        alpha: The update is scaled by alpha / r; 0 stands for 2 r.
        rslora: Scale by alpha / sqrt(r) instead (arXiv 2312.03732).
        bias: The up-projection has a bias (`lora_bias` of PEFT).
        targets: Names of the linear layers, the last part of their path; empty: all of the placement.
        tower_placement: Linear layers of the tower: attn, mlp, both or none.
    """

    peft_type: ClassVar[str] = "LORA"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "placement": PLACEMENTS,
        "tower_placement": TOWER_PLACEMENTS,
    }

    dropout: float = 0.0
    placement: str = "both"
    alpha: float = 0.0
    rslora: bool = False
    bias: bool = False
    targets: tuple[str, ...] = ()
    tower_placement: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise AdapterError(f"adapter: alpha is {self.alpha}; it must not be negative (0 stands for 2 r)")

    @property
    def scaling(self) -> float:
        """Factor of the update."""
        return (self.alpha or 2 * self.r) / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def tower_where(self) -> str:
        return self.tower_placement


CONFIGS: dict[str, type[AdapterConfig]] = {
    kind.peft_type: kind for kind in (MMAConfig, BottleneckConfig, LoraConfig, PartsConfig)
}
