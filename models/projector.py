"""The projector: from the tower's features to embeddings the decoder can read, by kind.

Shapes: V views, K tokens of a view, C tower width, D decoder width, Q tokens that come out.
"""

from __future__ import annotations

import math
import re

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError

KINDS = "class_token, linear, mlp2x_gelu (or another number of layers), resampler-N, mean-N"


class ClassTokenProjector(nn.Module):
    """C -> hidden -> SiLU -> D on every class token (LaVIN, arXiv 2305.15023, section 3.2)."""

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, dim)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """float[V, K, C] -> float[V, K, D]."""
        return self.up(functional.silu(self.down(features)))


class MLP(nn.Sequential):
    """Linear layers with GELU between them (LLaVA-1.5, arXiv 2310.03744; LLaVA had one layer)."""

    def __init__(self, width: int, dim: int, layers: int) -> None:
        parts: list[nn.Module] = [nn.Linear(width, dim)]
        for _ in range(layers - 1):
            parts += [nn.GELU(), nn.Linear(dim, dim)]
        super().__init__(*parts)


class MeanPooling(nn.Module):
    """Averages neighbouring patches to a square of Q tokens, which an MLP of two layers projects."""

    def __init__(self, width: int, dim: int, tokens: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.side, self.grid = math.isqrt(tokens), grid
        self.mlp = MLP(width, dim, 2)

    def forward(self, features: Tensor) -> Tensor:
        """float[V, K, C] -> float[V, Q, D]."""
        rows, columns = self.grid
        square = rearrange(features, "v (r c) w -> v w r c", r=rows, c=columns)
        pooled = functional.adaptive_avg_pool2d(square, self.side)
        return self.mlp(rearrange(pooled, "v w r c -> v (r c) w"))


class Resampler(nn.Module):
    """Q learned latents attend to the features (Perceiver resampler, arXiv 2204.14198, section A.1.1).

    The features are first projected to the decoder's width, as in TinyLLaVA (arXiv 2402.14289).
    """

    HEADS, HEAD_DIM, LAYERS, WIDER = 8, 64, 3, 4

    def __init__(self, width: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.latents = nn.Parameter(torch.randn(tokens, dim))
        self.layers = nn.ModuleList(_ResamplerLayer(dim) for _ in range(self.LAYERS))
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """float[V, K, C] -> float[V, Q, D]."""
        media = self.project(features)
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, media)
        return self.norm(latents)


class _ResamplerLayer(nn.Module):
    """Attention of the latents to features and latents, then a feed-forward net, both residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = Resampler.HEADS * Resampler.HEAD_DIM
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.feed = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, Resampler.WIDER * dim, bias=False),
            nn.GELU(),
            nn.Linear(Resampler.WIDER * dim, dim, bias=False),
        )

    def forward(self, latents: Tensor, media: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(media), normed], dim=1)
        heads = "v t (h e) -> v h t e"
        k, v = self.to_kv(seen).chunk(2, dim=-1)
        q, k, v = (rearrange(x, heads, h=Resampler.HEADS) for x in (self.to_q(normed), k, v))
        mixed = rearrange(functional.scaled_dot_product_attention(q, k, v), "v h t e -> v t (h e)")
        latents = latents + self.to_out(mixed)
        return latents + self.feed(latents)


def make_projector(kind: str, width: int, dim: int, grid: tuple[int, int], hidden: int) -> nn.Module:
    """The fresh projector of a kind, for views of rows x columns tokens.

    Raises ModelError for an unknown kind, or a number of tokens it cannot give.
    """
    name, number = _parsed(kind)
    projector_tokens(kind, grid)
    if name == "class_token":
        return ClassTokenProjector(width, hidden, dim)
    if name == "mlp":
        return MLP(width, dim, number)
    if name == "mean":
        return MeanPooling(width, dim, number, grid)
    return Resampler(width, dim, number)


def projector_tokens(kind: str, grid: tuple[int, int]) -> int:
    """How many tokens a projector makes of a view of rows x columns tokens."""
    name, number = _parsed(kind)
    if name not in ("mean", "resampler"):
        return grid[0] * grid[1]
    if name == "mean" and (math.isqrt(number) ** 2 != number or math.isqrt(number) > min(grid)):
        raise ModelError(
            f"projector: {kind!r} asks for {number} tokens; mean pooling makes a square of them, such as "
            f"mean-{min(max(1, min(grid) // 2), 12) ** 2}, of at most {min(grid)} x {min(grid)}"
        )
    return number


def keeps_tokens(kind: str) -> bool:
    """Whether a projector gives a token for every token, in their order."""
    return _parsed(kind)[0] in ("class_token", "mlp")


def _parsed(kind: str) -> tuple[str, int]:
    """The name of a kind and its number: layers of an MLP, tokens of the others."""
    if kind in ("class_token", "linear"):
        return ("class_token", 0) if kind == "class_token" else ("mlp", 1)
    if found := re.fullmatch(r"mlp([1-9])x_gelu", kind):
        return "mlp", int(found[1])
    if found := re.fullmatch(r"(resampler|mean)-([1-9]\d{0,3})", kind):
        return found[1], int(found[2])
    raise ModelError(f"projector: {kind!r} is no kind of projector; choose {KINDS}")
