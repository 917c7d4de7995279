"""What the adapters of a model are doing now: held, active, merged, trained, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from mma.adapters import Adapters


@dataclass(frozen=True)
class SiteReport:
    """A line of the report: a site or part, its width, and how many parameters are trained there."""

    name: str
    channels: int | None
    parameters: int


@dataclass(frozen=True)
class AdapterStatus:
    """One adapter: its kind, where it sits, and its size in memory."""

    name: str
    kind: str
    r: int
    sites: int
    parameters: int
    bytes: int
    state: str  # "active", "merged", "held" or "in the bank"


@dataclass(frozen=True)
class ModelStatus:
    """The adapters of a model at a glance; the names are PEFT's where it has the same thing."""

    base_model_type: str
    total_params: int
    trainable_params: int
    enabled: bool
    active_adapters: tuple[str, ...]
    merged_adapters: tuple[str, ...]
    merged_modalities: tuple[str, ...]
    available_adapters: tuple[str, ...]
    num_adapter_layers: int  # sites where something is held
    devices: tuple[str, ...]
    adapters: tuple[AdapterStatus, ...]
    bank_slots: int
    bank_free: int

    def __str__(self) -> str:
        """A table for a terminal."""
        lines = [
            f"{self.base_model_type}: {self.total_params:,} parameters, {self.trainable_params:,} trained, "
            f"on {', '.join(self.devices)}",
            f"{'adapter':<20} {'kind':<11} {'r':>3} {'sites':>5} {'parameters':>11} {'KB':>9}  state",
        ]
        lines += [
            f"{a.name:<20} {a.kind:<11} {a.r:>3} {a.sites:>5} {a.parameters:>11,} {a.bytes / 1000:>9,.1f}  "
            f"{a.state}"
            for a in self.adapters
        ]
        if self.merged_adapters:
            lines.append(
                f"merged for {', '.join(self.merged_modalities)}; the first is in the base's weights"
            )
        if self.bank_slots:
            lines.append(f"bank: {self.bank_slots - self.bank_free} of {self.bank_slots} slots taken")
        return "\n".join(lines)


def status_of(adapters: Adapters) -> ModelStatus:
    """See `Adapters.get_model_status`."""
    # Of base and adapters, whether they stand in the model now or a merge has taken their place.
    trained = [p for name in adapters.names for p in adapters.trainable_parameters(name).values()]
    parameters = [*adapters.base.values(), *trained]
    merged = adapters.merged.report if adapters.merged is not None else None
    taken = merged.taken if merged is not None else ()
    bank = adapters.bank
    resident = () if bank is None else bank.status()
    return ModelStatus(
        base_model_type=type(adapters.model).__name__,
        total_params=sum(p.numel() for p in parameters),
        trainable_params=sum(p.numel() for p in parameters if p.requires_grad),
        enabled=adapters.active is not None,
        active_adapters=adapters.active_adapters,
        merged_adapters=taken,
        merged_modalities=() if merged is None else merged.modalities,
        available_adapters=adapters.names,
        num_adapter_layers=len(adapters.places),
        devices=tuple(sorted({str(p.device) for p in parameters})),
        adapters=(*(_status(adapters, name, taken) for name in adapters.names), *resident),
        bank_slots=0 if bank is None else bank.slots,
        bank_free=0 if bank is None else bank.slots - len(bank.names),
    )


def report_of(adapters: Adapters, name: str) -> list[SiteReport]:
    """Sites and parts of an adapter with their parameter counts."""
    lines = [SiteReport(site.path, site.channels, _count(m)) for site, m in adapters.places.modules_of(name)]
    parts = adapters.parts[name].named_children()
    return lines + [SiteReport(key, None, _count(part)) for key, part in parts]


def _status(adapters: Adapters, name: str, taken: tuple[str, ...]) -> AdapterStatus:
    trained = adapters.trainable_parameters(name).values()
    config = adapters.configs[name]
    return AdapterStatus(
        name=name,
        kind=config.peft_type,
        r=getattr(config, "r", 0),
        sites=sum(1 for _ in adapters.places.modules_of(name)),
        parameters=sum(p.numel() for p in trained),
        bytes=sum(p.numel() * p.element_size() for p in trained),
        state="merged" if name in taken else "active" if name == adapters.active else "held",
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
