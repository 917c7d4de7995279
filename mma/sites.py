"""Where adapters sit: a norm of the base is wrapped, and what reads the norm reads the adapter's output.

No forward is rewritten and no parameter is found by matching its name: whoever owns the base names its
sites. Several named adapters can be held at one site; one of them, or none, is active.

Shapes: N packed tokens, C channels, M modalities, K routes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mma.adapter import RoutedAdapter, UnroutedReplacement, VectorRoutedAdapter
from mma.config import MMAConfig
from mma.routing import RouteState, spread


@dataclass(frozen=True)
class Site:
    """A norm of the base by its dotted path, its width, and what routes there."""

    path: str  # dotted path from the model, e.g. "decoder.blocks.0.attn_norm"
    channels: int
    part: str  # "decoder" (routed by modality) or "tower" (by the tower rule)
    role: str  # "attn" or "mlp": what reads the norm


class ModalitySite(nn.Module):
    """A decoder norm and its adapters, routed by each token's modality."""

    def __init__(self, norm: nn.Module, channels: int, state: RouteState) -> None:
        super().__init__()
        self.norm = norm
        self.channels = channels
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.table: dict[str, Tensor] = {}  # adapter -> route weights float[M, K], once it is evaluated
        self.last_weights: Tensor | None = None  # float[M, K], of the last forward with modality tokens
        self._state = state

    def add(self, name: str, config: MMAConfig) -> None:
        """Creates an adapter of this name."""
        self.adapters[name] = RoutedAdapter(self.channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """float[N, C] -> float[N, C]."""
        y: Tensor = self.norm(x)
        if self.active is None or self.active not in self.adapters:
            return y
        routes = self._state.current
        if routes is None:
            raise RuntimeError("a site routed by modality was run outside RouteState.use()")
        adapter = self.adapters[self.active]
        assert isinstance(adapter, RoutedAdapter), "add() makes no other kind"
        if routes.modality_rows is not None:
            weights = adapter.weights(y.index_select(0, routes.modality_rows).float())
            self.last_weights = weights.detach()
            if weights.requires_grad:
                weights.register_hook(self._state.count_gradient)  # type: ignore[no-untyped-call]
        else:
            weights = self.table[self.active]
        out: Tensor = adapter(y, spread(weights, routes.token_modality))
        return out


class TowerSite(nn.Module):
    """A tower norm and its adapters, each with the rule of its own settings."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.channels = channels
        self.adapters = nn.ModuleDict()
        self.active: str | None = None

    def add(self, name: str, config: MMAConfig) -> None:
        """Creates an adapter of this name by the tower rule of its settings."""
        kinds: dict[str, type[nn.Module]] = {
            "token": RoutedAdapter,
            "modality": VectorRoutedAdapter,
            "legacy_no_residual": UnroutedReplacement,
        }
        self.adapters[name] = kinds[config.tower](self.channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., C]; every token is routed by itself alone."""
        y: Tensor = self.norm(x)
        if self.active is None or self.active not in self.adapters:
            return y
        adapter = self.adapters[self.active]
        out: Tensor = adapter(y, adapter.weights(y)) if isinstance(adapter, RoutedAdapter) else adapter(y)
        return out


def wrap(model: nn.Module, site: Site, state: RouteState) -> ModalitySite | TowerSite:
    """Puts a site's wrapper in the place of its norm and returns it."""
    parent_path, _, leaf = site.path.rpartition(".")
    parent = model.get_submodule(parent_path)
    norm = parent.get_submodule(leaf)
    wrapper: ModalitySite | TowerSite
    if site.part == "decoder":
        wrapper = ModalitySite(norm, site.channels, state)
    else:
        wrapper = TowerSite(norm, site.channels)
    setattr(parent, leaf, wrapper)
    return wrapper


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter lies."""
    return next(module.parameters()).device
