"""A system from the settings that an evaluation program hands over as names and values.

Knows nothing of the programs themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.formats import FORMATS
from eval.columns import adapter_folder, base_of, device_of
from eval.errors import EvalError
from mma.storage import describe
from models.build import BaseSettings, System, build_base, load

BASE = {field.name: field.type for field in fields(BaseSettings)}
NUMBERS = ("tokens_per_batch", "max_gen_toks")  # of tokens: at once, and in the longest answer


def opened(given: Mapping[str, Any], device: str | None = None) -> tuple[System, dict[str, int]]:
    """The system that a program's model arguments name, and those of `NUMBERS` among them."""
    settings = dict(given)
    own = settings.pop("device", None)
    numbers = {name: _whole_number(name, settings.pop(name)) for name in NUMBERS if name in settings}
    return open_system(settings, device or own), numbers


def open_system(settings: Mapping[str, Any], device: str | None = None) -> System:
    """The system of an `adapter` (its folder or a run folder), or of a base alone by the settings of a base.

    Beside an adapter the settings of a base say what differs from those that it names.
    """
    if unknown := [name for name in settings if name not in BASE and name != "adapter"]:
        raise EvalError(
            f"model argument {unknown[0]!r} is unknown; known are adapter, {', '.join((*BASE, *NUMBERS))}"
        )
    base = {name: _as(BASE[name], value) for name, value in settings.items() if name in BASE}
    device, folder = device_of(device or "auto"), named(settings)
    if folder is None:
        return build_base(BaseSettings(**base), device)
    return load(folder, base_of(describe(folder), base), device)


def named(settings: Mapping[str, Any]) -> Path | None:
    """The adapter folder that settings name; None where they name a base alone."""
    if adapter := settings.get("adapter"):
        return adapter_folder(Path(str(adapter)))
    if not settings.get("decoder"):
        raise EvalError("no model is named; give an adapter, or the decoder of a base alone")
    return None


def parsed(text: str) -> dict[str, Any]:
    """Model arguments of a command line: `name=value,name=value`, or a JSON object for values with commas."""
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise EvalError(f"the model arguments {text} are not a JSON object; correct them") from error
    pairs = [part.partition("=") for part in text.split(",") if part]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise EvalError(f"model argument {wrong[0]!r} has no value; write {wrong[0]}=VALUE")
    return {name.strip(): value for name, _, value in pairs}


def template_of(system: System) -> str:
    """The chat format that the adapter was trained with; a base alone gets the first one there was."""
    name = str(system.model.adapters.identity.get("template", "lavin"))
    if name not in FORMATS:
        raise EvalError(f"the adapter was trained with template {name!r}, which this version does not have")
    return name


def _whole_number(name: str, value: Any) -> int:
    """A whole number that was handed over as a number or as text."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise EvalError(f"model argument {name} is {value!r}; it must be a whole number of at least 1")
    return number


def _as(kind: Any, value: Any) -> Any:
    """A folder may be called 7, which the programs make a number of; and a number may come as text."""
    return str(value) if kind == "str" else int(value) if str(value).lstrip("-").isdigit() else value
