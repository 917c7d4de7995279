"""What an adapter adds once its route weights are fixed: a low-rank map, for merging, export and bank.

At a norm's output x the adapter gives x + U (A x + a) + u. A linear layer W, b behind it then computes

    W x + b  +  (W U) (A x + a) + W u        (arXiv 2305.15023, section 3.1, route weights folded in)

which is W' x + b' with W' = W + W U A and b' = b + W (U a + u): a LoRA of rank r with a bias. Knows nothing
of modules, sites or files.

Shapes: C channels of the input, O channels of the output, r rank, ... any leading axes (tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The map x -> up (down x + down_bias) + bias, which an adapter adds."""

    down: Tensor  # float[r, C]
    down_bias: Tensor  # float[r]
    up: Tensor  # float[O, r]
    bias: Tensor  # float[O]

    def __call__(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., O], in the type of x."""
        down, down_bias, up, bias = (t.to(x.dtype) for t in (self.down, self.down_bias, self.up, self.bias))
        return torch.nn.functional.linear(torch.nn.functional.linear(x, down, down_bias), up, bias)

    def behind(self, weight: Tensor) -> LowRank:
        """The same seen behind a linear layer float[O', O]: what its output gains."""
        wide = weight.to(self.up.dtype)
        return LowRank(self.down, self.down_bias, wide @ self.up, wide @ self.bias)

    def dense(self) -> tuple[Tensor, Tensor]:
        """The map as a weight float[O, C] and a bias float[O]."""
        return self.up @ self.down, self.up @ self.down_bias + self.bias

    def minus(self, other: LowRank) -> LowRank:
        """The difference of two maps; of rank r where both share the down-projection, as modalities do."""
        if torch.equal(self.down, other.down) and torch.equal(self.down_bias, other.down_bias):
            return LowRank(self.down, self.down_bias, self.up - other.up, self.bias - other.bias)
        return weighted_sum([self, other], [1.0, -1.0])

    def equals(self, other: LowRank) -> bool:
        """Whether both are the same tensors, value by value."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another type."""
        return LowRank(*(t.to(dtype) for t in (self.down, self.down_bias, self.up, self.bias)))


def weighted_sum(maps: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The exact weighted sum of several maps: their ranks add up."""
    return LowRank(
        down=torch.cat([low.down for low in maps]),
        down_bias=torch.cat([low.down_bias for low in maps]),
        up=torch.cat([weight * low.up for low, weight in zip(maps, weights, strict=True)], dim=1),
        bias=torch.stack([weight * low.bias for low, weight in zip(maps, weights, strict=True)]).sum(0),
    )
