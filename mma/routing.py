"""Which route weights hold for which token: the state that all sites of a model share in one forward.

In the decoder the router reads the modality token alone, and that token sees nothing but itself, so the
weights are a function of adapter and modality (docs/architecture.md). While training, the weights are
computed from the modality tokens: rows of the same packed batch, or a pass of their own just before it.
Afterwards a table holds the weights.

Shapes: N packed tokens, or B rows of T tokens; M modalities, K routes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mma.plan import BankPlan


@dataclass
class Routes:
    """The routing of one forward: each token's modality, and where its route weights come from.

    They come from the modality tokens where `modality_rows` says that these stand, from the router pass
    just before where `held` is set, and from the table otherwise.
    """

    token_modality: Tensor  # int64[N], or int64[B, 1] for rows of tokens
    modality_rows: Tensor | None = None  # int64[M]: the packed row of every modality's token
    held: bool = False
    plan: BankPlan | None = None  # which adapter of the bank answers each token; None: the active one
    _rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def by_rows(self, x: Tensor) -> Tensor:
        """Tokens float[B T, C] of a model that flattens its rows -> float[B, T, C]; others as they are."""
        return x.reshape(len(self.token_modality), -1, x.shape[-1]) if self._flattened(x) else x

    def _flattened(self, x: Tensor) -> bool:
        return x.ndim == 2 and self.token_modality.ndim == 2

    def rows_of(self, modality: int, x: Tensor) -> Tensor:
        """Which tokens of float[..., C] (flattened) carry a modality: int64[n]; asked once a forward."""
        tokens = x[..., 0].numel()
        if (modality, tokens) not in self._rows:
            per_token = self.token_modality.expand(x.shape[:-1]).reshape(-1)
            self._rows[modality, tokens] = (per_token == modality).nonzero()[:, 0]
        return self._rows[modality, tokens]

    def behind(self, tokens: Tensor) -> Routes:
        """The routing with every modality's token (int64[M], its own index) put in front of packed tokens."""
        plan = None if self.plan is None else self.plan.behind(len(tokens))
        return Routes(torch.cat([tokens, self.token_modality]), tokens, plan=plan)

    def select(self, tokens: Tensor) -> Routes:
        """The routing of some of the packed tokens (int64[N']), without modality tokens."""
        plan = None if self.plan is None else self.plan.select(tokens)
        return Routes(self.token_modality[tokens], plan=plan)

    def of_tokens(self, tokens: Tensor) -> Routes:
        """The routing of some packed tokens (int64[N']), among them all modality tokens, first, if any."""
        plan = None if self.plan is None else self.plan.select(tokens)
        return replace(self.only(tokens), plan=plan)

    def only(self, rows: Tensor) -> Routes:
        """The routing of some packed tokens (int64[n]); modality tokens, if any, come first in them."""
        kept = (
            None if self.modality_rows is None else torch.arange(len(self.modality_rows), device=rows.device)
        )
        return Routes(self.token_modality.index_select(0, rows), kept, self.held)


class RouteState:
    """Holds the current forward's `Routes`; one per model, shared by its sites."""

    def __init__(self) -> None:
        self.current: Routes | None = None
        self.gradients = 0  # how often a gradient has reached route weights: the table may be stale

    def count_gradient(self, _: Tensor) -> None:
        """Hook of route weights: a gradient comes before every optimizer step."""
        self.gradients += 1

    def watch(self, x: Tensor) -> None:
        """Counts the gradients of the stream in front of all sites, float[..., C]: compiled sites cannot."""
        if x.requires_grad:
            x.register_hook(self.count_gradient)  # type: ignore[no-untyped-call]

    @contextmanager
    def use(self, routes: Routes) -> Iterator[None]:
        """Routes for the forwards inside the block."""
        before = self.current
        self.current = routes
        try:
            yield
        finally:
            self.current = before


def spread(weights: Tensor, token_modality: Tensor) -> Tensor:
    """Weights float[M, K] of every modality -> float[..., K], one row per token of int64[...]."""
    flat = torch.index_select(weights, 0, token_modality.reshape(-1))
    return flat.reshape(*token_modality.shape, weights.shape[-1])
