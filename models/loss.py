"""Cross-entropy of hidden states through the output layer, some rows at a time: never all logits at once.

Shapes: L supervised positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**26  # of logits in fp32: small beside any model, large enough for the matrix product


class _FrozenHead(Function):
    """The gradient of the hidden states is made beside the loss, so nothing of a chunk is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wants = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants else None
        rows = _rows(len(weight))
        for start in range(0, len(hidden), rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logits = functional.linear(part, weight, bias).float()
            largest = logits.amax(-1, keepdim=True)
            right = logits.gather(1, wanted)
            share = logits.sub_(largest).exp_()  # softmax times its sum
            sums = share.sum(-1, keepdim=True)
            total += (sums.log() + largest - right).sum()
            if gradient is not None:
                # (softmax - one at the target) W, with the division behind the product: fewer numbers.
                product = torch.mm(share.to(weight.dtype), weight).div_(sums)
                gradient[start : start + rows] = product.sub_(weight.index_select(0, wanted[:, 0]))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * grad).to(gradient.dtype), None, None, None


def cross_entropy(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """The sum of the cross-entropy of head(hidden) at the targets, in fp32.

    Hidden states float[L, D], targets int64[L] -> float32[].
    """
    frozen = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
    if frozen and hidden.dtype == head.weight.dtype:
        loss: Tensor = _FrozenHead.apply(hidden, head.weight, head.bias, targets)
        return loss
    rows = _rows(head.out_features)
    parts = [
        checkpoint(_plain, part, head, wanted, use_reentrant=False)
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(parts).sum() if parts else hidden.sum() * 0


def _plain(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


def _rows(vocabulary: int) -> int:
    return max(1, CHUNK_BYTES // (4 * vocabulary))
