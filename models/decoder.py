"""The LLaMA-family decoder: one definition for training, cached decoding and every size.

It computes on packed tokens and leaves the pattern of attention to the `Attend` it is given
(`models/attention.py`), so it knows nothing of batches, caches, adapters or pictures.

Shapes: N packed tokens, D width, H query heads, J key-value heads, E head width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q float[N, H, E], k float[N, J, E], v float[N, J, E]) -> float[N, H, E]."""


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a LLaMA-family decoder."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    max_positions: int = 2048
    tied: bool = False  # the output layer shares the embedding's weights
    attention_bias: bool = False  # q, k, v and o projections have biases
    mlp_bias: bool = False  # so have gate, up and down

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ValueError(f"decoder: dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"decoder: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


NAMED: dict[str, DecoderConfig] = {
    "llama-7b": DecoderConfig(4096, 32, 32, 32, 11008, 32000, norm_eps=1e-6),
    "llama-13b": DecoderConfig(5120, 40, 40, 40, 13824, 32000, norm_eps=1e-6),
}


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467), in fp32, cast back before the gain is applied."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864), pairing the two halves of a head."""

    frequencies: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("frequencies", 1.0 / theta**exponent, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int[N] -> cosines and sines float[N, 1, E/2], in fp32."""
        angles = positions[:, None].float() * self.frequencies.float()
        return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates every pair (j, j + E/2) of float[N, H, E] by its angle, in fp32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped queries (arXiv 2305.13245)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.dim, config.dim, bias=bias)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=bias)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=bias)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=bias)

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """float[N, D] -> float[N, D]."""
        q, k, v = (
            rearrange(project(x), "n (h e) -> n h e", e=self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o_proj(rearrange(mixed, "n h e -> n (h e)"))


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x), the SwiGLU of arXiv 2002.05202."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """float[N, D] -> float[N, D]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """float[N, D] -> float[N, D]."""
        x = x + self.attn(layer, self.attn_norm(x), cos, sin, attend)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Embedding, blocks, final norm and output layer of a LLaMA-family language model."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.rotary = Rotary(config.head_dim, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Embeddings float[N, D] and positions int[N] -> normed hidden states float[N, D]."""
        cos, sin = self.rotary(positions)
        for layer, block in enumerate(self.blocks):
            x = block(layer, x, cos, sin, attend)
        return self.norm(x)
