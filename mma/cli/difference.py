"""What differs between two adapter folders: settings, base, provenance, routing table, tensors.

Told from the folders alone; the model cards are not compared.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mma.cli.stored import Stored
from mma.config import brief, plain
from mma.folder import FLOATS

COLUMNS, ROWS = 80, 12
# Of a description, what is compared elsewhere, or follows from the rest.
ELSEWHERE = ("peft_type", "format_version", "provenance", "routing_table", "sites")
# Likewise of PEFT's settings.
OF_PEFT = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "lora_bias", "target_modules", "peft_type"),
    *("base_model_name_or_path", "peft_version", "inference_mode"),
)
ORDER = ("down", "up", "router", "projector", "modality")  # of the groups; others follow
MISSING = "(not there)"

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Group:
    """How far apart the tensors of one kind are.

    Args:
        tensors: How many both have in the same shape.
        equal: How many of them have the same type and bytes.
        largest: The largest absolute difference of two numbers.
        relative: The largest relative difference of two tensors: the norm of their difference by the norm
            of the larger one.
    """

    tensors: int
    equal: int
    largest: float
    relative: float


@dataclass(frozen=True)
class Difference:
    """What differs between A and B; `settings` and the like hold both values by their dotted names."""

    settings: dict[str, Pair]
    base: dict[str, Pair]
    provenance: dict[str, Pair]
    routing: float | str | None  # the largest difference of a weight, or who stores a table; None: the same
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    other_type: dict[str, tuple[str, str]]
    groups: dict[str, Group]
    cosine: (
        float | None
    )  # of all tensors of one shape as one vector; None where there is none, or one is zero

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        tables = (self.settings, self.base, self.provenance, self.only_a, self.only_b, self.other_shape)
        return self.routing is None and not any(tables) and self.equal == self.shared

    @property
    def shared(self) -> int:
        """How many tensors both have in the same shape."""
        return sum(group.tensors for group in self.groups.values())

    @property
    def equal(self) -> int:
        """How many of them are the same bit for bit."""
        return sum(group.equal for group in self.groups.values())


def compare(a: Stored, b: Stored) -> Difference:
    """Compares two folders that were read."""
    shared = [name for name in a.tensors if name in b.tensors]
    same_shape = [name for name in shared if a.tensors[name].shape == b.tensors[name].shape]
    types = {name: (_type(a.tensors[name]), _type(b.tensors[name])) for name in same_shape}
    return Difference(
        settings=_pairs(_settings(a), _settings(b)),
        base=_pairs(_base(a), _base(b)),
        provenance=_pairs(a.provenance, b.provenance),
        routing=_routing(a, b),
        only_a=tuple(sorted(a.tensors.keys() - b.tensors.keys())),
        only_b=tuple(sorted(b.tensors.keys() - a.tensors.keys())),
        other_shape={
            name: (tuple(a.tensors[name].shape), tuple(b.tensors[name].shape))
            for name in shared
            if name not in types
        },
        other_type={name: (one, other) for name, (one, other) in types.items() if one != other},
        groups=_groups(a, b, same_shape),
        cosine=_cosine((a.tensors[name], b.tensors[name]) for name in same_shape),
    )


def text(found: Difference, a: str, b: str) -> str:
    """The differences for a terminal of 80 columns; of long lists, the first dozen."""
    lines = [f"A  {plain(a, 160)}", f"B  {plain(b, 160)}"]
    if found.identical:
        return "\n".join([*lines, "", f"identical: settings, provenance and all {found.shared} tensors"])
    for title, pairs in (
        ("Settings", found.settings),
        ("Base", found.base),
        ("Provenance", found.provenance),
    ):
        lines += ["", title, *_table(pairs)]
    lines += ["", "Routing table", f"  {_routing_words(found.routing)}"]
    lines += ["", "Tensors", *_tensors(found)]
    return "\n".join(lines)


def _settings(stored: Stored) -> dict[str, Any]:
    about = {"peft_type": stored.config.peft_type, "format_version": stored.description.get("format_version")}
    # PEFT writes down what it does not use.
    used = {key: value for key, value in stored.peft.items() if key not in OF_PEFT and value}
    return {**about, **stored.settings, **({"peft": used} if used else {})}


def _base(stored: Stored) -> dict[str, Any]:
    """All that is recorded beside settings and provenance: the base, its digests, and an owner's own."""
    settings = {*ELSEWHERE, *stored.settings}
    recorded = {key: value for key, value in stored.description.items() if key not in settings}
    return {**recorded, **({"base": stored.base} if stored.base else {})}


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """What differs, by dotted names; a value that is not there is told so."""
    one, other = dict(_flat(a)), dict(_flat(b))
    keys = sorted(one.keys() | other.keys())
    return {
        key: (one.get(key, MISSING), other.get(key, MISSING))
        for key in keys
        if key not in one or key not in other or not _same(one[key], other[key])
    }


def _flat(value: Mapping[str, Any], start: str = "") -> Iterable[tuple[str, Any]]:
    for key, x in value.items():
        if isinstance(x, Mapping) and x:
            yield from _flat(x, f"{start}{key}.")
        else:
            yield f"{start}{key}", x


def _same(a: object, b: object) -> bool:
    """Equality of values from JSON, where true is not 1, and a number that is none is itself."""
    return brief(a, 10**6) == brief(b, 10**6) or (
        type(a) in (int, float) and type(b) in (int, float) and a == b
    )


