"""Linear layers that multiply in 8-bit floating point (arXiv 2209.05433), weights and activations alike.

A frozen weight is rounded to e4m3 once, as it is read; activations and their gradients are rounded as they
come. Every output row of the weight and every token has a scale of its own, so an answer depends on no batch
mate. Scales are powers of two: scaling then costs no digit, and the plain form, which multiplies the same
rounded numbers in the computation's own type, is exact in bf16 too.

From Hopper on a product in bf16 is `torch._scaled_mm`, forward and for the gradient; elsewhere the plain form
is taken: the same numbers, none of the speed.

Shapes: N tokens, C channels of a layer's input, O of its output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

FP8 = torch.float8_e4m3fn
TOP = 8  # largest numbers come to lie below 2^8: e4m3 ends at 448
LEAST = -118  # exponent of the smallest rows that are scaled up: beyond, the inverse scale would be infinite
HOPPER = (9, 0)
UNIT = 16  # what both widths of a product must be a multiple of


class Fp8Linear(nn.Linear):
    """x (s Q)^T + b, where Q are the weights in e4m3, [O, C], and s float32[O] the scale of each row.

    Q is held as bytes: nothing may take it for a weight to calculate with, or cast it.
    """

    def __init__(self, linear: nn.Linear, weight: Tensor) -> None:
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        super().__init__(*sizes, device="meta")
        rounded, scale = to_fp8(weight)
        self.weight = nn.Parameter(rounded.view(torch.uint8), requires_grad=False)
        # A parameter: the base's digest covers those.
        self.scale = nn.Parameter(scale.squeeze(-1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., O]."""
        y: Tensor = _Product.apply(x, self.weight, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """Keeps nothing of its input: a frozen weight has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return multiply(x, weight.view(FP8), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        # Each row's scale belongs to a channel of the gradient: put there, before that is rounded.
        return multiply(grad * scale.to(grad.dtype), weight.view(FP8).t(), None), None, None


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """float[..., C] -> e4m3[..., C] and the scales float32[..., 1] that they are to be multiplied with.

    Rows that are not finite have the scale NaN: e4m3 has no infinity, they would become large numbers.
    """
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).float()
    exponent = torch.frexp(largest).exponent.clamp(min=LEAST) - TOP
    return (x * _power(-exponent).to(x.dtype)).to(FP8), _power(exponent) + (largest - largest)


def _power(exponent: Tensor) -> Tensor:
    """2 to the power of int32[...], float32[...]: by its bits, since a GPU's own may round."""
    return ((exponent + 127) << 23).view(torch.float32)


def multiply(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Rounds float[..., C] and multiplies it with e4m3[O, C] of the scales float32[O] (None: all 1)."""
    rows = x.reshape(-1, x.shape[-1])
    rounded, own = to_fp8(rows)
    product = _on_tensor_cores if _fits(rows, weight) else _anywhere
    return product(rounded, own, weight, scale, x.dtype).view(*x.shape[:-1], len(weight))


def _anywhere(
    rounded: Tensor, own: Tensor, weight: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The product in the computation's own type: e4m3[N, C] of scales float32[N, 1] -> float[N, O]."""
    y = functional.linear(rounded.to(dtype), weight.to(dtype)).mul_(own)
    return y if scale is None else y.mul_(scale)


def _on_tensor_cores(
    rounded: Tensor, own: Tensor, weight: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """As `_anywhere`. The cores read both sides along C, so for the gradient the weight is turned first."""
    fast = scale is not None  # Hopper may sum with fewer digits than fp32 has: not for gradients
    if scale is None:
        scale = own.new_ones(len(weight))
    left, right = rounded.contiguous(), weight.contiguous().t()
    return torch._scaled_mm(
        left, right, scale_a=own, scale_b=scale[None], out_dtype=dtype, use_fast_accum=fast
    )


def _fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether the cores take this product."""
    return (
        rows.is_cuda
        and rows.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(rows.device) >= HOPPER
        and len(rows) > 0
        and all(width % UNIT == 0 for width in weight.shape)
    )
