"""Whether an adapter folder loads on a base, check by check, and what it would cost in memory there.

Does what loading does, but goes on after a fault. Gets the base's `Adapters`; knows no model class.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mma import folder, peft_folder
from mma.adapters import Adapters
from mma.bank import AdapterBank
from mma.cli.stored import Stored, table
from mma.config import AdapterConfig, LoraConfig, SiteConfig, brief
from mma.errors import AdapterError
from mma.merge import readers_of, weight_at

COLUMNS, LABEL = 80, 11
NAME = "default"  # of the adapter while it is on the base
NOT_LOADED = "it does not load on this base"
CLOSE = 1e-4  # of two evaluations of a routing table
PARTS = {"base_digest": "decoder", "tower_digest": "tower", "tokenizer_digest": "tokenizer"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, or what is wrong."""

    name: str
    told: str
    good: bool


def checks(stored: Stored, adapters: Adapters) -> list[Check]:
    """Every check of loading, on a base that carries no adapter; the adapter stays on it if it loads."""
    found = [
        _check("settings", lambda: _settings(stored, adapters)),
        *_identity(stored, adapters),
        _check("tensors", lambda: _tensors(stored, adapters)),
    ]
    if all(check.good for check in found):  # on another base the weights are others
        found.append(_check("routing", lambda: _routing(stored, adapters)))
    if all(check.good for check in found):
        adapters.delete_adapter(NAME)
        found.append(_check("loading", lambda: _load(stored, adapters)))
    return found


def memory(adapters: Adapters) -> dict[str, str]:
    """What base and loaded adapter take in memory, in words."""
    adapter = sum(p.numel() for p in adapters.trainable_parameters(NAME).values())
    told = {}
    for part in ("decoder", "tower"):
        by_type: Counter[str] = Counter()
        for path, parameter in adapters.base.items():
            if path.startswith(f"{part}."):
                by_type[str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
        told[part] = ", ".join(f"{_size(count)} in {kind}" for kind, count in by_type.items())
    told["adapter"] = f"{_size(4 * adapter)} ({adapter:,} parameters in float32)"
    told["bank"] = _bank(adapters)
    told["merged"] = _merged(adapters)
    return {name: words for name, words in told.items() if words}


def text(found: Sequence[Check], costs: dict[str, str]) -> str:
    """A line or more for every check, then the memory."""
    lines = []
    for check in found:
        lines += _field(f"{'ok' if check.good else 'WRONG':<5}  {check.name}", check.told, 7 + LABEL)
    if wrong := [check.name for check in found if not check.good]:
        other = wrong == ["routing"]  # which loading evaluates anew, whatever is stored
        verdict = "it loads, but routes otherwise than its folder says" if other else NOT_LOADED
        return "\n".join([*lines, "", f"{len(wrong)} of {len(found)} checks failed: {verdict}"])
    lines += ["", f"all {len(found)} checks passed: it loads on this base", "", "In memory"]
    for name, words in costs.items():
        lines += _field(f"  {name}", words, 2 + LABEL)
    return "\n".join(lines)


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look(), True)
    except AdapterError as error:
        return Check(name, str(error).removeprefix("adapter: "), False)


def _settings(stored: Stored, adapters: Adapters) -> str:
    config, _ = _read(stored, adapters)
    version = stored.description.get("format_version")
    rank = f", r {config.r}" if isinstance(config, SiteConfig) else ""
    return f"{config.peft_type}{rank}, " + (f"format {version}" if version else "in PEFT's format")


