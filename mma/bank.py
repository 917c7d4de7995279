"""Many adapters resident on one model: every sample of a batch names the one that answers it, or none.

An adapter is folded when it comes: its routing table is evaluated once, and at every site its tensors go
into a slot of a stack (`mma/bank_stack.py`). One pass over the base then serves all samples. The active
adapter takes part from its own tensors, also while it is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from mma.adapter import ModalityRouted, SiteAdapter, TokenRouted
from mma.adapters import Adapters
from mma.bank_stack import LowRankStack, Stack, TokenRoutedStack
from mma.config import AdapterConfig, MMAConfig
from mma.errors import AdapterError
from mma.plan import BankPlan, plan
from mma.sites import Site
from mma.status import AdapterStatus

Answering = int | str | None


class AdapterBank:
    """Fixed slots for adapters on one model.

    Args:
        adapters: The adapters of the model; they stay usable, and the active one can be named in a batch.
        slots: How many adapters can be resident.
        like: Settings with the largest rank and number of routes, and the placements, of what will come;
            those of the active adapter by default.

    Raises AdapterError when the settings are not MMA's, or the model is merged or has a bank already.
    """

    def __init__(self, adapters: Adapters, slots: int, like: AdapterConfig | None = None) -> None:
        like = adapters.config if like is None else like
        if not isinstance(like, MMAConfig) or like.tower == "legacy_no_residual":
            raise AdapterError(
                "adapter: a bank holds mixture-of-modality adapters with a residual; others are loaded"
            )
        if slots < 1:
            raise AdapterError(f"adapter: a bank of {slots} slots holds nothing; give it at least 1")
        self.adapters, self.slots, self.like = adapters, slots, like
        self._slot: dict[str, int] = {}
        self._configs: dict[str, AdapterConfig] = {}
        self._parameters: dict[str, int] = {}  # how many the adapter was trained with
        self._parts = nn.ModuleDict()
        with adapters.turns.changing("open a bank"):
            if adapters.bank is not None or adapters.merged is not None:
                what = "a bank is open" if adapters.bank is not None else "an adapter is merged"
                raise AdapterError(f"adapter: {what} on this model already; close or unmerge it first")
            self._stacks = {
                site: self._make_stack(site)
                for site in adapters.sites
                if site.kind == "norm" and like.placed(site.part, site.role, site.layer)
            }
            for site, stack in self._stacks.items():
                adapters.places.put_stack(site, stack)
            adapters.bank = self

    @property
    def names(self) -> tuple[str, ...]:
        """The resident adapters, in the order they came."""
        return tuple(self._slot)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What samples can carry."""
        return self.like.modalities

    def load(self, path: Path | str, name: str) -> None:
        """Reads an adapter folder into a free slot; Raises AdapterError as `Adapters.load_adapter` does."""
        adapters = self.adapters
        with adapters.turns.changing("load into the bank"):
            self._check_room(name)
            before = adapters.active
            adapters.load_adapter(path, name)
            try:
                self.put(name)
            finally:
                adapters.delete_adapter(name)
                if before is not None:
                    adapters.set_adapter(before)

    def put(self, name: str) -> None:
        """Copies a held adapter into its slot, or a free one; call it again when the adapter was trained on.

        Raises AdapterError when it does not fit the slots, or none is free.
        """
        adapters = self.adapters
        with adapters.turns.changing("put an adapter into the bank"):
            config = adapters.config_of(name)
            if name not in self._slot:
                self._check_room(name)
            self._check_fits(name, config)
            adapters.refresh_table(name)
            self._check_finite(name)
            free = (slot for slot in range(self.slots) if slot not in self._slot.values())
            slot = self._slot[name] if name in self._slot else next(free)
            modules = dict(adapters.places.modules_of(name))
            for site, stack in self._stacks.items():
                if site in modules:
                    self._fill(stack, slot, modules[site], config)
                else:
                    stack.clear(slot)
            self._slot[name], self._configs[name] = slot, config
            self._parameters[name] = sum(p.numel() for p in adapters.trainable_parameters(name).values())
            self._parts[name] = deepcopy(adapters.parts[name]).requires_grad_(False)

    def remove(self, name: str) -> None:
        """Frees an adapter's slot."""
        with self.adapters.turns.changing("remove an adapter from the bank"):
            self._check_resident(name)
            for stack in self._stacks.values():
                stack.clear(self._slot[name])
            del self._slot[name], self._configs[name], self._parameters[name], self._parts[name]

    def close(self) -> None:
        """Takes the bank and all that is resident off the model; does nothing the second time."""
        with self.adapters.turns.changing("close the bank"):
            if self.adapters.bank is self:
                self.adapters.bank = None
                for site in self._stacks:
                    self.adapters.places.put_stack(site, None)
                for held in (self._stacks, self._slot, self._configs, self._parameters, self._parts):
                    held.clear()

    def plan(
        self,
        names: Sequence[str | None],
        modalities: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
    ) -> BankPlan:
        """Which adapter answers each token of a packed batch, from one name (None: the base) per segment."""
        if len(names) != len(lengths):
            raise AdapterError(
                f"adapter: {len(names)} adapters are named for {len(lengths)} samples; name one for each"
            )
        return plan([self._answering(name) for name in names], modalities, lengths, device)

    def by_part(self, part: str, x: Tensor, names: Sequence[str | None], base: Tensor) -> Tensor:
        """Every row of x through the part of its own adapter; rows without an adapter are those of `base`."""
        out = base
        for name in dict.fromkeys(name for name in names if name is not None):
            rows = torch.tensor([row for row, other in enumerate(names) if other == name], device=x.device)
            out = out.index_copy(0, rows, self._part(name, part).to(x.device)(x[rows]))
        return out

    def status(self) -> tuple[AdapterStatus, ...]:
        """The resident adapters for `Adapters.get_model_status`; their bytes are those of a whole slot."""
        per_slot = sum(
            t[0].numel() * t.element_size() for stack in self._stacks.values() for t in stack.buffers()
        )
        return tuple(
            AdapterStatus(
                name,
                config.peft_type,
                getattr(config, "r", 0),
                len(self._stacks),
                self._parameters[name],
                per_slot + sum(p.numel() * p.element_size() for p in self._parts[name].parameters()),
                "in the bank",
            )
            for name, config in self._configs.items()
        )

    def _make_stack(self, site: Site) -> Stack:
        like, model = self.like, self.adapters.model
        # The type of the stream; a norm without parameters (OLMo's) tells nothing of it.
        tensor = next(chain(model.get_submodule(site.path).parameters(), model.parameters())).detach()
        if site.part == "decoder":
            return LowRankStack(self.slots, like.r, site.channels, len(like.modalities), tensor)
        return TokenRoutedStack(self.slots, like.r, site.channels, like.routes, tensor)

    def _fill(self, stack: Stack, slot: int, module: SiteAdapter, config: AdapterConfig) -> None:
        if isinstance(stack, LowRankStack):
            assert isinstance(module, ModalityRouted), "decoder sites are routed by modality"
            stack.fill(slot, [module.fold(m) for m in range(len(config.modalities))])
        elif isinstance(stack, TokenRoutedStack):
            stack.fill(slot, module if isinstance(module, TokenRouted) else module.fold(0))

    def _part(self, adapter: str, name: str) -> nn.Module:
        if adapter == self.adapters.active:
            part = self.adapters.part(name)
        else:
            part = self._parts.get_submodule(f"{adapter}.{name}")
        assert part is not None, "adapters of one model have the same parts"
        return part

    def _answering(self, name: str | None) -> Answering:
        if name is None:
            return None
        if name == self.adapters.active:
            if self.adapters.config.modalities != self.modalities:
                raise AdapterError(
                    f"adapter: {name!r} knows other modalities than the bank; open the bank like it"
                )
            return "live"
        self._check_resident(name)
        return self._slot[name]

    def _check_resident(self, name: str) -> None:
        if name not in self._slot:
            raise AdapterError(
                f"adapter: there is none named {name!r} in the bank; resident are {list(self._slot)}"
            )

    def _check_room(self, name: str) -> None:
        if self.adapters.bank is not self:
            raise AdapterError("adapter: this bank is closed; open a new one")
        if name in self._slot:
            raise AdapterError(
                f"adapter: there is already one named {name!r} in the bank; choose another name"
            )
        if len(self._slot) == self.slots:
            raise AdapterError(
                f"adapter: all {self.slots} slots of the bank are taken; remove an adapter first"
            )

    def _check_fits(self, name: str, config: AdapterConfig) -> None:
        like = self.like
        if not isinstance(config, MMAConfig) or config.tower == "legacy_no_residual":
            raise AdapterError(f"adapter: {name!r} is of a kind that a bank does not hold; load it instead")
        if config.tuned:
            raise AdapterError(f"adapter: {name!r} tunes parts of the base in full; a bank shares one base")
        for what in ("r", "routes"):
            if getattr(config, what) > getattr(like, what):
                raise AdapterError(
                    f"adapter: {name!r} has {what} {getattr(config, what)}, the bank's slots are made for "
                    f"{getattr(like, what)}; open the bank like the largest adapter"
                )
        if config.modalities != like.modalities:
            raise AdapterError(
                f"adapter: {name!r} knows other modalities than the bank; open the bank like it"
            )
        outside = [site.path for site, _ in self.adapters.places.modules_of(name) if site not in self._stacks]
        if outside:
            raise AdapterError(
                f"adapter: {name!r} sits at {outside[0]}, where the bank has no slots; open it with its "
                "placement"
            )

    def _check_finite(self, name: str) -> None:
        """In one product with all others, a value that is not finite would spoil the samples of others."""
        adapters = self.adapters
        tensors: dict[str, Tensor] = dict(adapters.trainable_parameters(name))
        for site, module in adapters.places.modules_of(name):
            if isinstance(module, ModalityRouted) and module.table is not None:
                tensors[f"the routing table at {site.path}"] = module.table
        for key, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise AdapterError(
                    f"adapter: {key} of {name!r} is not finite, its training has failed; use an earlier "
                    "checkpoint"
                )
