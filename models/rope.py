"""Rotary positions: the angles of every position, also scaled for longer contexts.

Shapes: N packed tokens, R channels of a head that turn (`models/lean.py` turns them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies are lowered for contexts longer than those of pre-training.

    `linear` divides all by the factor. `llama3` (LLaMA 3.1) and `yarn` (arXiv 2309.00071) divide those that
    turn less than `low` times over the original context, keep those that turn more than `high` times, and
    blend the ones between.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_positions: int = 0  # the context of pre-training; `linear` does not ask for it
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    attention_factor: float = 1.0  # yarn: lengthens cosines and sines, and so the queries and keys
    truncate: bool = True  # yarn: the blend starts and ends at whole channels


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864), pairing the two halves of the R channels that turn."""

    frequencies: Tensor

    def __init__(self, rotary_dim: int, theta: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.factor = 1.0 if scaling is None else scaling.attention_factor
        exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        frequencies = 1.0 / theta**exponent
        if scaling is not None:
            frequencies = _scaled(frequencies, theta, scaling)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int[N] -> cosines and sines float[N, 1, R/2], in fp32."""
        angles = positions[:, None].float() * self.frequencies.float()
        return angles.cos()[:, None] * self.factor, angles.sin()[:, None] * self.factor


def _scaled(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """float[R/2] -> float[R/2]: how much of each frequency is kept, the rest divided by the factor."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_positions * frequencies / (2 * math.pi)
        kept = (turns - scaling.low) / (scaling.high - scaling.low)
    else:
        first, last = _yarn_range(2 * len(frequencies), theta, scaling)
        kept = 1 - (torch.arange(len(frequencies), dtype=torch.float32) - first) / (last - first)
    kept = kept.clamp(0, 1)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)


def _yarn_range(rotary_dim: int, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """The channels between which YaRN blends: those that turn `high` and `low` times (its equation 17)."""
    first, last = (
        rotary_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.high, scaling.low)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    return first, last + 0.001 if first == last else last  # the two must differ, as in the other libraries
