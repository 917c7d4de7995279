"""The adapters of one model: creating, choosing, switching off, declaring what is trained.

An adapter is everything that is trained together: a module at every site, and the parts the model itself
needs (projector, modality tokens), which its owner makes. Knows no model class; it is told the sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mma import folder as adapter_folder
from mma.config import MMAConfig
from mma.errors import AdapterError
from mma.routing import RouteState
from mma.sites import ModalitySite, Site, device_of, wrap

MakeParts = Callable[[MMAConfig], Mapping[str, nn.Module]]
RouterPass = Callable[[], None]


@dataclass(frozen=True)
class SiteReport:
    """A line of the report: a site or part, its width, and how many parameters are trained there."""

    name: str
    channels: int | None
    parameters: int


class Adapters(nn.Module):
    """Named adapters on one frozen model.

    Args:
        model: The frozen model; every parameter it has now is base and never trained.
        sites: Its norms that can carry an adapter.
        make_parts: Makes the other trained parts of an adapter from its settings.
        router_pass: Runs every modality's token through the model, so that the decoder sites see them.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], make_parts: MakeParts, router_pass: RouterPass
    ) -> None:
        super().__init__()
        self.state = RouteState()
        self.parts = nn.ModuleDict()  # adapter -> its parts
        self.configs: dict[str, MMAConfig] = {}
        self.active: str | None = None
        self.identity: dict[str, Any] = {}  # base names, digests, preprocessing: the owner fills it
        self._base = list(model.parameters())
        for parameter in self._base:
            parameter.requires_grad_(False)
        self._sites = {site: wrap(model, site, self.state) for site in sites}
        self._make_parts, self._router_pass = make_parts, router_pass
        # A tuple keeps the model out of this module's own children.
        self._owner = (model,)
        self._table_key: dict[str, tuple[int, int, set[torch.device]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are held, in the order they came."""
        return tuple(self.configs)

    @property
    def config(self) -> MMAConfig:
        """The settings of the active adapter."""
        return self.configs[self._chosen(None)]

    def add(self, name: str, config: MMAConfig) -> None:
        """Creates a fresh adapter (identity: it changes nothing yet) and makes it active."""
        self._check_new(name)
        with self._undone_on_error(name):
            for site, wrapper in self._sites.items():
                if _carries(site, config):
                    wrapper.add(name, config)
                    wrapper.adapters[name].to(device_of(wrapper.norm), torch.float32)
            self.parts[name] = nn.ModuleDict(self._make_parts(config))
            self.configs[name] = config
            self.set_adapter(name)

    def add_trained(self, name: str, config: MMAConfig, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Creates an adapter from its tensors and makes it active.

        Raises AdapterError naming the source when a tensor is missing, extra or misshapen; the model is then
        as it was.
        """
        self._check_new(name)
        with self._undone_on_error(name):
            self.add(name, config)
            expected = self.trainable_parameters(name)
            adapter_folder.check_tensors(source, tensors, {key: p.shape for key, p in expected.items()})
            with torch.no_grad():
                for key, parameter in expected.items():
                    parameter.copy_(tensors[key])

    def set_adapter(self, name: str) -> None:
        """Makes a held adapter the active one, and the only one that is trained."""
        self._activate(self._chosen(name))
        self.freeze()

    def part(self, name: str) -> nn.Module | None:
        """The active adapter's part of that name; None when no adapter is active."""
        if self.active is None:
            return None
        part: nn.Module = self.parts[self.active].get_submodule(name)
        return part

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the block the model is its untouched base."""
        before = self.active
        self._activate(None)
        try:
            yield
        finally:
            self._activate(before)

    def trainable_parameters(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """Every trained tensor of an adapter (the active one) by its name in the adapter folder."""
        name = self._chosen(name)
        found: dict[str, nn.Parameter] = {}
        for site, wrapper in self._sites.items():
            if name in wrapper.adapters:
                for leaf, parameter in wrapper.adapters[name].named_parameters():
                    found[f"{site.path}.{leaf}"] = parameter
        for leaf, parameter in self.parts[name].named_parameters():
            found[leaf] = parameter
        return found

    def freeze(self) -> None:
        """Freezes everything but the active adapter; a parameter nobody declared is an error."""
        declared = {id(p) for name in self.configs for p in self.trainable_parameters(name).values()}
        known = declared | {id(p) for p in self._base}
        for name, parameter in self._owner[0].named_parameters():
            if id(parameter) not in known:
                raise AdapterError(
                    f"adapter: parameter {name} is neither base nor declared by an adapter; "
                    "add it to the adapter's parts or create it before the adapters"
                )
        for parameter in self._owner[0].parameters():
            parameter.requires_grad_(False)
        if self.active is not None:
            for parameter in self.trainable_parameters().values():
                parameter.requires_grad_(True)

    def report(self) -> list[SiteReport]:
        """Sites and parts of the active adapter with their parameter counts."""
        name = self._chosen(None)
        lines = [
            SiteReport(site.path, site.channels, _count(wrapper.adapters[name]))
            for site, wrapper in self._sites.items()
            if name in wrapper.adapters
        ]
        parts = self.parts[name].named_children()
        return lines + [SiteReport(key, None, _count(part)) for key, part in parts]

    def routes(self) -> dict[str, dict[str, list[float]]]:
        """The routing table of the active adapter: site -> modality -> weights of the K routes."""
        self.refresh_table()
        name = self._chosen(None)
        return {
            site.path: dict(zip(self.config.modalities, wrapper.table[name].tolist(), strict=True))
            for site, wrapper in self._modality_sites()
            if name in wrapper.adapters
        }

    def refresh_table(self) -> None:
        """Evaluates the routing table of the active adapter again if its tensors have changed."""
        name = self._chosen(None)
        # In-place writes raise a tensor's version, but a fused optimizer's step does not. Such a step comes
        # after a gradient: with one at hand nothing is kept, and none may have come since the table was made.
        trained = self.trainable_parameters().values()
        learning = any(p.grad is not None for p in trained)
        key = (sum(p._version for p in trained), self.state.gradients, {p.device for p in trained})
        if not learning and self._table_key.get(name) == key:
            return
        self._table_key.pop(name, None)
        training = self._owner[0].training
        self._owner[0].eval()
        try:
            with torch.no_grad():
                self._router_pass()
        finally:
            self._owner[0].train(training)
        for _, wrapper in self._modality_sites():
            if name in wrapper.adapters:
                assert wrapper.last_weights is not None, "the router pass visits every decoder site"
                wrapper.table[name] = wrapper.last_weights
        if not learning:
            self._table_key[name] = key

    def save_pretrained(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Writes the active adapter's folder, whole or not at all (docs/format.md)."""
        name = self._chosen(None)
        tensors = {key: p.detach() for key, p in self.trainable_parameters(name).items()}
        description = {
            **self.identity,
            **self.config.to_dict(),
            "sites": [site.path for site, wrapper in self._sites.items() if name in wrapper.adapters],
            "provenance": dict(provenance or {}),
        }
        adapter_folder.write(Path(path), description, tensors)

    def load_adapter(self, path: Path | str, name: str = "default") -> None:
        """Reads an adapter folder under a name and makes it active.

        Raises AdapterError when it was made for another base, or a tensor is missing, extra or misshapen;
        the model is then as it was.
        """
        description, tensors = adapter_folder.read(Path(path))
        adapter_folder.check_identity(Path(path), description, self.identity)
        config = adapter_folder.config_of(Path(path), description, self.identity)
        self.add_trained(name, config, tensors, Path(path))

    def _check_new(self, name: str) -> None:
        if name in self.configs:
            raise AdapterError(f"adapter: there is already one named {name!r}; choose another name")
        if not name or "." in name:
            raise AdapterError(f"adapter: {name!r} is not a name; use one without dots")

    @contextmanager
    def _undone_on_error(self, name: str) -> Iterator[None]:
        """Takes an adapter that was begun inside the block away again when the block fails."""
        active = self.active
        trained = [(p, p.requires_grad) for p in self._owner[0].parameters()]
        try:
            yield
        except BaseException:
            for held in (*(wrapper.adapters for wrapper in self._sites.values()), self.parts):
                if name in held:
                    del held[name]
            self.configs.pop(name, None)
            self._activate(active)
            for parameter, flag in trained:
                parameter.requires_grad_(flag)
            raise

    def _activate(self, name: str | None) -> None:
        self.active = name
        for wrapper in self._sites.values():
            wrapper.active = name

    def _chosen(self, name: str | None) -> str:
        chosen = name if name is not None else self.active
        if chosen is None:
            raise AdapterError("adapter: none is active; add, load or set one first")
        if chosen not in self.configs:
            raise AdapterError(f"adapter: there is none named {chosen!r}; held are {list(self.configs)}")
        return chosen

    def _modality_sites(self) -> Iterator[tuple[Site, ModalitySite]]:
        for site, wrapper in self._sites.items():
            if isinstance(wrapper, ModalitySite):
                yield site, wrapper

    def forward(self, x: Tensor) -> Tensor:
        """Not a layer: adapters act at their sites."""
        raise RuntimeError("Adapters is not a layer; run the model it belongs to")


def _carries(site: Site, config: MMAConfig) -> bool:
    if site.part == "tower":
        return config.tower != "none" and config.tower_placement in (site.role, "both")
    return config.placement in (site.role, "both")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
