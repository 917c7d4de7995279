"""The sites of one model and what is held there: wrappers come with the first adapter, go with the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mma.adapter import ModalityRouted, SiteAdapter
from mma.bank_stack import Stack
from mma.config import AdapterConfig, SiteConfig
from mma.errors import AdapterError
from mma.routing import RouteState
from mma.sites import Site, Wrapped, device_of, make_module, replace


class Places:
    """The sites of a model, in order, and the wrappers where something is held."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], state: RouteState) -> None:
        self.sites = tuple(sites)
        self.wrapped: dict[Site, Wrapped] = {}
        self._model, self._state = model, state

    def __len__(self) -> int:
        """How many sites hold something."""
        return len(self.wrapped)

    def add(self, name: str, config: AdapterConfig) -> None:
        """Puts an adapter's fresh modules at the sites that its settings choose."""
        for site in self.sites:
            module = make_module(site, config, self._state)
            if module is not None:
                wrapper = self._wrapper(site)
                module.train(wrapper.training)
                wrapper.adapters[name] = module.to(self._device(wrapper.base), torch.float32)
        if isinstance(config, SiteConfig) and not any(self.modules_of(name)):
            raise AdapterError(
                f"adapter: the settings put {name!r} at none of the {len(self.sites)} sites of this model; "
                "look at placement, layers and targets"
            )

    def shapes_of(self, config: AdapterConfig) -> dict[str, torch.Size]:
        """The shapes of an adapter's tensors at the sites, by name; the modules take no memory."""
        with torch.device("meta"):
            modules = {site.path: make_module(site, config, self._state) for site in self.sites}
        held = [(path, module) for path, module in modules.items() if module is not None]
        return {f"{path}.{leaf}": p.shape for path, module in held for leaf, p in module.named_parameters()}

    def drop(self, name: str) -> None:
        """Takes an adapter's modules away."""
        for site, wrapper in list(self.wrapped.items()):
            if name in wrapper.adapters:
                del wrapper.adapters[name]
            self._remove_if_empty(site)

    def activate(self, name: str | None) -> None:
        """Lets one adapter act, or none."""
        for wrapper in self.wrapped.values():
            wrapper.active = name if name is not None and name in wrapper.adapters else None

    def modules_of(self, name: str) -> Iterator[tuple[Site, SiteAdapter]]:
        """The sites of an adapter with its modules there, in the order of the sites."""
        for site in self.sites:
            if site in self.wrapped and name in self.wrapped[site].adapters:
                module = self.wrapped[site].adapters[name]
                assert isinstance(module, SiteAdapter), "make_module makes no other"
                yield site, module

    def routed(self, name: str) -> list[ModalityRouted]:
        """The modules of an adapter that the modality tokens route."""
        return [module for _, module in self.modules_of(name) if isinstance(module, ModalityRouted)]

    def put_stack(self, site: Site, stack: Stack | None) -> None:
        """Sets or takes away the bank's adapters at a site."""
        self._wrapper(site).stack = stack
        self._remove_if_empty(site)

    def clear(self) -> None:
        """Takes everything away; sites that are merged hold the base's module already."""
        for site, wrapper in self.wrapped.items():
            if self._model.get_submodule(site.path) is wrapper:
                replace(self._model, site.path, wrapper.base)
        self.wrapped.clear()

    def _wrapper(self, site: Site) -> Wrapped:
        if site not in self.wrapped:
            wrapper = Wrapped(self._model.get_submodule(site.path), self._state)
            wrapper.train(wrapper.base.training)
            replace(self._model, site.path, wrapper)
            self.wrapped[site] = wrapper
        return self.wrapped[site]

    def _remove_if_empty(self, site: Site) -> None:
        wrapper = self.wrapped[site]
        if not wrapper.adapters and wrapper.stack is None:
            replace(self._model, site.path, wrapper.base)
            del self.wrapped[site]

    def _device(self, module: nn.Module) -> torch.device:
        return device_of(module, device_of(self._model, torch.device("cpu")))
