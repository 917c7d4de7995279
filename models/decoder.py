"""The decoder: one definition for training, cached decoding, every size and every family.

It computes on packed tokens and leaves the pattern of attention to the `Attend` it is given
(`models/attention.py`), so it knows nothing of batches, caches, adapters or pictures.

Shapes: N packed tokens, D width, H query heads, J key-value heads, E head width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from models.decoder_config import DecoderConfig
from models.rope import Rotary, rotate

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q float[N, H, E], k float[N, J, E], v float[N, J, E]) -> float[N, H, E]."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
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


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm of a family; both kinds compute in fp32 whatever comes in."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.dim, config.norm_eps)


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped queries (arXiv 2305.13245)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        bias = config.attention_bias or config.qkv_bias
        self.q_proj = nn.Linear(config.dim, config.dim, bias=bias)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=bias)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=bias)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=config.attention_bias)

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """float[N, D] -> float[N, D]."""
        q, k, v = (
            rearrange(project(x), "n (h e) -> n h e", e=self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o_proj(rearrange(mixed, "n h e -> n (h e)"))


class MLP(nn.Module):
    """down(act(gate x) * up x), with SiLU the SwiGLU of arXiv 2002.05202; or plain, down(act(up x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gated, self.act = config.gated, ACTIVATIONS[config.activation]
        if self.gated:
            self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """float[N, D] -> float[N, D]."""
        hidden = self.act(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.act(self.up_proj(x))
        return self.down_proj(hidden)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); or in parallel, x + attention(n) + mlp(n) with n = norm x.

    A parallel block has no `mlp_norm`: `attn_norm` is the one that both read.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.attn_norm = make_norm(config)
        self.attn = Attention(config)
        if not self.parallel:
            self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """float[N, D] -> float[N, D]."""
        normed = self.attn_norm(x)
        attended = x + self.attn(layer, normed, cos, sin, attend)
        return attended + self.mlp(normed if self.parallel else self.mlp_norm(attended))


class Decoder(nn.Module):
    """Embedding, blocks, final norm and output layer of a language model."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.rotary = Rotary(config.turning, config.rope_theta, config.rope_scaling)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Embeddings float[N, D] and positions int[N] -> normed hidden states float[N, D]."""
        cos, sin = self.rotary(positions)
        for layer, block in enumerate(self.blocks):
            x = block(layer, x, cos, sin, attend)
        return self.norm(x)
