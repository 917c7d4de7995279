"""Recipes: a YAML file and settings from the command line become one typed dataclass.

Knows nothing of what the settings mean: sections are dataclasses, checked where they are made.
"""

from __future__ import annotations

import dataclasses
import re
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from training.errors import RunError

Recipe = TypeVar("Recipe")

USAGE = """python train.py RECIPE.yaml [--section.setting VALUE ...]
       python train.py --resume RUN"""


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves paragraphs as they are, and types out where the choices are shown anyway."""

    def _expand_help(self, action: Action) -> str:
        return re.sub(
            r"(?<=\()type: (<class 'Path'>|Literal\[[^]]*\])(, )?|, type: <class 'Path'>",
            "",
            super()._expand_help(action),
        )


class RecipeReader(Generic[Recipe]):
    """Reads recipes of one dataclass, whose fields are sections (dataclasses) and settings."""

    def __init__(self, recipe_class: type[Recipe], description: str) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        self.known = list(settings_of(recipe_class))
        self._sections = {name.rpartition(".")[0] for name in self.known} - {""}
        self._class = recipe_class
        self._parser = ArgumentParser(
            prog="train.py",
            usage=USAGE,
            description=description,
            formatter_class=_HelpFormatter,
            exit_on_error=False,
        )
        self._parser.add_argument("--recipe", action="config", help=SUPPRESS)
        self._parser.add_class_arguments(recipe_class)
        for action in self._parser._actions:
            if action.dest != "help" and action.dest not in self.known:
                # A section is not given as a file of its own: one run, one recipe.
                action.help = SUPPRESS

    def help(self) -> str:
        """Every setting with its meaning and default."""
        return self._parser.format_help()

    def read(self, file: Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a file, with settings from the command line (`--optim.lr 1e-3`) put over it."""
        return self.read_values(load(file), str(file), overrides)

    def read_values(self, values: Mapping[str, Any], file: str, overrides: Sequence[str] = ()) -> Recipe:
        """The same for settings that were loaded already; `file` is named in errors."""
        self._check(flat_keys(values), file)
        for token in overrides:
            if token.startswith("--"):
                self._check([token[2:].partition("=")[0]], "the command line")
        try:
            parsed = self._parser.parse_args([f"--recipe={yaml.safe_dump(dict(values))}", *overrides])
        except ArgumentError as error:
            where = f"{file} with the settings of the command line" if overrides else file
            raise RunError(f"{where}: {_one_line(error)}") from error
        del parsed["recipe"]
        fields: Namespace = self._parser.instantiate(parsed)
        return self._class(**vars(fields))

    def dump(self, recipe: Recipe) -> str:
        """The whole recipe as YAML, defaults included; reading it gives the same recipe."""
        return yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True)

    def _check(self, keys: Sequence[str] | Iterator[str], where: str) -> None:
        for key in keys:
            if key in self._sections:
                example = next(name for name in self.known if name.startswith(f"{key}."))
                raise RunError(f"{where}: '{key}' is a section: give its settings, such as {example}")
            # A setting may hold a table of its own, such as optim.parts.
            inside = any(key.startswith(f"{name}.") for name in self.known)
            if key not in self.known and not inside:
                near = nearest(key, self.known)
                hint = f"did you mean '{near}'?" if near else "python train.py --help lists all"
                raise RunError(f"{where}: unknown setting '{key}', {hint}")


def settings_of(dataclass: type) -> Iterator[str]:
    """Dotted names of all settings of a dataclass and of the dataclasses in it."""
    types = get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        if dataclasses.is_dataclass(types[field.name]):
            yield from (f"{field.name}.{name}" for name in settings_of(types[field.name]))
        else:
            yield field.name


def flat_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of everything in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name in flat_keys(value))
        else:
            yield str(key)


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known setting that was probably meant: its section misnamed, its name, or both."""
    section, _, leaf = key.rpartition(".")
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    if elsewhere:
        return get_close_matches(key, elsewhere, n=1, cutoff=0.0)[0]
    inside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    if inside:
        return next((inside[name] for name in get_close_matches(leaf, inside, n=1)), None)
    return next(iter(get_close_matches(key, known, n=1)), None)


def load(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, not yet checked."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"there is no recipe {file}; recipes/ holds some to begin with") from error
    except RecursionError as error:
        raise RunError(f"the recipe {file} is nested too deep, or holds itself") from error
    except OSError as error:
        raise RunError(f"the recipe {file} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"the recipe {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RunError(f"the recipe {file} must hold settings as 'name: value', it holds {values!r}")
    try:
        list(flat_keys(values))
    except RecursionError as error:
        raise RunError(f"the recipe {file} is nested too deep, or holds itself") from error
    return values


def stages_of(values: Mapping[str, Any], file: str) -> dict[str, dict[str, Any]]:
    """The settings of every stage by its name, the whole recipe's put under its own; {} without stages.

    Each stage is a run of its own, in a folder of its name below the recipe's, and begins with the adapter
    of the stage before.
    """
    common = {key: value for key, value in values.items() if key != "stages"}
    found: dict[str, dict[str, Any]] = {}
    for stage in _listed(values, file):
        name = stage.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or name in found:
            raise RunError(f"{file}: a stage is named {name!r}; give each a name of letters, digits and -")
        found[name] = merged(common, {key: value for key, value in stage.items() if key != "name"})
    return found


def _listed(values: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """The stages as they are written."""
    listed = values.get("stages", [])
    if not isinstance(listed, list) or not all(isinstance(stage, dict) for stage in listed):
        raise RunError(f"{file}: 'stages' must be a list of stages, each with a name and its settings")
    return listed


def with_variants(values: Mapping[str, Any], names: Sequence[str], file: str) -> dict[str, Any]:
    """The settings with those of the named variants put over them, in their order."""
    variants = values.get("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(variant, dict) for variant in variants.values()):
        raise RunError(f"{file}: 'variants' must be a table of variants, each a table of settings")
    by_name = {str(key): variant for key, variant in variants.items()}  # YAML reads 224 as a number
    found = {key: value for key, value in values.items() if key != "variants"}
    for name in names:
        if name not in by_name:
            known = f"it has {', '.join(by_name)}" if by_name else "it has none"
            raise RunError(f"{file} has no variant {name!r}: {known}")
        variant = by_name[name]
        if isinstance(own := variant.get("stages"), dict):
            variant = {**variant, "stages": _changed(_listed(found, file), own, f"{file}: variant {name!r}")}
        found = merged(found, variant)
    return found


def _changed(listed: Sequence[Mapping[str, Any]], own: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The stages with a variant's settings of single ones, by their names, put over them."""
    names = [stage.get("name") for stage in listed]
    for name, settings in own.items():
        if name not in names:
            raise RunError(f"{where} changes stage {name!r}, which there is not")
        if not isinstance(settings, dict):
            raise RunError(f"{where} gives stage {name!r} {settings!r}, which is no table of settings")
    return [merged(stage, own.get(stage.get("name"), {})) for stage in listed]


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, the second put over the first."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text).replace("a one of", "one of")
    text = re.sub(
        r"Does not validate .*? Subtypes: \[(.*?)\] Errors: .* Given value: ",
        lambda found: f"Expected {found[1].replace('NoneType', 'null').replace(', ', ' or ')}. Got value: ",
        text,
    )
    return text.removeprefix("Parser key ").replace("<class '", "").replace("'>", "")


def _plain(value: Any) -> Any:
    """Dataclasses and paths as what YAML knows."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
