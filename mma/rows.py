"""Tells the sites what the rows of a batch carry, for models that take rows of tokens (float[B, T, D])."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from mma.errors import AdapterError
from mma.routing import Routes
from mma.sites import device_of

if TYPE_CHECKING:
    from mma.adapters import Adapters


@contextmanager
def carrying(
    adapters: Adapters, modalities: str | Sequence[str], answered_by: Sequence[str | None] | None
) -> Iterator[None]:
    """See `Adapters.carrying`."""
    bank = None if answered_by is None else adapters.open_bank
    known = adapters.config.modalities if bank is None else bank.modalities
    count = 1 if answered_by is None else len(answered_by)
    named = (modalities,) * count if isinstance(modalities, str) else tuple(modalities)
    if unknown := [name for name in named if name not in known]:
        raise AdapterError(f"adapter: there is no modality {unknown[0]!r}; choose {', '.join(known)}")
    if answered_by is not None and len(named) != count:
        raise AdapterError(
            f"adapter: {len(named)} rows carry something, but {count} adapters are named for them"
        )
    if adapters.merged is not None:
        adapters.merged.check(named)
    of_row = [known.index(name) for name in named]
    device = device_of(adapters.model, torch.device("cpu"))
    with adapters.turns.computing():
        plan = None if bank is None else bank.plan(answered_by or (), of_row, [1] * count, device)
        held = adapters.routed and torch.is_grad_enabled()
        if held:  # the route weights stay in the graph, so that gradients reach router and modality tokens
            adapters.router_pass()
        elif adapters.active is not None:
            adapters.refresh_table()
        carried = torch.tensor(of_row, device=device)[:, None]
        with adapters.state.use(Routes(carried, held=held, plan=plan)):
            yield
