"""What an adapter folder is, in one screen: kind and size, what it needs, where it comes from, its health.

Told from the folder alone: no base is read.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mma.cli.stored import Stored, table
from mma.config import BottleneckConfig, LoraConfig, MMAConfig, PartsConfig, brief, plain
from mma.errors import AdapterError
from mma.folder import FLOATS, IDENTITY
from mma.peft_folder import PLAIN
from mma.routing_report import report_of

COLUMNS, LABEL = 80, 13
KINDS = {
    "MMA": "Mixture-of-modality adapter",
    "BOTTLENECK": "Bottleneck adapter",
    "LORA": "LoRA adapter",
    "PARTS": "Tuned parts",
}
PARTS = {"decoder": "base_digest", "tokenizer": "tokenizer_digest", "tower": "tower_digest"}
# What the lines of the second part of a provenance say; the rest is told as it is.
TOLD = ("recipe", "scores", "format", "captions", "data_digest", "data_licence", "step", "steps", "seed")


@dataclass(frozen=True)
class Placed:
    """The sites in one part of the base."""

    sites: int
    layers: tuple[int, ...]
    targets: tuple[str, ...]  # the last names of the sites
    parameters: int


@dataclass(frozen=True)
class Routing:
    """What the stored routing table says."""

    specialised: bool
    reason: str
    distance: float
    entropy: dict[str, float]


@dataclass(frozen=True)
class Health:
    """What is wrong with the tensors, as far as they tell it alone."""

    not_finite: tuple[str, ...]  # tensors
    silent: int  # sites whose up-projection is all zero: they add nothing
    untrained: bool  # all are
    remarks: tuple[str, ...]  # in words


@dataclass(frozen=True)
class Inspection:
    """An adapter folder at a glance."""

    path: str
    kind: str
    format_version: str | None
    parameters: int
    tensors: int
    dtypes: tuple[str, ...]
    bytes_on_disk: int
    settings: dict[str, Any]
    placed: dict[str, Placed]  # decoder, tower
    parts: dict[str, int]  # projector, modality: parameters
    needs: dict[str, Any]  # base, digests, preprocess, template
    provenance: dict[str, Any]
    routing: Routing | None
    health: Health


def inspect(stored: Stored) -> Inspection:
    """Looks at a folder that was read."""
    tensors = stored.tensors
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        counts[stored.owner_of(name)] += tensor.numel()
    description = stored.description
    needs = {"base": stored.base, **{key: description.get(key) for key in IDENTITY}}
    needs |= {key: description.get(key) for key in ("preprocess", "template")}
    routing, remarks = _routing(stored)
    return Inspection(
        path=str(stored.path),
        kind=stored.config.peft_type,
        format_version=description.get("format_version"),
        parameters=sum(counts.values()),
        tensors=len(tensors),
        dtypes=tuple(sorted({str(x.dtype).removeprefix("torch.") for x in tensors.values()})),
        bytes_on_disk=stored.bytes_on_disk,
        settings=stored.settings,
        placed={part: _placed(stored, part, counts) for part in ("decoder", "tower")},
        parts={owner: count for owner, count in counts.items() if owner not in stored.sites},
        needs=needs,
        provenance=stored.provenance,
        routing=routing,
        health=_health(stored, remarks),
    )


def text(told: Inspection) -> str:
    """The screen: at most 80 columns and about 40 lines."""
    title = f"{KINDS[told.kind]} ({told.kind})"
    version = f", format {plain(told.format_version, 12)}" if told.format_version else " in PEFT's format"
    lines = [
        *textwrap.wrap(plain(told.path, 160), COLUMNS),
        f"{title}{version}",
        "",
        *_field(
            "size",
            f"{told.parameters:,} parameters in {told.tensors} tensors ({', '.join(told.dtypes)}), "
            f"{told.bytes_on_disk:,} bytes on disk",
        ),
        *_field("settings", _settings(told)),
    ]
    for part, placed in told.placed.items():
        lines += _field(part, _where(told, part, placed))
    for part, count in told.parts.items():
        lines += _field(plain(part, 40), _part(told, part, count))
    for head, fields in (
        ("Needs", _needs(told.needs)),
        ("Comes from", _origin(told.provenance)),
        ("Routing", _routing_lines(told)),
        ("Health", [("", remark) for remark in told.health.remarks]),
    ):
        lines += ["", head, *(line for label, value in fields for line in _field(label, value))]
    return "\n".join(lines)


def _field(label: str, value: str) -> list[str]:
    """A label and its value, which may take three lines."""
    start = f"  {label:<{LABEL - 3}} " if label else "  "
    return textwrap.wrap(
        value,
        COLUMNS,
        initial_indent=start,
        subsequent_indent=" " * (LABEL if label else 2),
        break_on_hyphens=False,
        max_lines=3,
        placeholder=" ...",
    )


def _placed(stored: Stored, part: str, counts: Mapping[str, int]) -> Placed:
    sites = {name: site for name, site in stored.sites.items() if site.part == part}
    return Placed(
        sites=len(sites),
        layers=tuple(sorted({site.layer for site in sites.values() if site.layer is not None})),
        targets=tuple(sorted({site.path.rpartition(".")[2] for site in sites.values()})),
        parameters=sum(counts[name] for name in sites),
    )


def _routing(stored: Stored) -> tuple[Routing | None, list[str]]:
    """The verdict on the stored table, and what is wrong with it."""
    try:
        stored_table = stored.routing_table()
    except AdapterError as error:
        return None, [str(error).removeprefix("adapter: ")]
    if stored_table is None:
        return None, []
    report = report_of(stored_table)
    return Routing(report.specialised, report.reason, report.distance, report.entropy), []


def _health(stored: Stored, remarks: list[str]) -> Health:
    zero = dict.fromkeys(stored.sites, True)  # site -> whether all of its up-projection is
    not_finite, not_floating = [], []
    for name, tensor in sorted(stored.tensors.items()):
        owner = stored.owner_of(name)
        if owner in zero and stored.group_of(name) == "up":
            zero[owner] &= not tensor.double().any()
        if tensor.dtype not in FLOATS:
            not_floating.append(name)
        elif not tensor.isfinite().all():
            not_finite.append(name)
    silent = sum(zero.values())
    recorded = stored.description.get("sites")
    lost = (
        set(map(str, recorded)) - stored.sites.keys()
        if isinstance(recorded, list) and not stored.peft
        else ()
    )
    foreign = [key for key, allowed in PLAIN.items() if stored.peft.get(key, allowed[0]) not in allowed]
    found = {
        f"NOT FINITE: {_some(not_finite)}; its training has failed, use an earlier checkpoint": not_finite,
        f"of no floating type: {_some(not_floating)}; it is not loaded": not_floating,
        f"without tensors: {_some(sorted(lost))}; the folder is not complete": lost,
        f"made with {', '.join(foreign)}, which this program cannot compute; PEFT can": foreign,
        "no tensor is that of a site; the folder holds something else": not zero,
        _untrained(stored): zero and silent == len(zero),
        f"{silent} of {len(zero)} sites add nothing: their up-projections are zero": 0 < silent < len(zero),
    }
    remarks = [*remarks, *(remark for remark, applies in found.items() if applies)]
    good = f"good: every number is finite, and every site adds something ({len(zero)} of {len(zero)})"
    return Health(tuple(not_finite), silent, bool(zero) and silent == len(zero), tuple(remarks or [good]))


def _some(names: Sequence[str]) -> str:
    """The first two of some names, and how many there are."""
    count = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(plain(name, 60) for name in names[:2]) + count


def _untrained(stored: Stored) -> str:
    if getattr(stored.config, "tower", "") == "legacy_no_residual":
        return "UNTRAINED: every up-projection is zero, so the tower's attention gets nothing to see"
    return "UNTRAINED: every up-projection is zero, so the adapter changes nothing"


def _settings(told: Inspection) -> str:
    settings = told.settings
    names = {
        MMAConfig.peft_type: ("r", "routes", "groups", "temperature", "scale", "dropout"),
        BottleneckConfig.peft_type: ("r", "activation", "scale", "dropout"),
        LoraConfig.peft_type: ("r", "alpha", "dropout", "rslora", "bias"),
        PartsConfig.peft_type: ("projector",),
    }[told.kind]
    words = [f"{name} {_value(settings[name])}" for name in names]
    if modalities := settings.get("modalities"):
        words.append(f"modalities {' and '.join(plain(x, 20) for x in modalities)}")
    return ", ".join(words)


def _where(told: Inspection, part: str, placed: Placed) -> str:
    if not placed.sites:
        return "no site"
    settings = told.settings
    if told.kind == LoraConfig.peft_type:
        where, what = f"on {', '.join(plain(x, 30) for x in placed.targets)}", "layers"
    else:
        where, what = settings["placement" if part == "decoder" else "tower_placement"], "sites"
        if part == "tower" and "tower" in settings:
            where += f", rule {settings['tower']}"
    blocks = f" in {_blocks(placed.layers)}" if placed.layers else ""
    return f"{where}: {placed.sites} {what}{blocks}, {placed.parameters:,} parameters"


def _blocks(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return f"block {layers[0]}"
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"blocks {layers[0]} to {layers[-1]}"
    return f"blocks {', '.join(map(str, layers))}"


def _part(told: Inspection, part: str, count: int) -> str:
    words = {
        "projector": f"{plain(told.settings.get('projector', 'class_token'), 20)}, ",
        "modality": f"{len(told.settings.get('modalities', ()))} tokens, ",
    }
    return f"{words.get(part, '')}{count:,} parameters"


def _needs(needs: Mapping[str, Any]) -> list[tuple[str, str]]:
    base, shown = needs["base"], []
    for part, digest in PARTS.items():
        words = [_value(base[part])] if base.get(part) else []
        if part == "decoder" and base.get("precision"):
            words.append(f"in {_value(base['precision'])}")
        if part == "tower" and base.get("tower_weights"):
            words.append(f"with weights {_value(base['tower_weights'])}")
        if part == "tower" and base.get("tower_every"):
            every = "block" if base["tower_every"] == 1 else f"{_value(base['tower_every'])} blocks"
            words.append(f"by a class token every {every}")
        if needs[digest]:
            words.append(f"(digest {plain(needs[digest])[:12]})")
        if words:
            shown.append((part, " ".join(words)))
    if preprocess := table(needs["preprocess"]):
        size = preprocess.pop("size", None)
        rest = ", ".join(f"{plain(key, 20)} {_value(x)}" for key, x in preprocess.items() if key != "mode")
        shown.append(("pictures", f"{_value(size)} pixels, {rest}"))
    if needs["template"]:
        shown.append(("template", _value(needs["template"])))
    if not any(needs[digest] for digest in PARTS.values()):
        shown.append(("", "no digest is recorded: nothing tells whether a base is the right one"))
    return shown


def _origin(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe = table(provenance.get("recipe"))
    data, shown = table(recipe.get("data")), []
    if words := [
        *([_value(data["root"])] if data.get("root") else []),
        *([f"split {_value(data['train'])}"] if data.get("train") else []),
        *([f"(digest {_value(provenance['data_digest'])[:12]})"] if provenance.get("data_digest") else []),
    ]:
        shown.append(("data", " ".join(words)))
    for label, key in (("licence", "data_licence"), ("format", "format")):
        if provenance.get(key):
            shown.append((label, _value(provenance[key])))
    if "step" in provenance:
        of = f" of {_value(provenance['steps'])}" if "steps" in provenance else ""
        seed = f", seed {_value(provenance['seed'])}" if "seed" in provenance else ""
        shown.append(("step", f"{_value(provenance['step'])}{of}{seed}"))
    shown += _scores(table(provenance.get("scores")))
    rest = [(plain(key, 20), _value(x)) for key, x in provenance.items() if key not in TOLD]
    return [*shown, *rest[:6]] or [("", "nothing is recorded")]


def _scores(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for name, value in scores.items():
        if name in ("questions", "split") or name.endswith("_interval"):
            continue
        share = name == "accuracy" and isinstance(value, float)
        words = f"{value:.1%}".replace("%", " %") if share else _value(value)
        ends, notes = scores.get(f"{name}_interval"), []
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(x, float) for x in ends):
            notes.append(f"95 %: {ends[0]:.1%} to {ends[1]:.1%}".replace("%", "").replace("95 ", "95 %", 1))
        if share and "questions" in scores:
            notes.append(f"{_value(scores['questions'])} questions of {_value(scores.get('split'))}")
        shown.append((plain(name, 20), words + (f" ({', '.join(notes)})" if notes else "")))
    return shown[:6]


def _routing_lines(told: Inspection) -> list[tuple[str, str]]:
    if told.routing is None:
        if told.kind != MMAConfig.peft_type:
            return [("", f"none: a {KINDS[told.kind]} has no router")]
        return [("", "no table is stored; python -m mma routes DIR --base DIR evaluates it")]
    flag = "specialised" if told.routing.specialised else "NOT SPECIALISED"
    return [("", f"{flag}: {told.routing.reason}")]


def _value(value: object) -> str:
    """A recorded value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return plain(", ".join(f"{key} {_value(x)}" for key, x in value.items()), 160)
    if isinstance(value, list):
        return plain(" ".join(map(_value, value)), 160)
    return plain(value, 80) if isinstance(value, str) else brief(value, 80)
