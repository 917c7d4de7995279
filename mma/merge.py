"""Folds adapters into the linear layers that read their sites, exactly, and takes them out again bit for bit.

With the route weights of a modality fixed, an adapter behind a norm adds a low-rank map (`mma/lowrank.py`),
so the layers that read the norm can compute it at no cost: W' = W + W U A. The base's own tensors are kept
aside, not recomputed. For several modalities at once the first one is merged, and the layers add the
difference of rank r for tokens of another.

Shapes: C channels of a layer's input, O of its output, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mma.errors import AdapterError
from mma.folder import FLOATS
from mma.lowrank import LowRank
from mma.routing import RouteState
from mma.sites import Site, Wrapped, device_of, replace


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: which adapters and sites it took, and which it left as they were."""

    modalities: tuple[str, ...]  # the first is merged, others are differences
    taken: tuple[str, ...]  # adapters
    left: tuple[str, ...]
    sites: tuple[str, ...]
    sites_left: Mapping[str, str]  # site -> the reason

    def __str__(self) -> str:
        """In words, for a terminal."""
        lines = [
            f"merged {', '.join(self.taken)} for {self.modalities[0]} at {len(self.sites)} sites"
            + "".join(f", {name} as a difference" for name in self.modalities[1:]),
            f"left: {', '.join(self.left) or 'no other adapter'}",
        ]
        for reason in dict.fromkeys(self.sites_left.values()):
            count = sum(one == reason for one in self.sites_left.values())
            lines.append(f"{count} sites go on unmerged: {reason.removeprefix('adapter: ')}")
        return "\n".join(lines)


class Difference(nn.Module):
    """A merged linear layer that adds what other modalities than the merged one have more."""

    def __init__(self, base: nn.Module, maps: Mapping[int, LowRank], state: RouteState) -> None:
        super().__init__()
        self.base, self._maps, self._state = base, dict(maps), state

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., O]."""
        y: Tensor = self.base(x)
        shape = y.shape
        routes = self._state.current
        if routes is None:
            raise RuntimeError("a model merged for several modalities must be told what its tokens carry")
        x, y = routes.by_rows(x), routes.by_rows(y)
        for modality, low in self._maps.items():
            rows = routes.rows_of(modality, x)
            if len(rows):
                flat = y.flatten(0, -2)
                y = flat.index_add(0, rows, low(x.flatten(0, -2)[rows])).view_as(y)
        return y.reshape(shape)


@dataclass
class Merge:
    """A merge that can be put in and taken out: which tensors and modules change places.

    Args:
        asked: Modalities, adapters and weights it was made for.
        active: The adapter that was active before.
    """

    asked: tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]
    active: str | None
    report: MergeReport = field(init=False)
    tensors: list[tuple[nn.Module, str, nn.Parameter | None, nn.Parameter]] = field(default_factory=list)
    modules: list[tuple[str, nn.Module, nn.Module]] = field(default_factory=list)

    def check(self, modalities: Sequence[str]) -> None:
        """Refuses samples of a modality that was not merged."""
        if other := [name for name in modalities if name not in self.report.modalities]:
            raise AdapterError(
                f"adapter: the model is merged for {', '.join(self.report.modalities)}, but a sample carries "
                f"{other[0]}; unmerge it, or merge for all modalities"
            )

    def put_in(self, model: nn.Module) -> None:
        """The merged tensors take the place of the base's, and sites that were taken are its own norms."""
        for module, name, _, after in self.tensors:
            setattr(module, name, after)
        for path, _, after_module in self.modules:
            replace(model, path, after_module)

    def take_out(self, model: nn.Module) -> None:
        """The base's own tensors again, the very same ones, where and in the mode that the model is now."""
        for path, before_module, after_module in reversed(self.modules):
            if before_module.training != after_module.training:
                before_module.train(after_module.training)
            before_module.to(device_of(after_module, device_of(before_module, torch.device("cpu"))))
            replace(model, path, before_module)
        for module, name, before, after in self.tensors:
            if before is not None:
                before.data = before.data.to(after)  # the same memory unless the model was moved
            setattr(module, name, before)

    def absorb(self, model: nn.Module, path: str, maps: Mapping[int, LowRank], state: RouteState) -> None:
        """Plans the change of the linear layer at a path; the maps are those of the modalities, by number."""
        module = linear_at(model, path)
        attention = isinstance(module, nn.MultiheadAttention)
        if any(module is other for other, *_ in self.tensors):
            raise AdapterError(
                f"adapter: {path} reads two sites, so it cannot take in both; name it in one Site only"
            )
        weight_name, bias_name = ("in_proj_weight", "in_proj_bias") if attention else ("weight", "bias")
        weight, bias = getattr(module, weight_name), getattr(module, bias_name)
        first = next(iter(maps.values()))
        with torch.no_grad():
            delta, shift = first.dense()
            merged = nn.Parameter((weight.double() + delta).to(weight.dtype), requires_grad=False)
            self.tensors.append((module, weight_name, weight, merged))
            if bias is not None or shift.any():  # a LoRA without a bias leaves a layer without one
                start = 0 if bias is None else bias.double()
                merged_bias = nn.Parameter((start + shift).to(weight.dtype), requires_grad=False)
                self.tensors.append((module, bias_name, bias, merged_bias))
            others = {
                m: low.minus(first).to(weight.dtype) for m, low in maps.items() if not low.equals(first)
            }
        if others and attention:
            raise AdapterError(
                f"adapter: {path} is a whole attention layer, which holds one modality only; merge for one"
            )
        if others:
            self.modules.append((path, module, Difference(module, others, state)))


