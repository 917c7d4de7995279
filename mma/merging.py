"""Decides what a merge takes and leaves, and does it (the arithmetic is in `mma/merge.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mma.adapter import SiteAdapter
from mma.config import LoraConfig
from mma.errors import AdapterError
from mma.lowrank import LowRank, weighted_sum
from mma.merge import Merge, MergeReport, check_can_absorb, readers_of, seen_by
from mma.sites import Site

if TYPE_CHECKING:
    from mma.adapters import Adapters


def merge(
    adapters: Adapters,
    modality: str | Sequence[str] | None,
    names: Sequence[str] | None,
    weights: Sequence[float] | None,
) -> MergeReport:
    """See `Adapters.merge_adapter`."""
    names = tuple(names) if names is not None else (*adapters.active_adapters,)
    if not names:
        raise AdapterError("adapter: none is active; set one first, or name those to merge")
    weights = tuple(weights) if weights is not None else (1.0,) * len(names)
    modalities = _modalities(adapters, modality, names)
    if adapters.merged is not None:
        if adapters.merged.asked == (modalities, names, weights):
            return adapters.merged.report
        adapters.merged.take_out(adapters.model)
        adapters.merged = None
    if adapters.bank is not None:
        raise AdapterError(
            "adapter: a bank is open on this model, and merging would change its base; close it first"
        )
    made = _plan(adapters, modalities, names, weights)
    made.put_in(adapters.model)
    adapters.merged = made
    return made.report


def merge_and_unload(adapters: Adapters, modality: str | None) -> nn.Module:
    """See `Adapters.merge_and_unload`."""
    config = adapters.config
    if modality is None and len(config.modalities) > 1 and adapters.routed:
        raise AdapterError(f"adapter: name the one modality to merge for: {', '.join(config.modalities)}")
    report = merge(adapters, modality or config.modalities[0], None, None)
    if report.sites_left:
        merged = adapters.merged
        assert merged is not None, "it was just merged"
        merged.take_out(adapters.model)
        adapters.merged = None
        site, reason = next(iter(report.sites_left.items()))
        raise AdapterError(f"{reason} (at {site}; nothing was merged)")
    adapters.forget_merged()
    return adapters.model


def _modalities(
    adapters: Adapters, modality: str | Sequence[str] | None, names: Sequence[str]
) -> tuple[str, ...]:
    """The modalities to merge for, each known to every adapter at the same place."""
    configs = [adapters.config_of(name) for name in names]
    first = configs[0]
    if any(config.modalities != first.modalities for config in configs):
        raise AdapterError(f"adapter: {', '.join(names)} know other modalities; merge them one at a time")
    wanted = (modality,) if isinstance(modality, str) else tuple(modality or first.modalities)
    if unknown := [name for name in wanted if name not in first.modalities]:
        raise AdapterError(
            f"adapter: there is no modality {unknown[0]!r}; choose {', '.join(first.modalities)}"
        )
    return wanted


def _plan(
    adapters: Adapters, modalities: tuple[str, ...], names: tuple[str, ...], weights: tuple[float, ...]
) -> Merge:
    """What changes places, with every map computed; nothing is changed yet."""
    _check_summable(adapters, names, weights)
    for name in names:
        adapters.refresh_table(name)
    by_site: dict[Site, list[SiteAdapter]] = {}
    for name in names:
        for site, module in adapters.places.modules_of(name):
            by_site.setdefault(site, []).append(module)
    known = adapters.config_of(names[0]).modalities
    made = Merge(asked=(modalities, names, weights))
    taken: list[str] = []
    left: dict[str, str] = {}
    for site, modules in by_site.items():
        try:
            check_can_absorb(adapters.model, site)
            maps = [_map(modules, weights, known.index(modality)) for modality in modalities]
        except AdapterError as error:
            if site.part == "decoder" or len(names) > 1:
                raise
            left[site.path] = str(error)
            continue
        for path in readers_of(site):
            seen = [seen_by(adapters.model, site, path, low) for low in maps]
            made.absorb(adapters.model, path, seen, adapters.state)
        wrapper = adapters.places.wrapped[site]
        made.modules.append((site.path, wrapper, wrapper.base))
        taken.append(site.path)
    others = tuple(name for name in adapters.names if name not in names)
    made.report = MergeReport(modalities, names, others, tuple(taken), left)
    return made


def _map(modules: Sequence[SiteAdapter], weights: Sequence[float], modality: int) -> LowRank:
    """What the adapters add at a site together, without a gradient."""
    with torch.no_grad():
        maps = [module.fold(modality).to(torch.float64) for module in modules]
        if len(maps) == 1 and weights[0] == 1.0:
            return maps[0]
        return weighted_sum(maps, weights)


def _check_summable(adapters: Adapters, names: Sequence[str], weights: Sequence[float]) -> None:
    if len(weights) != len(names) or len(set(names)) != len(names):
        raise AdapterError(
            f"adapter: {len(names)} adapters and {len(weights)} weights; name each once, with a weight"
        )
    linear = {isinstance(adapters.config_of(name), LoraConfig) for name in names}
    places = {tuple(site for site, _ in adapters.places.modules_of(name)) for name in names}
    if len(linear) > 1 or len(places) > 1:
        raise AdapterError(
            f"adapter: {', '.join(names)} do not sit at the same sites, so their sum is no merge; "
            "merge one of them"
        )
