"""What a decoder looks like: one set of switches for all families (docs/models.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.rope import RopeScaling


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder and what its family does otherwise than LLaMA, which is the default."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    # Attention is never cut off at a window: inside it full attention is the same, so a decoder with a
    # sliding window has as many positions as its window.
    max_positions: int = 2048
    tied: bool = False  # the output layer shares the embedding's weights
    attention_bias: bool = False  # q, k, v and o projections have biases
    mlp_bias: bool = False  # so have gate, up and down
    qkv_bias: bool = False  # q, k and v have biases, o has none unless attention_bias says so
    head_bias: bool = False  # so has the output layer
    norm: Literal["rms", "layer"] = "rms"  # a layer norm has a weight and a bias
    rotary_dim: int = 0  # only the first channels of a head turn; 0: all of them
    rope_scaling: RopeScaling | None = None
    gated: bool = True  # down(act(gate x) * up x) instead of down(act(up x))
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    parallel: bool = False  # attention and MLP read the output of one norm, side by side
    family: Literal["llama", "mistral", "qwen2", "stablelm", "phi"] = "llama"  # whose files it has

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ValueError(f"decoder: dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"decoder: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.turning % 2 or not 0 < self.turning <= self.head_dim:
            raise ValueError(
                f"decoder: {self.turning} of {self.head_dim} channels of a head turn; "
                "it must be an even number, and at most all"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def turning(self) -> int:
        """How many channels of a head turn with the position."""
        return self.rotary_dim or self.head_dim