def _shape(table: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[tuple[str, int]]]:
    """The modalities of each site in their order, and how many weights each has."""
    return {site: [(modality, len(row[modality])) for modality in row] for site, row in table.items()}


def _routing(a: Stored, b: Stored) -> float | str | None:
    one, other = a.routing_table(), b.routing_table()
    if one is None or other is None:
        return None if one is other else f"stored in {'B' if one is None else 'A'} only"
    if _shape(one) != _shape(other):
        return "of other sites, modalities or numbers of routes"
    gaps = [
        abs(x - y)
        for site, row in one.items()
        for modality in row
        for x, y in zip(row[modality], other[site][modality], strict=True)
    ]
    return max(gaps) or None


def _groups(a: Stored, b: Stored, names: Iterable[str]) -> dict[str, Group]:
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(a.group_of(name), []).append(name)
    places = {group: place for place, group in enumerate(ORDER)}
    order = sorted(members, key=lambda group: (places.get(group, len(places)), group))
    return {group: _group([(a.tensors[name], b.tensors[name]) for name in members[group]]) for group in order}


def _group(pairs: list[tuple[Tensor, Tensor]]) -> Group:
    largest, relative = [0.0], [0.0]
    for one, other in pairs:
        if one.dtype not in FLOATS or other.dtype not in FLOATS or not one.numel():
            continue
        x, y = one.double(), other.double()
        largest.append(float((x - y).abs().max()))
        norm = max(float(x.norm()), float(y.norm()))
        if norm:
            relative.append(float((x - y).norm()) / norm)
    equal = sum(_bits(one, other) for one, other in pairs)
    return Group(len(pairs), equal, _largest(largest), _largest(relative))


def _bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have the same type and bytes."""
    flat = (x.contiguous().reshape(-1) for x in (a, b))
    return a.dtype == b.dtype and torch.equal(*(x.view(torch.uint8) for x in flat))


def _cosine(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    dot = one = other = 0.0
    for a, b in pairs:
        if a.dtype not in FLOATS or b.dtype not in FLOATS:
            continue
        x, y = a.double().flatten(), b.double().flatten()
        dot, one, other = dot + float(x @ y), one + float(x @ x), other + float(y @ y)
    norm = math.sqrt(one) * math.sqrt(other)
    return dot / norm if norm and math.isfinite(norm) else None


def _largest(values: list[float]) -> float:
    """The maximum; not a number when one is none."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _table(pairs: Mapping[str, Pair]) -> list[str]:
    if not pairs:
        return ["  the same"]
    rows = [(_cut(key, 36), _shown(one), _shown(other)) for key, (one, other) in pairs.items()][:ROWS]
    first = max(4, *(len(row[0]) for row in rows))
    second = max(1, *(len(row[1]) for row in rows))
    lines = [f"  {'':<{first}}  {'A':<{second}}  B"]
    lines += [f"  {key:<{first}}  {one:<{second}}  {other}" for key, one, other in rows]
    return lines + ([f"  and {len(pairs) - ROWS} more"] if len(pairs) > ROWS else [])


def _shown(value: object) -> str:
    """A value in twenty characters."""
    return _cut(value if isinstance(value, str) and value else brief(value, 10**6), 20)


def _cut(text: str, most: int) -> str:
    """A text in one line of so many characters; of a longer one, the beginning."""
    words = plain(text, 10**6)
    return words if len(words) <= most else f"{words[: most - 3]}..."


def _routing_words(routing: float | str | None) -> str:
    if routing is None:
        return "the same"
    return routing if isinstance(routing, str) else f"weights differ by up to {routing:.4f}"


def _tensors(found: Difference) -> list[str]:
    lines = [f"  {found.shared} in both with one shape, {found.equal} of them equal bit for bit"]
    for names, what in ((found.only_a, "only in A"), (found.only_b, "only in B")):
        if names:
            lines += _wrapped(f"{len(names)} {what}: {_some(names)}")
    if found.other_shape:
        name, (one, other) = next(iter(found.other_shape.items()))
        lines += _wrapped(
            f"{len(found.other_shape)} of another shape: {plain(name, 160)} is {brief(one)} in A and "
            f"{brief(other)} in B"
        )
    if found.other_type:
        some_types = sorted({f"{one} and {other}" for one, other in found.other_type.values()})
        lines.append(f"  {len(found.other_type)} of another type: {', '.join(some_types[:2])}")
    if found.groups:
        lines += ["", f"  {'':<12} {'tensors':>7} {'equal':>6} {'largest':>10} {'relative':>9}"]
    for name, group in found.groups.items():
        lines.append(
            f"  {_cut(name, 12):<12} {group.tensors:>7} {group.equal:>6} {group.largest:>10.3g} "
            f"{group.relative:>9.3g}"
        )
    if found.groups:
        cosine = "none: a side is zero, or not finite" if found.cosine is None else f"{found.cosine:.6f}"
        lines += [
            "",
            f"  cosine similarity of all of them as one vector: {cosine}",
            "  largest: difference of two numbers; relative: of two tensors, by their norm",
        ]
    return lines


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(plain(name, 160) for name in names[:2]) + (", ..." if len(names) > 2 else "")


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(
        words, COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
