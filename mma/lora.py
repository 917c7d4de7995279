"""LoRA on one linear layer (arXiv 2106.09685), with PEFT's tensor names and start.

    y = W x + b + s * (B dropout(A x) + c)        s = alpha / r, or alpha / sqrt(r) with rslora

B and c start at zero. Knows nothing of where it is attached.

Shapes: C channels of the input, O channels of the output, r rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mma.adapter import SiteAdapter
from mma.config import LoraConfig
from mma.lowrank import LowRank
from mma.routing import Routes


class Lora(SiteAdapter):
    """The low-rank update of one linear layer."""

    def __init__(self, channels: int, out: int, config: LoraConfig) -> None:
        super().__init__()
        self.scaling = config.scaling
        self.dropout = nn.Dropout(config.dropout)
        self.lora_A = nn.Linear(channels, config.r, bias=False)
        self.lora_B = nn.Linear(config.r, out, bias=config.bias)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        if config.bias:
            nn.init.zeros_(self.lora_B.bias)

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """The layer's input float[..., C] and output float[..., O] -> float[..., O]."""
        z = functional.linear(self.dropout(x), self.lora_A.weight.to(x.dtype))
        bias = None if self.lora_B.bias is None else self.lora_B.bias.to(x.dtype)
        return y + self.scaling * functional.linear(z, self.lora_B.weight.to(x.dtype), bias)

    def fold(self, modality: int) -> LowRank:
        """See mma.adapter.SiteAdapter; the same for every modality."""
        up, bias = self.lora_B.weight, self.lora_B.bias
        return LowRank(
            self.lora_A.weight,
            self.lora_A.weight.new_zeros(len(self.lora_A.weight)),
            self.scaling * up,
            torch.zeros_like(up[:, 0]) if bias is None else self.scaling * bias,
        )
