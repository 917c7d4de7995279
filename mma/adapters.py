"""The adapters of one model: creating, choosing, switching off, declaring what is trained, saving, loading.

An adapter is everything that is trained together: a module at every site, and the parts the model itself
needs (projector, modality tokens), which its owner makes. Knows no model class; it is told the sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mma import merging, peft_folder, rows, storage
from mma.adapter import ModalityRouted
from mma.config import AdapterConfig
from mma.errors import AdapterError
from mma.folder import check_tensors
from mma.merge import Merge, MergeReport
from mma.places import Places
from mma.routing import RouteState
from mma.routing_table import RoutingTables
from mma.sites import Site
from mma.status import ModelStatus, SiteReport, report_of, status_of
from mma.tuned import Placed, tuned_part
from mma.turns import Turns

if TYPE_CHECKING:
    from mma.bank import AdapterBank

MakeParts = Callable[[AdapterConfig], Mapping[str, nn.Module]]
RouterPass = Callable[[], None]


class Adapters(nn.Module):
    """Named adapters on one frozen model, and which of them is active.

    Args:
        model: The frozen model; every parameter it has now is base and never trained.
        sites: Its norms and linear layers that can carry an adapter.
        make_parts: Makes the other trained parts of an adapter from its settings.
        router_pass: Runs every modality's token through the model, so that the decoder sites see them.
        tuned_words: The parameter names that a word of `tuned` stands for; itself by default.
        exported_name: The name other software has for a path of the model; its own by default.
        prompt_notes: How a sample of each modality is laid out, for folders made for other software.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        make_parts: MakeParts,
        router_pass: RouterPass,
        *,
        tuned_words: Callable[[str], Sequence[str]] = lambda word: (word,),
        exported_name: Callable[[str], str] = lambda path: path,
        prompt_notes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.state = RouteState()
        self.turns = Turns()
        self.parts = nn.ModuleDict()  # adapter -> its parts
        self.configs: dict[str, AdapterConfig] = {}
        self.active: str | None = None
        self.identity: Mapping[str, Any] = {}  # base names, digests, preprocessing: the owner fills it
        self.merged: Merge | None = None
        self.set_aside: Merge | None = None  # what was merged, inside disable_adapter()
        self.bank: AdapterBank | None = None
        self.exported_name = exported_name
        self.prompt_notes = dict(prompt_notes or {})
        self.places = Places(model, sites, self.state)
        # By the names they have before anything is wrapped.
        self.base = dict(model.named_parameters())
        for parameter in self.base.values():
            parameter.requires_grad_(False)
        self._placed = Placed(model, self.base)
        self._make_parts, self.router_pass, self._tuned_words = make_parts, router_pass, tuned_words
        self._tables = RoutingTables(router_pass, self.state)
        # A tuple keeps the model out of this module's own children.
        self._owner = (model,)

    @property
    def model(self) -> nn.Module:
        """The model the adapters sit on."""
        return self._owner[0]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where adapters can sit."""
        return self.places.sites

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are held, in the order they came."""
        return tuple(self.configs)

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """The active adapter, or nothing."""
        return () if self.active is None else (self.active,)

    @property
    def config(self) -> AdapterConfig:
        """The settings of the active adapter."""
        return self.configs[self._chosen(None)]

    def config_of(self, name: str) -> AdapterConfig:
        """The settings of a held adapter."""
        return self.configs[self._chosen(name)]

    @property
    def open_bank(self) -> AdapterBank:
        """The bank; raises AdapterError when a batch names adapters and there is none."""
        if self.bank is None:
            raise AdapterError(
                "adapter: the batch names adapters, but no bank is open on this model; open one first"
            )
        return self.bank

    @property
    def routed(self) -> bool:
        """Whether the active adapter has sites that the modality tokens route, and none of it is merged."""
        return self.active is not None and self.merged is None and any(self.places.routed(self.active))

    def add_adapter(self, name: str, config: AdapterConfig) -> None:
        """Creates a fresh adapter (identity: it changes nothing yet) and makes it active."""
        with self.turns.changing("add an adapter"):
            self._check_new(name)
            with self._undone_on_error(name):
                self.places.add(name, config)
                tuned = tuned_part(self.base, config.tuned, self._tuned_words)
                self.parts[name] = nn.ModuleDict({**self._make_parts(config), **tuned}).train(self.training)
                self.configs[name] = config
                self.set_adapter(name)

    def add_trained(
        self, name: str, config: AdapterConfig, tensors: Mapping[str, Tensor], source: Path
    ) -> None:
        """Creates an adapter from its tensors and makes it active.

        Raises AdapterError naming the source when a tensor is missing, extra or misshapen; the model is then
        as it was.
        """
        with self.turns.changing("add an adapter"):
            self._check_new(name)
            with self._undone_on_error(name):
                try:
                    self.add_adapter(name, config)
                except AdapterError as error:
                    raise AdapterError(f"{error} (in {source})") from error
                self._fill(name, tensors, source)

    def delete_adapter(self, name: str) -> None:
        """Takes an adapter away; sites that hold no other are the base's own modules again."""
        with self.turns.changing("delete an adapter"):
            self._chosen(name)
            self._check_unmerged("delete an adapter")
            self._drop(name)
            if self.active == name:
                self.activate(None)

    def set_adapter(self, name: str) -> None:
        """Makes a held adapter the active one, and the only one that is trained."""
        with self.turns.changing("set an adapter"):
            self._check_unmerged("set an adapter")
            self.activate(self._chosen(name))
            self.freeze()

    def activate(self, name: str | None) -> None:
        """Lets one adapter act, or none, and leaves what is trained as it is."""
        self.active = name
        self.places.activate(name)
        self._placed.put(self.part("tuned"))

    def part(self, name: str) -> nn.Module | None:
        """The active adapter's part of that name; None when it has none or no adapter is active."""
        return None if self.active is None else self.part_of(self.active, name)

    def part_of(self, adapter: str, name: str) -> nn.Module | None:
        """A held adapter's part of that name; None when it has none."""
        parts = self.parts[adapter]
        assert isinstance(parts, nn.ModuleDict), "parts are kept so"
        part: nn.Module | None = parts[name] if name in parts else None  # noqa: SIM401, it has no get
        return part

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Inside the block the model is its untouched base, merged or not."""
        return merging.disabled(self)

    def carrying(
        self, modalities: str | Sequence[str], answered_by: Sequence[str | None] | None = None
    ) -> AbstractContextManager[None]:
        """Inside the block the rows of a batch carry these modalities, one for all or one for each row.

        For models that take rows of tokens. With a bank, `answered_by` names each row's adapter. The backward
        pass belongs inside too where activations are recomputed.
        """
        return rows.carrying(self, modalities, answered_by)

    def trainable_parameters(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """Every trained tensor of an adapter (the active one) by its name in the adapter folder."""
        name = self._chosen(name)
        found = {
            f"{site.path}.{leaf}": parameter
            for site, module in self.places.modules_of(name)
            for leaf, parameter in module.named_parameters()
        }
        return {**found, **dict(self.parts[name].named_parameters())}

    def all_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the model and of what is trained beside it."""
        return list(dict.fromkeys([*self.model.parameters(), *self.parts.parameters()]))

    def freeze(self) -> None:
        """Freezes everything but the active adapter; a parameter nobody declared is an error."""
        self._check_unmerged("train an adapter")
        declared = {id(p) for name in self.configs for p in self.trainable_parameters(name).values()}
        known = declared | {id(p) for p in self.base.values()}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in known:
                raise AdapterError(
                    f"adapter: parameter {name} is neither base nor declared by an adapter; "
                    "add it to the adapter's parts or create it before the adapters"
                )
        for parameter in self.all_parameters():
            parameter.requires_grad_(False)
        if self.active is not None:
            for parameter in self.trainable_parameters().values():
                parameter.requires_grad_(True)

    def report(self) -> list[SiteReport]:
        """Sites and parts of the active adapter with their parameter counts."""
        return report_of(self, self._chosen(None))

    def routes(self) -> dict[str, dict[str, list[float]]]:
        """The routing table of the active adapter: site -> modality -> weights of the K routes."""
        found = {}
        with self.turns.computing():
            self.refresh_table()
            for site, module in self.places.modules_of(self._chosen(None)):
                if isinstance(module, ModalityRouted):
                    assert module.table is not None, "it was refreshed"
                    found[site.path] = dict(zip(self.config.modalities, module.table.tolist(), strict=True))
        return found

    def refresh_table(self, name: str | None = None) -> None:
        """Evaluates the routing table of an adapter (the active one) again if its tensors have changed."""
        name = self._chosen(name)
        modules = self.places.routed(name)
        if self.merged is not None or not modules:
            return
        with self.turns.computing():
            before = self.active
            self.activate(name)
            try:
                self._tables.refresh(name, modules, self.trainable_parameters(name).values(), self.model)
            finally:
                self.activate(before)

    def save_pretrained(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Writes the active adapter's folder, whole or not at all (docs/format.md)."""
        with self.turns.computing():
            storage.save(self, Path(path), provenance or {})

    def load_adapter(self, path: Path | str, name: str = "default") -> None:
        """Reads an adapter folder, or one that PEFT saved a LoRA in, under a name and makes it active.

        A path that is there is taken as it is; else `owner/name` is a repository of the Hub.
        Raises AdapterError when it was made for another base, or a tensor is missing, extra or misshapen;
        the model is then as it was.
        """
        config, tensors = storage.load(self, Path(path))
        self.add_trained(name, config, tensors, Path(path))

    def hotswap_adapter(self, path: Path | str, name: str = "default") -> None:
        """Copies a folder's tensors into a held adapter with the same settings, in place.

        Nothing is created or recompiled. An answer that another thread is making is finished first, by the
        old tensors. A bank that holds the adapter too gets the new ones. Raises AdapterError as
        `load_adapter` does; the adapter is then as it was.
        """
        config, tensors = storage.read(self, Path(path))
        with self.turns.changing("swap an adapter"):
            held = self.configs[self._chosen(name)]
            self._check_unmerged("swap an adapter")
            if different := config.differences(held):
                raise AdapterError(
                    f"adapter: {path} cannot be swapped into {name!r}: {different}; load it instead"
                )
            self._fill(name, tensors, Path(path))
            self.refresh_table(name)
            if self.bank is not None and name in self.bank.names:
                self.bank.put(name)

    def merge_adapter(
        self,
        modality: str | Sequence[str] | None = None,
        adapter_names: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
    ) -> MergeReport:
        """Folds adapters (the active one) into the base's linear layers: the model then runs at its speed.

        For several modalities (all of the adapter's when none is named) the first is merged and the others
        are kept as differences of rank r. Several adapters are summed with their weights, exactly; the parts
        beside the sites (projector) are the first one's. What cannot be merged goes on unmerged and is named
        in the report; the same merge again does nothing. Raises AdapterError with the reason when the
        decoder cannot be merged; nothing has changed then.
        """
        with self.turns.changing("merge an adapter"):
            return merging.merge(self, modality, adapter_names, weights)

    def unmerge_adapter(self) -> None:
        """Puts the base's own tensors back, bit for bit; does nothing when nothing is merged."""
        with self.turns.changing("unmerge an adapter"):
            merging.unmerge(self)

    def merge_and_unload(self, modality: str | None = None) -> nn.Module:
        """The plain model with the active adapter merged for one modality; the adapters are gone from it."""
        with self.turns.changing("merge an adapter"):
            return merging.merge_and_unload(self, modality)

    def export_peft_lora(self, path: Path | str, modality: str | None = None) -> None:
        """Writes the active adapter for one modality as a LoRA folder that PEFT loads (docs/adapters.md)."""
        with self.turns.computing():
            peft_folder.export(self, Path(path), modality)

    def get_model_status(self) -> ModelStatus:
        """What is held, active, merged and trained, with parameters and bytes."""
        return status_of(self)

    def _fill(self, name: str, tensors: Mapping[str, Tensor], source: Path) -> None:
        expected = self.trainable_parameters(name)
        check_tensors(source, tensors, {key: p.shape for key, p in expected.items()})
        with torch.no_grad():
            for key, parameter in expected.items():
                parameter.copy_(tensors[key])

    def _drop(self, name: str) -> None:
        """Removes every trace of an adapter, and wrappers that are empty then."""
        self.places.drop(name)
        if name in self.parts:
            del self.parts[name]
        self.configs.pop(name, None)
        self._tables.forget(name)

    def forget_merged(self) -> None:
        """Makes what is merged the base, for good: no adapter is left on the model."""
        self.merged = None
        self.places.clear()
        self._placed.keep()
        for name in self.names:
            self._drop(name)
        self.activate(None)
        self.base = dict(self.model.named_parameters())
        self._placed = Placed(self.model, self.base)

    def _check_new(self, name: str) -> None:
        self._check_unmerged("add an adapter")
        if name in self.configs or (self.bank is not None and name in self.bank.names):
            raise AdapterError(f"adapter: there is already one named {name!r}; choose another name")
        if not name or "." in name:
            raise AdapterError(f"adapter: {name!r} is not a name; use one without dots")

    def _check_unmerged(self, what: str) -> None:
        merged = self.merged or self.set_aside
        if merged is not None:
            taken = ", ".join(merged.report.taken)
            raise AdapterError(
                f"adapter: cannot {what} while {taken} is merged; call unmerge_adapter() first"
            )

    @contextmanager
    def _undone_on_error(self, name: str) -> Iterator[None]:
        """Takes an adapter that was begun inside the block away again when the block fails."""
        active = self.active
        trained = [(p, p.requires_grad) for p in self.all_parameters()]
        try:
            yield
        except BaseException:
            self._drop(name)
            self.activate(active)
            for parameter, flag in trained:
                parameter.requires_grad_(flag)
            raise

    def _chosen(self, name: str | None) -> str:
        chosen = name if name is not None else self.active
        if chosen is None:
            raise AdapterError("adapter: none is active; add, load or set one first")
        if chosen not in self.configs:
            raise AdapterError(f"adapter: there is none named {chosen!r}; held are {list(self.configs)}")
        return chosen

    def forward(self, x: Tensor) -> Tensor:
        """Not a layer: adapters act at their sites."""
        raise RuntimeError("Adapters is not a layer; run the model it belongs to")
