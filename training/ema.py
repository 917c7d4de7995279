"""An exponential moving average of the trained tensors, kept beside them while they train.

Knows tensors by name only; when they are averaged, validated or saved is the loop's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """The average e of trained tensors p: after each step e becomes d e + (1 - d) p.

    d is `decay`, but lower in the beginning, so that the untrained start is soon forgotten.
    """

    def __init__(self, trained: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in trained.items()}

    def update(self, trained: Mapping[str, Tensor], steps: int) -> None:
        """Takes in the tensors after one more step; `steps` were taken in before."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for name, average in self.tensors.items():
                average.lerp_(trained[name], 1 - decay)

    @contextmanager
    def applied(self, trained: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the trained tensors hold the average; afterwards their own bits again."""
        own = {name: tensor.detach().clone() for name, tensor in trained.items()}
        try:
            _copy(self.tensors, trained)
            yield
        finally:
            _copy(own, trained)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    # Copied, not exchanged: a write raises a tensor's version, by which routing tables know they are old.
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
