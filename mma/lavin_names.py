"""LaVIN's names and shapes of trained tensors beside this project's: one table, read in both directions.

Knows no file.

Shapes: C channels of a site, r bottleneck, G groups, K routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class SiteName(NamedTuple):
    """A kind of site; {} stands for the number of its block."""

    theirs: str
    ours: str
    part: str  # decoder or tower
    role: str  # attn or mlp


class Leaf(NamedTuple):
    """A tensor of ours at a site, and which of its routes LaVIN keeps under a name."""

    ours: str
    route: int | None = None  # None: the whole tensor
    convolution: bool = False  # LaVIN's has a last axis of one: a 1x1 convolution


SITES = (
    SiteName("layers.{}.adapter_attn", "decoder.blocks.{}.attn_norm", "decoder", "attn"),
    SiteName("layers.{}.adapter_mlp", "decoder.blocks.{}.mlp_norm", "decoder", "mlp"),
    SiteName(
        "backbone.visual.transformer.resblocks.{}.adapter_attn",
        "tower.visual.transformer.resblocks.{}.ln_1",
        "tower",
        "attn",
    ),
    SiteName(
        "backbone.visual.transformer.resblocks.{}.adapter_mlp",
        "tower.visual.transformer.resblocks.{}.ln_2",
        "tower",
        "mlp",
    ),
)
LEAVES = {  # in LaVIN's order
    "conv_A.weight": Leaf("down.weight", convolution=True),
    "conv_A.bias": Leaf("down.bias"),
    "conv_B.weight": Leaf("up", route=0, convolution=True),
    "conv_B.bias": Leaf("up_bias", route=0),
    "conv_D.weight": Leaf("up", route=1, convolution=True),
    "conv_D.bias": Leaf("up_bias", route=1),
    "expert_weights.weight": Leaf("router.weight"),
    "expert_weights.bias": Leaf("router.bias"),
}
PARTS = {  # in LaVIN's order
    "adapter_proj.conv_A.weight": "projector.down.weight",
    "adapter_proj.conv_A.bias": "projector.down.bias",
    "adapter_proj.conv_B.weight": "projector.up.weight",
    "adapter_proj.conv_B.bias": "projector.up.bias",
    "adapter_modality_embedding.weight": "modality.weight",
}


class Place(NamedTuple):
    """Where a tensor belongs: a kind of site, the number of its block, the rest of its name."""

    site: SiteName
    block: int
    rest: str


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\{\}", "(0|[1-9][0-9]{0,2})") + r"\.(.+)")


_THEIRS = {site: _pattern(site.theirs) for site in SITES}
_OURS = {site: _pattern(site.ours) for site in SITES}


def is_known(name: str) -> bool:
    """Whether LaVIN trains a tensor of this name."""
    place = _find(name, _THEIRS)
    return name in PARTS or (place is not None and place.rest in LEAVES)


def places(names: Iterable[str]) -> list[tuple[str, SiteName, int]]:
    """Every place of a site, with its kind and block, up to the highest blocks among these names of ours."""
    count = {"decoder": 0, "tower": 0}
    for place in (_find(name, _OURS) for name in names):
        if place is not None:
            count[place.site.part] = max(count[place.site.part], place.block + 1)
    return [
        (site.ours.format(block), site, block)
        for part, blocks in count.items()
        for block in range(blocks)
        for site in SITES
        if site.part == part
    ]


def rename(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LaVIN's tensors (or their gradients) under this project's names and in its shapes.

    Raises ValueError where the routes of a site do not belong together, or one is missing.
    """
    renamed = {PARTS[name]: tensor for name, tensor in stored.items() if name in PARTS}
    by_route: dict[str, dict[int, Tensor]] = {}
    for name, tensor in stored.items():
        if (place := _find(name, _THEIRS)) is None:
            continue
        leaf = LEAVES[place.rest]
        key = f"{place.site.ours.format(place.block)}.{leaf.ours}"
        flat = _without_last_axis(name, tensor) if leaf.convolution else tensor
        if leaf.route is None:
            renamed[key] = flat
        else:
            by_route.setdefault(key, {})[leaf.route] = flat
    for key, routes in by_route.items():
        site = key.rpartition(".")[0]
        counts = {len(by_route.get(f"{site}.{leaf}", ())) for leaf in ("up", "up_bias")}
        if len(counts) != 1 or set(routes) != set(range(len(routes))):
            raise ValueError(f"{site} lacks a route, or its bias")
        if len({(tensor.dtype, tensor.shape) for tensor in routes.values()}) != 1:
            raise ValueError(f"the routes of {site} differ in shape or type")
        together = torch.stack([routes[route] for route in sorted(routes)])
        renamed[key] = together if key.endswith(".up") else together.flatten()
    return renamed


def original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This project's tensors under LaVIN's names and in its shapes, in the order LaVIN keeps them."""
    theirs = {ours: name for name, ours in PARTS.items()}
    stored = {}
    for key, tensor in tensors.items():
        if (place := _find(key, _OURS)) is None:
            stored[theirs[key]] = tensor
            continue
        routes = len(tensors[f"{place.site.ours.format(place.block)}.up"])
        for name, leaf in LEAVES.items():
            if leaf.ours == place.rest and (leaf.route is None or leaf.route < routes):
                one = (
                    tensor
                    if leaf.route is None
                    else tensor.reshape(routes, -1, *tensor.shape[2:])[leaf.route]
                )
                whole = one[..., None] if leaf.convolution else one
                stored[f"{place.site.theirs.format(place.block)}.{name}"] = whole
    # Clones: a slice would drag the whole tensor into the file.
    return {
        name: stored[name].clone(memory_format=torch.contiguous_format) for name in sorted(stored, key=_rank)
    }


def _find(name: str, patterns: Mapping[SiteName, re.Pattern[str]]) -> Place | None:
    for site, pattern in patterns.items():
        if match := pattern.fullmatch(name):
            return Place(site, int(match[1]), match[2])
    return None


def _rank(name: str) -> tuple[int, ...]:
    """Decoder block by block, tower block by block, then the other parts."""
    if (place := _find(name, _THEIRS)) is None:
        return (2, list(PARTS).index(name))
    part = ("decoder", "tower").index(place.site.part)
    return (part, place.block, SITES.index(place.site), list(LEAVES).index(place.rest))


def _without_last_axis(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim != 3 or tensor.shape[-1] != 1:
        raise ValueError(f"{name} is {tuple(tensor.shape)}, not a 1x1 convolution")
    return tensor[..., 0]
