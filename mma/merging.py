"""Decides what a merge takes and leaves, and does it (the arithmetic is in `mma/merge.py`).

Everything is computed before anything changes places, so a merge that is refused changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mma.adapter import SiteAdapter
from mma.config import LoraConfig, brief
from mma.digest import digest
from mma.errors import AdapterError
from mma.lowrank import LowRank, weighted_sum
from mma.merge import Merge, MergeReport, check_can_absorb, readers_of, seen_by
from mma.sites import Site

if TYPE_CHECKING:
    from mma.adapters import Adapters

PARTS = {"base_digest": "decoder.", "tower_digest": "tower."}


def merge(
    adapters: Adapters,
    modality: str | Sequence[str] | None,
    names: str | Sequence[str] | None,
    weights: Sequence[float] | None,
) -> MergeReport:
    """See `Adapters.merge_adapter`."""
    names = (
        adapters.active_adapters if names is None else (names,) if isinstance(names, str) else tuple(names)
    )
    if not names:
        raise AdapterError("adapter: none is active; set one first, or name those to merge")
    weights = tuple(weights) if weights is not None else (1.0,) * len(names)
    asked = (_modalities(adapters, modality, names), names, weights)
    if adapters.merged is not None and adapters.merged.asked == asked:
        return adapters.merged.report
    with _on_the_base(adapters):
        made = _plan(adapters, *asked)
        _put_in(adapters, made)
    return made.report


def unmerge(adapters: Adapters) -> None:
    """See `Adapters.unmerge_adapter`."""
    _check_not_disabled(adapters)
    if adapters.merged is not None:
        _take_out(adapters, adapters.merged)


@contextmanager
def disabled(adapters: Adapters) -> Iterator[None]:
    """See `Adapters.disable_adapter`."""
    with adapters.turns.changing("disable the adapter"):
        before, merged = adapters.active, adapters.merged
        if merged is not None:
            merged.take_out(adapters.model)
            adapters.merged, adapters.set_aside = None, merged
        adapters.activate(None)
    try:
        yield
    finally:
        with adapters.turns.changing("enable the adapter"):
            adapters.activate(before if before in adapters.configs else None)
            if merged is not None:
                merged.put_in(adapters.model)
                adapters.merged, adapters.set_aside = merged, None


def merge_and_unload(adapters: Adapters, modality: str | None) -> nn.Module:
    """See `Adapters.merge_and_unload`."""
    asked = ((one_modality(adapters, modality),), adapters.active_adapters, (1.0,))
    with _on_the_base(adapters):
        made = _plan(adapters, *asked)
        if made.report.sites_left:
            site, reason = next(iter(made.report.sites_left.items()))
            raise AdapterError(f"{reason} (at {site}; nothing was merged)")
        _put_in(adapters, made)
    identity = adapters.identity
    adapters.forget_merged()
    adapters.identity = _identity(identity, adapters.base, made.report)
    return adapters.model


def one_modality(adapters: Adapters, modality: str | None) -> str:
    """The one modality of an export: any where all are alike, else it must be named."""
    known = adapters.config.modalities
    if modality is None and (len(known) == 1 or not any(adapters.places.routed(adapters.active_adapters[0]))):
        return known[0]
    if modality not in known:
        asked = "name the one modality" if modality is None else f"there is no modality {modality!r}"
        raise AdapterError(f"adapter: {asked}; choose {' or '.join(known)}")
    return modality


@contextmanager
def _on_the_base(adapters: Adapters) -> Iterator[None]:
    """Inside the block nothing is merged; when it fails, what was merged before is so again."""
    _check_not_disabled(adapters)
    if adapters.bank is not None:
        raise AdapterError(
            "adapter: a bank is open on this model, and merging would change its base; close it first"
        )
    before = adapters.merged
    if before is not None:
        _take_out(adapters, before)
    try:
        yield
    except BaseException:
        if adapters.merged is not None:
            _take_out(adapters, adapters.merged)
        if before is not None:
            _put_in(adapters, before)
        raise


def _put_in(adapters: Adapters, made: Merge) -> None:
    """Merges; the parts that act beside the base's layers (projector, unmerged sites) are the first one's."""
    adapters.merged = made
    _, names, _ = made.asked
    adapters.activate(names[0])
    made.put_in(adapters.model)


def _take_out(adapters: Adapters, made: Merge) -> None:
    made.take_out(adapters.model)
    adapters.activate(made.active)
    adapters.merged = None


def _check_not_disabled(adapters: Adapters) -> None:
    if adapters.set_aside is not None:
        raise AdapterError("adapter: what is merged is switched off; leave the disable_adapter block first")


def _modalities(
    adapters: Adapters, modality: str | Sequence[str] | None, names: Sequence[str]
) -> tuple[str, ...]:
    """The modalities to merge for, each known to every adapter at the same place."""
    configs = [adapters.config_of(name) for name in names]
    first = configs[0]
    if any(config.modalities != first.modalities for config in configs):
        raise AdapterError(f"adapter: {', '.join(names)} know other modalities; merge them one at a time")
    wanted = (modality,) if isinstance(modality, str) else tuple(dict.fromkeys(modality or first.modalities))
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
    maps, left = _maps(adapters, modalities, names, weights)
    made = Merge((modalities, names, weights), adapters.active)
    # Without wrappers first: those of adapters that are held beside would do nothing but cost time.
    for site, wrapper in adapters.places.wrapped.items():
        if site.path not in left:
            made.modules.append((site.path, wrapper, wrapper.base))
    for site, by_modality in maps.items():
        for path in readers_of(site):
            seen = {m: seen_by(adapters.model, site, path, low) for m, low in by_modality.items()}
            made.absorb(adapters.model, path, seen, adapters.state)
    others = tuple(name for name in adapters.names if name not in names)
    made.report = MergeReport(modalities, names, others, tuple(site.path for site in maps), left)
    return made


def _maps(
    adapters: Adapters, modalities: Sequence[str], names: Sequence[str], weights: Sequence[float]
) -> tuple[dict[Site, dict[int, LowRank]], dict[str, str]]:
    """What is added at every site by the number of the modality, and the sites to leave with the reason."""
    by_site: dict[Site, list[SiteAdapter]] = {}
    for name in names:
        for site, module in adapters.places.modules_of(name):
            by_site.setdefault(site, []).append(module)
    known = adapters.config_of(names[0]).modalities
    maps: dict[Site, dict[int, LowRank]] = {}
    left: dict[str, str] = {}
    for site, modules in by_site.items():
        try:
            check_can_absorb(adapters.model, site)
            maps[site] = {m: _map(modules, weights, m) for m in map(known.index, modalities)}
        except AdapterError as error:
            # What is left acts alone and in full, and the decoder's part is what one merges for.
            if site.part == "decoder" or tuple(weights) != (1.0,):
                raise
            left[site.path] = str(error)
    return maps, left


def _map(modules: Sequence[SiteAdapter], weights: Sequence[float], modality: int) -> LowRank:
    """What the adapters add at a site together, without a gradient."""
    with torch.no_grad():
        maps = [module.fold(modality).to(torch.float64) for module in modules]
        return maps[0] if tuple(weights) == (1.0,) else weighted_sum(maps, weights)


def _check_summable(adapters: Adapters, names: Sequence[str], weights: Sequence[float]) -> None:
    if len(weights) != len(names) or len(set(names)) != len(names):
        raise AdapterError(
            f"adapter: {len(names)} adapters and {len(weights)} weights; name each once, with a weight"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError(f"adapter: the weights are {brief(weights)}; each must be a finite number")
    linear = {isinstance(adapters.config_of(name), LoraConfig) for name in names}
    places = {tuple(site for site, _ in adapters.places.modules_of(name)) for name in names}
    if any(adapters.config_of(name).tuned for name in names) and names != adapters.active_adapters:
        raise AdapterError(
            f"adapter: {', '.join(names)} tune parts of the base in full; set one active and merge it alone"
        )
    if not any(places):
        raise AdapterError(f"adapter: {', '.join(names)} has no site, so there is nothing to merge")
    if len(linear) > 1 or len(places) > 1:
        raise AdapterError(
            f"adapter: {', '.join(names)} do not sit at the same sites, so their sum is no merge; "
            "merge one of them"
        )


def _identity(
    before: Mapping[str, Any], base: Mapping[str, nn.Parameter], report: MergeReport
) -> dict[str, Any]:
    """Names and digests of a base that an adapter was merged into for good: it is another one now."""
    found = dict(before)
    if "base" in found:
        named = found["base"].get("decoder") if isinstance(found["base"], Mapping) else found["base"]
        found["base"] = f"{named} with {report.taken[0]} merged for {report.modalities[0]}"
    for key, part in PARTS.items():
        if key in found:
            found[key] = digest((k.removeprefix(part), p) for k, p in base.items() if k.startswith(part))
    return found
