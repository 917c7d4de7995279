"""One mixture-of-modality adapter: a shared down-projection, K grouped up-projections and a router.

    z = dropout(A x + a)        w = softmax((R m + c) / t)        y = x + s * sum_k w_k (B_k z + b_k)

(arXiv 2305.15023, equations 3 to 5.) B and b start at zero, so a fresh adapter changes nothing. Knows
nothing of where it is attached.

Shapes: ... any leading axes (tokens), C channels, r bottleneck, K routes, G groups.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mma.config import MMAConfig
from mma.errors import AdapterError


class Mixture(nn.Module):
    """The down-projection and the weighted up-projections; the weights come from outside."""

    def __init__(self, channels: int, config: MMAConfig, routes: int) -> None:
        super().__init__()
        r, groups = config.r, config.groups
        if channels % groups:
            raise AdapterError(
                f"adapter: {channels} channels do not divide into {groups} groups; set groups to a divisor"
            )
        self.groups, self.scale = groups, config.scale
        self.down = nn.Linear(channels, r)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Parameter(torch.zeros(routes, channels, r // groups))
        # One-dimensional like every bias, so that weight decay leaves it alone.
        self.up_bias = nn.Parameter(torch.zeros(routes * channels))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def update(self, x: Tensor, weights: Tensor) -> Tensor:
        """x float[..., C], route weights float[..., K] -> sum_k w_k (B_k z + b_k), float[..., C]."""
        z = self.dropout(_linear(self.down, x))
        # Weighting the bottleneck instead of the outputs keeps the K outputs from ever being formed.
        weighted = weights[..., :, None] * rearrange(z, "... (g r) -> g ... 1 r", g=self.groups)
        per_group = rearrange(weighted, "g ... k r -> g (...) (k r)")
        up = rearrange(self.up.to(x.dtype), "k (g c) r -> g (k r) c", g=self.groups)
        out = rearrange(torch.bmm(per_group, up), "g n c -> n (g c)").reshape(x.shape)
        return out + weights @ rearrange(self.up_bias.to(x.dtype), "(k c) -> k c", c=x.shape[-1])


class RoutedAdapter(Mixture):
    """A mixture whose router reads one hidden state per modality (decoder) or each token (tower)."""

    def __init__(self, channels: int, config: MMAConfig) -> None:
        super().__init__(channels, config, config.routes)
        self.temperature = config.temperature
        self.router = nn.Linear(channels, config.routes)

    def weights(self, m: Tensor) -> Tensor:
        """Router input float[..., C] -> route weights float[..., K], in fp32."""
        return torch.softmax(_linear(self.router, m).float() / self.temperature, dim=-1)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x float[..., C] and weights float[..., K] -> float[..., C]."""
        return x + self.scale * self.update(x, weights.to(x.dtype))


class VectorRoutedAdapter(Mixture):
    """A mixture whose route weights are one learned vector, the same for every token (mergeable)."""

    def __init__(self, channels: int, config: MMAConfig) -> None:
        super().__init__(channels, config, config.routes)
        self.temperature = config.temperature
        self.route_logits = nn.Parameter(torch.zeros(config.routes))

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., C]."""
        weights = torch.softmax(self.route_logits.float() / self.temperature, dim=-1).to(x.dtype)
        return x + self.scale * self.update(x, weights.expand(*x.shape[:-1], -1))


class UnroutedReplacement(Mixture):
    """The public code's `normal` tower adapter: no router, no scale, and its output replaces its input.

    Only for reading files trained that way: it starts at zero, not at identity (docs/differences.md).
    """

    def __init__(self, channels: int, config: MMAConfig) -> None:
        super().__init__(channels, config, routes=1)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., C]."""
        return self.update(x, x.new_ones(*x.shape[:-1], 1))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the type of its input: trained tensors are fp32, the stream may be bf16."""
    assert layer.bias is not None, "every linear map of an adapter has a bias"
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