def check_can_absorb(model: nn.Module, site: Site) -> None:
    """Raises AdapterError with the reason where a layer that reads the site cannot take anything in."""
    for path in readers_of(site):
        weight_at(model, path)


def weight_at(model: nn.Module, path: str) -> Tensor:
    """The weight of the linear layer at a path; raises AdapterError where it has none to calculate with."""
    module = linear_at(model, path)
    if isinstance(module, nn.MultiheadAttention):
        weight: Tensor | None = module.in_proj_weight
        channels = module.embed_dim
    elif isinstance(module, nn.Linear):
        weight, channels = module.weight, module.in_features
    else:
        kind = type(module)
        raise AdapterError(
            f"adapter: {path} is a {kind.__module__}.{kind.__qualname__}, no torch.nn.Linear, it cannot be "
            "merged; leave it unmerged, or load the base in fp32 or bf16"
        )
    if weight is None:
        raise AdapterError(f"adapter: {path} keeps q, k and v of unlike widths; it cannot be merged")
    # Quantised weights have a type of their own, or are of another type, or of another shape.
    plain = type(weight) is nn.Parameter and weight.dtype in FLOATS
    if not plain or weight.ndim != 2 or weight.shape[1] != channels:
        raise AdapterError(
            f"adapter: {path} is quantised ({type(weight).__name__} of {weight.dtype}), merging would round "
            "the adapter away; leave it unmerged, or load the base in fp32 or bf16"
        )
    if weight.is_meta:
        raise AdapterError(
            f"adapter: {path} is not in memory (offloaded), so it cannot be merged; load the whole base"
        )
    return weight


def linear_at(model: nn.Module, path: str) -> nn.Module:
    """The linear layer of a path, behind the wrapper where an adapter is held there."""
    module = model.get_submodule(path)
    return module.base if isinstance(module, Wrapped) else module


def readers_of(site: Site) -> tuple[str, ...]:
    """The linear layers that a merge at this site changes."""
    if site.kind == "linear":
        return (site.path,)
    if not site.readers:
        raise AdapterError(
            f"adapter: it is not known that linear layers alone read {site.path}, so it cannot be merged; if "
            "they do, name them as readers of its Site"
        )
    return site.readers


def seen_by(model: nn.Module, site: Site, path: str, low: LowRank) -> LowRank:
    """What a reader's output gains, in fp64: the site's map behind the reader's weight."""
    wide = low.to(torch.float64)
    if site.kind == "linear":
        return wide
    return wide.behind(weight_at(model, path).detach())
