"""Bases in 8 or 4 bits: the linear layers of a decoder's blocks are quantised as they are read.

Each weight is quantised before the next one is read, so a base never lies whole in 16 bits. Embedding, norms
and output layer stay as they are. Works on the CPU; written for CUDA too. Errors: docs/results.md.

Shapes: N tokens, C channels of a layer's input, O of its output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.errors import ModelError
from models.fp8 import Fp8Linear

KINDS = ("none", "int8", "nf4", "fp8")
Quantise = Callable[[nn.Linear, Tensor], nn.Module]
"""(a linear layer without memory, its weight) -> the layer that takes its place; its bias is filled later."""


def check_kind(kind: str) -> None:
    """Raises ModelError for a kind that there is not."""
    if kind not in KINDS:
        raise ModelError(f"base: quantise is {kind!r}; choose {', '.join(KINDS)}")


def weight_bytes(kind: str, shape: torch.Size, full: int) -> float:
    """Bytes of a linear layer's weight [O, C]; `full` are those of one unquantised number."""
    if kind in ("int8", "fp8"):
        return shape.numel() + 4 * shape[0]
    # Double quantisation leaves 0.127 bits of scales beside each 4 bits (arXiv 2305.14314, section 3).
    return shape.numel() * (4.127 / 8 if kind == "nf4" else full)


def quantiser(kind: str, compute: torch.dtype) -> Quantise | None:
    """What makes the quantised layers; None for `none`.

    `int8` has the weights of LLM.int8() (arXiv 2208.07339, section 2), `nf4` the normal float of QLoRA with
    double quantisation (arXiv 2305.14314, section 3). Activations are not quantised with them: LLM.int8()
    chooses its outliers over a whole batch, so an answer would depend on its batch mates. `fp8` rounds both
    (models/fp8.py). Raises ModelError for another kind, or without bitsandbytes where that is needed.
    """
    check_kind(kind)
    if kind == "none":
        return None
    if kind == "fp8":
        return Fp8Linear
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"base: quantise {kind} needs bitsandbytes; pip install bitsandbytes")
    return _int8_layer if kind == "int8" else _nf4_layer(compute)


class Int8Linear(nn.Linear):
    """x (s Q)^T + b, where Q int8[O, C] are the weights in steps of each row's own size s float32[O]."""

    def __init__(self, linear: nn.Linear, steps: Tensor, size: Tensor) -> None:
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        super().__init__(*sizes, device="meta")
        self.weight = nn.Parameter(steps, requires_grad=False)
        self.step = nn.Parameter(size, requires_grad=False)  # a parameter: the base's digest covers those

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., O]."""
        y: Tensor = _BySteps.apply(x, self.weight, self.step)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _BySteps(torch.autograd.Function):
    """The product with a weight in steps, which is widened anew for the gradient and never kept.

    The steps' sizes are in fp32, and so is the product with them, in registers: no fp32 tensor is made.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(weight, step)
        return functional.linear(x, weight.to(x.dtype)).mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, step = ctx.saved_tensors
        scaled = torch.mul(grad, step, out=torch.empty_like(grad))
        return scaled @ weight.to(grad.dtype), None, None


def _int8_layer(linear: nn.Linear, weight: Tensor) -> nn.Module:
    steps, largest, _ = _library().functional.int8_vectorwise_quant(weight.half())
    return Int8Linear(linear, steps, largest / 127)


def _nf4_layer(compute: torch.dtype) -> Quantise:
    def made(linear: nn.Linear, weight: Tensor) -> nn.Module:
        library = _library().nn
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        layer: nn.Module = library.Linear4bit(*sizes, compute_dtype=compute, device="meta")
        # Else some processors pack the weight anew while answering: other bytes, less exact, not every shape.
        layer.support_avx512bf16_for_cpu = False
        parameter = library.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        layer.weight = parameter.to(weight.device)  # the library quantises when it is moved, be it nowhere
        return layer

    return made


def _library() -> Any:
    # It tells of kernels that it would have liked to load.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes  # noqa: PLC0415  # takes seconds, and only quantised bases need it

    return bitsandbytes
