"""Parts of a block that keep little for the backward pass: what is cheap to compute is computed again.

A frozen linear layer keeps nothing of its input, so what a block keeps is decided by what stands between its
linear layers. Each function here is the usual formula with a backward pass of its own.

Shapes: N packed tokens, D width, F hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _RMSNorm(Function):
    """Keeps the input, which the residual holds anyway, and one number per token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        g = (grad * weight).float()
        normed = x.float() * scale
        inner = (g * normed).mean(-1, keepdim=True)
        return normed.mul_(inner).sub_(g).mul_(-scale).to(x.dtype), None, None


class _SwiGLU(Function):
    """Keeps gate and up, not silu(gate) and their product."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_up = functional.silu(gate).mul_(grad)
        of_gate: Tensor = torch.ops.aten.silu_backward(grad * up, gate)
        return of_gate, of_up


class _Rotate(Function):
    """Keeps the angles, which all layers share: turning back needs nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (arXiv 1910.07467) with a frozen gain: in fp32, cast back before the gain.

    float[..., D], gain float[D] -> float[..., D].
    """
    normed: Tensor = _RMSNorm.apply(x, weight, eps)
    return normed


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202): float[N, F] twice -> float[N, F]."""
    hidden: Tensor = _SwiGLU.apply(gate, up)
    return hidden


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns every pair (j, j + R/2) of float[N, H, E] by its angle, in fp32; channels from R on stay."""
    turned: Tensor = _Rotate.apply(x, cos, sin)
    return turned


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    # Not addcmul: it rounds once where the usual formula rounds twice, which far positions show.
    out[..., :half] = (first * cos).sub_(second * sin)
    out[..., half : 2 * half] = (second * cos).add_(first * sin)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out
