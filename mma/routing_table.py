"""Keeps the routing tables of a model's adapters true to their tensors.

A table is evaluated by one pass of the modality tokens, and again only when the tensors have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mma.adapter import ModalityRouted
from mma.routing import RouteState

Key = tuple[int, int, set[torch.device]]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, then every module's own mode again: parts may differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class RoutingTables:
    """Which adapters' tables are up to date.

    Args:
        router_pass: Runs every modality's token through the model with the active adapter.
    """

    def __init__(self, router_pass: Callable[[], None], state: RouteState) -> None:
        self._router_pass, self._state = router_pass, state
        self._keys: dict[str, Key] = {}

    def refresh(
        self,
        name: str,
        modules: Collection[ModalityRouted],
        trained: Collection[nn.Parameter],
        model: nn.Module,
    ) -> None:
        """Evaluates the table of the active adapter again if its tensors have changed."""
        # In-place writes raise a tensor's version, but a fused optimizer's step does not. Such a step comes
        # after a gradient: with one at hand nothing is kept, and none may have come since the table was made.
        learning = any(p.grad is not None for p in trained)
        key = (sum(p._version for p in trained), self._state.gradients, {p.device for p in trained})
        if not learning and self._keys.get(name) == key:
            return
        self.forget(name)
        with evaluating(model), torch.no_grad():
            self._router_pass()
        for module in modules:
            assert module.seen is not None, "the router pass visits every decoder site"
            if module.table is not None and module.table.shape == module.seen.shape:
                module.table.copy_(module.seen)  # in place: captured graphs go on reading it
            else:
                with torch.inference_mode(False):  # or it could not be written in place later
                    module.table = module.seen.detach().clone()
        if not learning:
            self._keys[name] = key

    def forget(self, name: str) -> None:
        """The next refresh evaluates the table whatever it remembers."""
        self._keys.pop(name, None)
