"""Where adapters sit: a norm or linear layer of the base is wrapped; what reads it reads the adapted output.

No forward is rewritten and no parameter is found by matching its name: whoever owns the base names its
sites. Several named adapters can be held at one site; one of them, or none, is active. A site without
adapters is the base's own module again.

Shapes: ... leading axes (tokens), C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mma.adapter import (
    Bottleneck,
    ModalityRouted,
    SiteAdapter,
    TokenRouted,
    UnroutedReplacement,
    VectorRouted,
)
from mma.bank_stack import Stack
from mma.config import AdapterConfig, BottleneckConfig, LoraConfig, MMAConfig
from mma.fused import norm_of
from mma.lora import Lora
from mma.plan import BankPlan
from mma.routing import Routes, RouteState


@dataclass(frozen=True)
class Site:
    """A norm of the base with the linear layers that read it, or a linear layer itself."""

    path: str  # dotted path from the model, e.g. "decoder.blocks.0.attn_norm"
    channels: int
    part: str  # "decoder" (routed by modality) or "tower" (by the tower rule)
    role: str  # "attn", "mlp", or "both" for a norm that both read
    layer: int | None = None  # index of its block
    readers: tuple[str, ...] = ()  # of a norm: dotted paths of the linear layers that read its output
    out: int = 0  # of a linear layer: channels of its output

    @property
    def kind(self) -> Literal["norm", "linear"]:
        """What is wrapped."""
        return "linear" if self.out else "norm"


class Wrapped(nn.Module):
    """A module of the base in its place, with the adapters held there."""

    def __init__(self, base: nn.Module, state: RouteState) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.stack: Stack | None = None  # the bank's adapters at this site
        self._state = state

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., C']."""
        routes = self._state.current
        adapter = self.adapters[self.active] if self.active is not None else None
        fused = self._in_one_step(x, adapter, routes)
        if fused is not None:
            return fused
        y: Tensor = self.base(x)
        if routes is None:
            return y if adapter is None else adapter(x, y, None)
        shape = y.shape
        x, y = routes.by_rows(x), routes.by_rows(y)
        if routes.plan is not None:
            y = self._by_plan(x, y, adapter, routes, routes.plan)
        elif adapter is not None:
            y = adapter(x, y, routes)
        return y.reshape(shape)

    def _in_one_step(self, x: Tensor, adapter: nn.Module | None, routes: Routes | None) -> Tensor | None:
        """Norm and adapter in one step (`mma/fused.py`); None where only both one by one will do."""
        if not isinstance(adapter, SiteAdapter) or (routes is not None and routes.plan is not None):
            return None
        norm = norm_of(self.base, x)
        if norm is None:
            return None
        y = adapter.behind(norm, x if routes is None else routes.by_rows(x), routes)
        return None if y is None else y.reshape(x.shape)

    def _by_plan(
        self, x: Tensor, y: Tensor, adapter: nn.Module | None, routes: Routes, plan: BankPlan
    ) -> Tensor:
        """Every token by the adapter that the bank's plan names for it."""
        out = y if self.stack is None or not plan.slots else self.stack(y, plan)
        if plan.live is None or adapter is None:
            return out
        rows = plan.live
        return out.index_copy(0, rows, adapter(x[rows], y[rows], routes.only(rows)))

    def __getattr__(self, name: str) -> Any:
        """What the base's module has can be asked of the wrapper: models look at `norm.weight`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def make_module(site: Site, config: AdapterConfig, state: RouteState) -> SiteAdapter | None:
    """The fresh module of an adapter at a site; None where its settings put none."""
    linear = isinstance(config, LoraConfig)
    if (site.kind == "linear") != linear:
        return None
    if isinstance(config, LoraConfig) and config.targets:
        inside = site.part == "decoder" or config.tower_where != "none"
        chosen = inside and site.path.rpartition(".")[2] in config.targets
        chosen = chosen and (not config.layers or site.layer in config.layers)
    else:
        chosen = config.placed(site.part, site.role, site.layer)
    if not chosen:
        return None
    if isinstance(config, LoraConfig):
        return Lora(site.channels, site.out, config)
    if isinstance(config, BottleneckConfig):
        return Bottleneck(site.channels, config)
    assert isinstance(config, MMAConfig), "there are three kinds"
    if site.part == "decoder":
        return ModalityRouted(site.channels, config, state)
    kinds: dict[str, Callable[[int, MMAConfig], SiteAdapter]] = {
        "token": TokenRouted,
        "modality": VectorRouted,
        "legacy_no_residual": UnroutedReplacement,
    }
    return kinds[config.tower](site.channels, config)


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of the one at a dotted path."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module's first parameter lies; the default for one without parameters."""
    first = next(module.parameters(), None)
    return default if first is None else first.device
