"""The order of training samples: which samples step k holds is a function of (seed, k) alone.

The order of an epoch sorts the indices by a hash of (seed, epoch, index). Unlike a library's shuffle
this gives the same order under every version of every library, so a run can be resumed or repeated
elsewhere. How a step is packed into micro-batches never changes what the step holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.order import keyed_order
from data.packing import pack
from data.sample import Indexed, Tokens


@dataclass(frozen=True)
class EpochOrder:
    """The sample indices of every epoch and step of a run."""

    n_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise DataError("there are no samples to train on; choose another split or limit")

    def permutation(self, epoch: int) -> tuple[int, ...]:
        """All sample indices in the order of an epoch (from 0)."""
        return tuple(_permutation(self.n_samples, self.seed, epoch).tolist())

    def steps_per_epoch(self, effective_batch: int) -> int:
        """How many steps an epoch takes; its last may be smaller."""
        return -(-self.n_samples // effective_batch)

    def step(self, step: int, effective_batch: int) -> tuple[int, ...]:
        """The sample indices of a step (from 0, counted through all epochs)."""
        if effective_batch < 1:
            raise DataError(f"the effective batch is {effective_batch}; it takes at least one sample")
        epoch, within = divmod(step, self.steps_per_epoch(effective_batch))
        order = _permutation(self.n_samples, self.seed, epoch)
        return tuple(order[within * effective_batch : (within + 1) * effective_batch].tolist())


def micro_batches(tokens: Indexed[Tokens | None], indices: Sequence[int], budget: int) -> list[list[Tokens]]:
    """The samples of one step in groups of at most `budget` tokens; None is a sample that was left out."""
    chosen = [sample for index in indices if (sample := tokens[index]) is not None]
    groups = pack([len(sample) for sample in chosen], budget, [sample.sample_id for sample in chosen])
    return [[chosen[index] for index in group] for group in groups]


@lru_cache(maxsize=4)
def _permutation(n_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return keyed_order(n_samples, f"{seed} {epoch}")
