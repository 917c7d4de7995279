"""The hyper-parameters of one mixture-of-modality adapter, as they are stored in its folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from mma.errors import AdapterError

PLACEMENTS = ("attn", "mlp", "both")
TOWER_RULES = ("token", "modality", "none", "legacy_no_residual")
# What a field of each type may hold; JSON and command lines do not know the types.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda x: isinstance(x, int) and not isinstance(x, bool)),
    "float": ("a number", lambda x: type(x) in (int, float) and math.isfinite(x)),
    "str": ("a word", lambda x: isinstance(x, str)),
    "tuple[str, ...]": ("several words", lambda x: type(x) is tuple and all(isinstance(y, str) for y in x)),
}


@dataclass(frozen=True)
class MMAConfig:
    """Settings of LaVIN's mixture-of-modality adapters (arXiv 2305.15023, section 3.1).

    Args:
        r: Width of the bottleneck.
        routes: Number of expert paths the router chooses among.
        groups: Blocks of the block-diagonal up-projections.
        dropout: Dropout on the bottleneck while training.
        temperature: The router's softmax is taken of its logits divided by this.
        scale: Factor of the adapter's output.
        placement: Decoder norms with an adapter behind them: attn, mlp or both.
        tower: Routing in the image tower: token (each by itself), modality (one learned vector per site),
            none (no adapters there), legacy_no_residual (only to read old files: no router, the adapter's
            output replaces its input).
        tower_placement: Norms of the tower with an adapter behind them: attn, mlp or both.
        modalities: What a sample can carry; each has a learned modality token.
        projector_hidden: Hidden width of the projector.
    """

    r: int = 8
    routes: int = 2
    groups: int = 2
    dropout: float = 0.1
    temperature: float = 10.0
    scale: float = 1.0
    placement: str = "attn"
    tower: str = "token"
    tower_placement: str = "attn"
    modalities: tuple[str, ...] = ("text", "image")
    projector_hidden: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, fits = KINDS[str(field.type)]
            if not fits(value := getattr(self, field.name)):
                raise AdapterError(f"adapter: {field.name} is {value!r}; it must be {kind}")
        for name, allowed in (
            ("placement", PLACEMENTS),
            ("tower", TOWER_RULES),
            ("tower_placement", PLACEMENTS),
        ):
            if getattr(self, name) not in allowed:
                raise AdapterError(f"adapter: {name} is {getattr(self, name)!r}; choose {', '.join(allowed)}")
        for name in ("r", "routes", "groups", "projector_hidden"):
            if getattr(self, name) < 1:
                raise AdapterError(f"adapter: {name} is {getattr(self, name)}; it must be at least 1")
        if self.r % self.groups:
            raise AdapterError(f"adapter: r {self.r} is not a multiple of groups {self.groups}")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"adapter: dropout is {self.dropout}; it must be in [0, 1)")
        if self.temperature <= 0:
            raise AdapterError(f"adapter: temperature is {self.temperature}; it must be positive")
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise AdapterError(f"adapter: modalities are {self.modalities}; name each once")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "modalities": list(self.modalities)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MMAConfig:
        """The settings in a table; an unknown or missing key is an error naming it."""
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ""
                raise AdapterError(f"adapter: unknown setting {key!r}{hint}")
        if missing := sorted(known - values.keys()):
            raise AdapterError(f"adapter: the settings lack {', '.join(missing)}")
        listed = values["modalities"]
        return cls(**{**values, "modalities": tuple(listed) if isinstance(listed, list) else listed})
