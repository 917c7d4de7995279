"""Who is asked: one model with one adapter, several, or none, and how each of them wants to be asked.

Several adapters answer in one pass over the base where a bank holds them; otherwise they take turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from data.prompts import require_format
from data.template import TEMPLATES
from eval.benchmark import Prompting
from eval.benchmarks.scienceqa import LLAVA
from eval.errors import EvalError
from eval.results import file_digest
from mma.bank import AdapterBank
from mma.config import MMAConfig
from mma.errors import AdapterError
from mma.folder import CONFIG, TENSORS
from mma.run_folder import adapter_of
from mma.storage import describe
from models.build import SEEN, BaseSettings, System, load

BASE = "base"
"""The column of the untouched base."""


@dataclass(frozen=True)
class Column:
    """One adapter, or the base without any, and what its answers depend on."""

    name: str
    folder: Path | None  # None: the base
    prompting: Prompting
    held: str | None = None  # its name in the model
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A model with everybody who is asked on it."""

    system: System
    columns: tuple[Column, ...]
    bank: AdapterBank | None = None

    @contextmanager
    def asking(self, column: Column) -> Iterator[None]:
        """The model as this column alone has it."""
        adapters = self.system.model.adapters
        if column.held is None:
            with adapters.disable_adapter():
                yield
        else:
            adapters.set_adapter(column.held)
            yield


def adapter_folder(path: Path) -> Path:
    """The adapter folder itself, or the one in a run folder: that of its last stage if it has several."""
    folder = adapter_of(path)
    if not (folder / CONFIG).is_file():
        raise EvalError(f"{path}: neither an adapter folder (with {CONFIG}) nor a run folder (with adapter/)")
    return folder


def open_columns(
    paths: Sequence[Path],
    base: Mapping[str, Any],
    device: str,
    format: str | None = None,
    *,
    with_adapters: bool = True,
    with_base: bool = False,
) -> Opened:
    """Reads the base that the first adapter names, and all adapters onto it.

    Args:
        base: Settings of the base that differ from what the adapter recorded.
        format: The prompt format; None: each adapter's own.
        with_adapters: False: the adapters only say what the base is and how it is asked.
        with_base: Whether the untouched base is asked too.
    """
    folders = [adapter_folder(path) for path in paths]
    promptings = [prompting_of(folder, format) for folder in folders]
    for folder in folders[1:] if with_adapters else ():
        _check_one_base(folders[0], folder)
    system = load(folders[0], base_of(describe(folders[0]), base), device)
    columns = []
    asked = zip(_names(paths), folders, promptings, strict=True) if with_adapters else ()
    for place, (name, folder, prompting) in enumerate(asked):
        held = "default" if place == 0 else f"asked {place}"
        if place:
            system.model.adapters.load_adapter(folder, held)
        digests = {"adapter": file_digest(folder / TENSORS)}
        columns.append(Column(name, folder, prompting, held, digests))
    if with_base or not with_adapters:
        columns.append(Column(BASE, None, promptings[0]))
    system.model.adapters.set_adapter("default")
    return Opened(system, tuple(columns), _bank(system, columns) if len(columns) > 1 else None)


def device_of(name: str) -> str:
    """The device of a name; `auto` takes CUDA where there is one."""
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise EvalError(f"--device {name}: PyTorch finds no CUDA device here; take --device cpu")
    return name if name != "auto" else "cuda" if available else "cpu"


def _check_one_base(first: Path, other: Path) -> None:
    """Refuse adapters that see through the tower differently: the digests of their bases do not tell."""
    one, two = (_recorded(folder) for folder in (first, other))
    for name in SEEN:
        here, there = getattr(one, name), getattr(two, name)
        if here != there:
            raise EvalError(
                f"{other}: was trained with {name} {there}, {first} with {here}; only adapters of one base "
                "are asked together, so evaluate it by itself"
            )


def _recorded(folder: Path) -> BaseSettings:
    """What an adapter says of its base; the usual where it says nothing."""
    recorded = describe(folder).get("base")
    known = {field.name for field in fields(BaseSettings)}
    told = recorded if isinstance(recorded, dict) else {}
    return BaseSettings(**{name: value for name, value in told.items() if name in known})


def prompting_of(folder: Path, format: str | None) -> Prompting:
    """How an adapter was trained to be asked, with another ScienceQA format where one is given."""
    description = describe(folder)
    template = description.get("template", "lavin")
    if template not in TEMPLATES:
        raise EvalError(
            f"{folder}: was trained with template {template!r}, which this version does not have; update it"
        )
    recorded = description.get("provenance")
    provenance = recorded if isinstance(recorded, dict) else {}
    name = format or provenance.get("format")
    if name is not None and name != LLAVA:
        require_format(name)
    known = description.get("modalities")
    modalities = tuple(known) if isinstance(known, list) else Prompting.modalities
    return Prompting(template, name, bool(provenance.get("captions", False)), modalities)


def base_of(description: Mapping[str, Any], given: Mapping[str, Any]) -> BaseSettings | None:
    """The base an adapter names, with what was said otherwise; None where nothing was."""
    if not given:
        return None
    recorded = description.get("base")
    return BaseSettings(**{**(recorded if isinstance(recorded, dict) else {}), **given})


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names that tell the adapters apart."""
    found: list[str] = []
    for path in paths:
        own = path.resolve()
        name = own.parent.name if own.name == "adapter" else own.name
        unique, count = name, 2
        while unique in (*found, BASE):
            unique, count = f"{name}-{count}", count + 1
        found.append(unique)
    return found


def _bank(system: System, columns: Sequence[Column]) -> AdapterBank | None:
    """A bank that holds every adapter, or None where one of them is not of that kind."""
    adapters = system.model.adapters
    if adapters.part("newline") is not None:  # trained for any resolution; a bank has no place for it
        return None
    held = [column.held for column in columns if column.held is not None]
    configs = [config for name in held if isinstance(config := adapters.config_of(name), MMAConfig)]
    if len(configs) < len(held):
        return None
    like = max(configs, key=lambda config: (config.r, config.routes))
    bank = None
    try:
        bank = AdapterBank(adapters, len(held), like)
        for name in held:
            bank.put(name)
    except AdapterError:
        if bank is not None:
            bank.close()
        return None
    return bank