def _read(stored: Stored, adapters: Adapters) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Settings and tensors under the names they have on this base."""
    if isinstance(stored.config, LoraConfig):
        return peft_folder.read(stored.path, adapters.sites, adapters.exported_name)[:2]
    return folder.config_of(stored.path, stored.description, adapters.identity), stored.tensors


def _identity(stored: Stored, adapters: Adapters) -> list[Check]:
    """Whether this is the base the folder was made for."""
    if stored.peft and not stored.description:
        return [Check("base", "PEFT records no digest: nothing tells whether it is the right one", True)]
    recorded, here = table(stored.description.get("base")), table(adapters.identity.get("base"))
    found = [_check(name, partial(_digest, stored, adapters, key)) for key, name in PARTS.items()]
    if "tower_every" in recorded:
        found.append(_check("slots", partial(_every, recorded["tower_every"], here.get("tower_every"))))
    for key, name in (("preprocess", "pictures"), ("template", "template")):
        if key in stored.description:
            found.append(_check(name, partial(_same, stored, adapters, key)))
    return found


def _digest(stored: Stored, adapters: Adapters, key: str) -> str:
    if not stored.description.get(key):
        raise AdapterError(
            "the folder records no digest, so it is bound to no base and does not load; convert it again, "
            "with --base"
        )
    _same(stored, adapters, key)
    return f"SHA-256 {adapters.identity[key][:12]}, as recorded"


def _same(stored: Stored, adapters: Adapters, key: str) -> str:
    folder.check_identity(stored.path, stored.description, {key: adapters.identity.get(key)})
    return "as recorded"


def _every(recorded: object, here: object) -> str:
    if recorded != here:
        raise AdapterError(
            f"it was trained with a class token after every {_blocks(recorded)} of the tower, here it comes "
            f"after every {_blocks(here)}; set --tower-every {brief(recorded)}"
        )
    return f"a class token after every {_blocks(here)} of the tower, as recorded"


def _blocks(every: object) -> str:
    return "block" if every == 1 else f"{brief(every)} blocks"


def _tensors(stored: Stored, adapters: Adapters) -> str:
    config, tensors = _read(stored, adapters)
    adapters.add_trained(NAME, config, tensors, stored.path)
    return f"{len(tensors)}: none missing, none too many, shapes fit, every number finite"


def _routing(stored: Stored, adapters: Adapters) -> str:
    """Whether the stored routing table is what the tensors give on this base."""
    kept, here = stored.routing_table(), adapters.routes()
    if not here:
        return "no site is routed by modality"
    if kept is None:
        return "no table is stored; it is evaluated when the adapter is loaded"
    if kept.keys() != here.keys():
        raise AdapterError(f"the stored table has {len(kept)} sites, on this base there are {len(here)}")
    gap = max(
        abs(x - y)
        for site, row in here.items()
        for modality, weights in row.items()
        for x, y in zip(weights, kept[site][modality], strict=True)
    )
    if gap > CLOSE:
        raise AdapterError(
            f"the stored table is off by up to {gap:.2g} from the one evaluated here; it was changed, or the "
            "tensors were: save or fetch the folder again"
        )
    return f"the stored table is the one evaluated here (off by {gap:.1g})"


def _load(stored: Stored, adapters: Adapters) -> str:
    """The loading that everybody uses, in case it asks for more than was asked here."""
    adapters.load_adapter(stored.path, NAME)
    return "loaded as any program loads it"


def _bank(adapters: Adapters) -> str:
    """Bytes of a slot in a bank made for such adapters."""
    try:
        bank = AdapterBank(adapters, 1)
    except AdapterError as error:
        return f"none: {str(error).removeprefix('adapter: ')}"
    bank.put(NAME)
    stacks = (wrapper.stack for wrapper in adapters.places.wrapped.values())
    tensors = [tensor for stack in stacks if stack is not None for tensor in stack.buffers()]
    tensors += adapters.parts[NAME].parameters()
    bank.close()
    return f"{_size(sum(tensor.nbytes for tensor in tensors))} for each slot"


def _merged(adapters: Adapters) -> str:
    """Bytes of the copies that a merge for one modality puts beside the base's own weights."""
    size, layers, left = 0, 0, []
    for site, module in adapters.places.modules_of(NAME):
        try:
            module.fold(0)
            weights = [weight_at(adapters.model, reader) for reader in readers_of(site)]
        except AdapterError as error:
            left.append(str(error).removeprefix("adapter: "))
            continue
        size += sum(weight.nbytes + len(weight) * weight.element_size() for weight in weights)
        layers += len(weights)
    told = f"{_size(size)} more: copies of {layers} linear layers" if layers else "not possible"
    return f"{told}; {len(left)} sites stay unmerged ({left[0].partition(';')[0]})" if left else told


def _size(count: int) -> str:
    """Bytes in words."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:,.1f} {unit}"
    return f"{count} bytes"


def _field(start: str, words: str, column: int) -> list[str]:
    first = f"{start:<{column}}"
    return textwrap.wrap(
        words, COLUMNS, initial_indent=first, subsequent_indent=" " * column, break_on_hyphens=False
    )
