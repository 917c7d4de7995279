"""Which route weights hold for which token: the state that all sites of a model share in one forward.

In the decoder the router reads the modality token alone, and that token sees nothing but itself, so the
weights are a function of adapter and modality (docs/architecture.md). While training, the modality tokens
are rows of the packed batch and weights are computed from them; afterwards a table holds the weights.

Shapes: N packed tokens, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Routes:
    """The routing of one forward: each token's modality, and where the modality tokens stand if they do."""

    token_modality: Tensor  # int64[N]
    modality_rows: Tensor | None  # int64[M]: the packed row of every modality's token; None: use the table


class RouteState:
    """Holds the current forward's `Routes`; one per model, shared by its sites."""

    def __init__(self) -> None:
        self.current: Routes | None = None
        self.gradients = 0  # how often a gradient has reached route weights: the table may be stale

    def count_gradient(self, _: Tensor) -> None:
        """Hook of route weights: a gradient comes before every optimizer step."""
        self.gradients += 1

    @contextmanager
    def use(self, token_modality: Tensor, modality_rows: Tensor | None) -> Iterator[None]:
        """Routes for the forwards inside the block."""
        before = self.current
        self.current = Routes(token_modality, modality_rows)
        try:
            yield
        finally:
            self.current = before


def spread(weights: Tensor, token_modality: Tensor) -> Tensor:
    """Weights float[M, K] of every modality -> float[N, K], one row per token."""
    return torch.index_select(weights, 0, token_modality)
