"""Two modules of open_clip's blocks that waste less: the same weights, the same names, the same values.

PyTorch's own self-attention with the batch in front turns its input, and a linear layer then multiplies
picture by picture; and the quick GELU of CLIP keeps three tensors of its width for the backward pass.

Shapes: V views, T tokens of a view, C width, H heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional


class SelfAttention(nn.MultiheadAttention):
    """The attention of a block whose queries, keys and values are the same tokens."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__(original.embed_dim, original.num_heads, batch_first=True, device="meta")
        self.in_proj_weight, self.in_proj_bias = original.in_proj_weight, original.in_proj_bias
        self.out_proj = original.out_proj

    def forward(self, query: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: Any) -> Any:
        """float[V, T, C] -> float[V, T, C], and no weights."""
        joined = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(joined, "v t (three h e) -> three v h t e", three=3, h=self.num_heads)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(rearrange(mixed, "v h t e -> v t (h e)")), None


class _QuickGELU(Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(1.702 * x)
        return grad * (share + 1.702 * x * share * (1 - share))


class LeanQuickGELU(QuickGELU):
    """x sigmoid(1.702 x), as CLIP has it (arXiv 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """float[...] -> float[...]."""
        y: Tensor = _QuickGELU.apply(x)
        return y


def make_lean(blocks: nn.ModuleList) -> None:
    """Puts the lean modules into open_clip's blocks; timm's need none."""
    for block in blocks:
        if not isinstance(block, ResidualAttentionBlock):
            continue
        if isinstance(block.attn, nn.MultiheadAttention):
            block.attn = SelfAttention(block.attn)
        if isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.gelu = LeanQuickGELU()
