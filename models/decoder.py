"""The decoder: one definition for training, cached decoding, every size and every family.

It computes on packed tokens and leaves the pattern of attention to the `Attend` it is given
(`models/attention.py`), so it knows nothing of batches, caches, adapters or pictures.

Shapes: N packed tokens, D width, H query heads, J key-value heads, E head width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from models.decoder_config import DecoderConfig
from models.lean import rms_norm, rotate, swiglu
from models.rope import Rotary

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q float[N, H, E], k float[N, J, E], v float[N, J, E]) -> float[N, H, E]."""

Narrow = Callable[[Tensor], Tensor]
"""Rows of some tokens, float[N', ...], out of float[N, ...] with a row for each."""

Again = Callable[..., Tensor]
"""(function, *tensors) -> what the function gives; it may be computed again instead of being kept."""


def plainly(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """Keeps what autograd asks for."""
    return function(*tensors)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467), in fp32, cast back before the gain is applied."""

    norm_kind = "rms"  # tells adapters behind it how it computes

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        if not self.weight.requires_grad:
            return rms_norm(x, self.weight, self.eps)
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

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """float[N, D] -> turned queries float[N, H, E] and keys float[N, J, E], and values float[N, J, E]."""
        q, k, v = (
            rearrange(project(x), "n (h e) -> n h e", e=self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def output(self, mixed: Tensor) -> Tensor:
        """What the heads have gathered, float[N, H, E] -> float[N, D]."""
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
        if not self.gated:
            return self.down_proj(self.act(self.up_proj(x)))
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(swiglu(gate, up) if self.act is functional.silu else self.act(gate) * up)


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

    def forward(
        self,
        layer: int,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        narrow: Narrow | None = None,
        again: Again = plainly,
    ) -> Tensor:
        """float[N, D] -> float[N, D], or of the N' tokens that `narrow` lets go on behind the attention."""
        q, k, v, *normed = self.before(x, cos, sin)
        rest = [x, attend(layer, q, k, v), *normed]
        if narrow is not None:
            rest = [narrow(rows) for rows in rest]
        return again(self.behind, *rest)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of float[N, D]; of a parallel block the normed stream too."""
        normed = self.attn_norm(x)
        heads = self.attn.heads(normed, cos, sin)
        return (*heads, normed) if self.parallel else heads

    def behind(self, x: Tensor, mixed: Tensor, normed: Tensor | None = None) -> Tensor:
        """What stands behind the attention: both residuals and the MLP."""
        attended = x + self.attn.output(mixed)
        return attended + self.mlp(self.mlp_norm(attended) if normed is None else normed)


@dataclass(frozen=True)
class Kept:
    """What is kept for the backward pass: everything, or what is told otherwise (models/checkpointing.py)."""

    block: Again = plainly  # of whole blocks
    half: Again = plainly  # of what stands behind the attention


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

    def forward(
        self, x: Tensor, positions: Tensor, attend: Attend, narrow: Narrow | None = None, kept: Kept = Kept()
    ) -> Tensor:
        """Embeddings float[N, D] and positions int[N] -> normed hidden states float[N, D].

        With `narrow` only the tokens that it chooses leave the last block: what nobody reads behind it is
        not computed.
        """
        cos, sin = self.rotary(positions)
        for layer, block in enumerate(self.blocks):
            chosen = narrow if layer == len(self.blocks) - 1 else None
            x = kept.block(block, layer, x, cos, sin, attend, chosen, kept.half)
        return self.norm(x)
