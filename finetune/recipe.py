"""A recipe: every setting of a run as typed dataclasses, one class per method, and the stages it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from data.lengths import Long
from data.prompts import require_format
from data.source import SourceSettings
from data.template import TEMPLATES
from mma import AdapterConfig, BottleneckConfig, LoraConfig, MMAConfig, PartsConfig
from models.build import BaseSettings
from training.errors import RunError
from training.recipe import RecipeReader, load, stages_of, with_variants
from training.settings import OptimSettings, RunSettings


@dataclass(frozen=True)
class DataSettings:
    """What is learned, and how it is put to the model"""

    root: Path | None = None
    """folder of the data set in ScienceQA's layout (problems.json)"""
    mix: list[SourceSettings] = field(default_factory=list)
    """sources to train on instead of a split of the root, each with a path and a take or a weight"""
    template: str = "lavin"
    """how a sample is written: lavin, vicuna_v1, llama_2, llama_3, chatml, ..."""
    format: str = "QCM-ALE"
    """prompt format of ScienceQA: the parts of the prompt, a dash, the parts of the response"""
    captions: bool = False
    """add the picture's caption to the context"""
    train: str = "train"
    """split of the root to train on"""
    validation: str = "val"
    """split of the root to validate on; empty for no validation"""
    validation_limit: int | None = None
    """validate on the first so many samples only"""
    max_tokens: int = 512
    """longest sample, in tokens"""
    long: Long = "error"
    """what to do with longer ones: error, truncate (shortens the prompt) or drop"""
    pictures_in_memory: int = 0
    """number of prepared pictures to keep in memory"""
    workers: int | None = None
    """processes that decode pictures ahead; 0: none. By default one for every four cores, at most 8"""
    picture_cache: Path | None = None
    """folder to keep prepared pictures in, for this run and later ones"""
    feature_cache: Path | None = None
    """folder to keep the tower's features of pictures in, where the recipe trains nothing in the tower"""
    licence: str = ""
    """licence of the data, told in the adapter's model card; empty if it is not known"""

    def __post_init__(self) -> None:
        require_format(self.format)
        if self.template not in TEMPLATES:
            raise RunError(f"data.template is {self.template!r}: choose {', '.join(TEMPLATES)}")
        if not self.train and not self.mix:
            raise RunError("data.train is empty: name the split to train on")
        for name, least in (
            ("max_tokens", 1),
            ("validation_limit", 1),
            ("pictures_in_memory", 0),
            ("workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RunError(f"data.{name} is {value}: it must be at least {least}")

    @property
    def validated(self) -> str:
        """The split to validate on; empty where there is none."""
        return self.validation if self.root is not None else ""


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run; the methods differ in the settings of their adapter"""

    run: RunSettings
    data: DataSettings
    base: BaseSettings = field(default_factory=BaseSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    method: Literal["mma", "lora", "bottleneck", "parts"] = "mma"
    """what is trained: mma, lora, bottleneck or parts (the projector, and parts of the base in full)"""
    start: Path | None = None
    """adapter folder to begin with; all of its tensors must have their place in the new one"""

    def __post_init__(self) -> None:
        if METHODS[self.method] is not type(self):
            raise RunError(f"method is {self.method!r}, but this is a {type(self).__name__}: name its own")
        if self.run.patience is not None and not self.data.validated:
            raise RunError("run.patience is set, but there is no validation: name a split in data.validation")

    @property
    def settings(self) -> AdapterConfig:
        """Those of the adapter."""
        config: AdapterConfig = self.adapter  # type: ignore[attr-defined]
        return config


@dataclass(frozen=True)
class MMARecipe(Recipe):
    """Tunes mixture-of-modality adapters"""

    adapter: MMAConfig = field(default_factory=MMAConfig)


@dataclass(frozen=True)
class LoraRecipe(Recipe):
    """Tunes LoRA"""

    adapter: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class BottleneckRecipe(Recipe):
    """Tunes bottleneck adapters"""

    adapter: BottleneckConfig = field(default_factory=BottleneckConfig)


@dataclass(frozen=True)
class PartsRecipe(Recipe):
    """Tunes the projector, and parts of the base in full"""

    adapter: PartsConfig = field(default_factory=PartsConfig)


METHODS: dict[str, type[Recipe]] = {
    "mma": MMARecipe,
    "lora": LoraRecipe,
    "bottleneck": BottleneckRecipe,
    "parts": PartsRecipe,
}


@cache
def reader(method: str = "mma", description: str = "") -> RecipeReader[Recipe]:
    """Reads recipes of one method."""
    return RecipeReader(METHODS[method], description)


def read_recipe(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The one recipe in a file without stages."""
    return _read(with_variants(load(file), [], str(file)), str(file), overrides)


def read_stages(file: Path, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """The recipe of every stage by its name; a file without stages is one stage without a name."""
    overrides, variants = _without_variants(overrides)
    values = with_variants(load(file), variants, str(file))
    if variants and isinstance(values.get("run"), dict) and "folder" in values["run"]:
        # Each variant is a run of its own; a name on the command line counts more.
        values["run"] = {**values["run"], "folder": "-".join([str(values["run"]["folder"]), *variants])}
    stages = stages_of(values, str(file)) or {"": values}
    recipes: dict[str, Recipe] = {}
    folder: Path | None = None
    for name, own in stages.items():
        recipe = _read(own, f"{file}, stage {name}" if name else str(file), overrides)
        if name:
            settings = {**own, "run": {**own.get("run", {}), "folder": str(recipe.run.folder / name)}}
            if folder is not None:
                settings["start"] = str(folder / "adapter")
            kept = [x for x in _pairs(overrides) if x[0] not in ("--run.folder", "--start")]
            recipe = _read(settings, f"{file}, stage {name}", [word for pair in kept for word in pair])
            folder = recipe.run.folder
        recipes[name] = recipe
    return recipes


def _read(values: dict[str, Any], file: str, overrides: Sequence[str]) -> Recipe:
    method = values.get("method", "mma")
    for name, *given in _pairs(overrides):
        if name.partition("=")[0] == "--method":
            method = given[0] if given else name.partition("=")[2]
    if method not in METHODS:
        raise RunError(f"{file}: method is {method!r}; choose {', '.join(METHODS)}")
    recipe = reader(method).read_values(values, file, overrides)
    if recipe.data.root is None and not recipe.data.mix:
        raise RunError(
            f"{file}: there is nothing to train on: set data.root to a data set, or data.mix to sources"
        )
    return recipe


def _without_variants(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without `--variant a,b`, and the variants."""
    kept: list[str] = []
    variants: list[str] = []
    for pair in _pairs(overrides):
        name, _, value = pair[0].partition("=")
        if name != "--variant":
            kept += pair
            continue
        if len(pair) != (1 if value else 2):
            raise RunError("--variant takes the names of variants, separated by commas")
        variants += (value or pair[1]).split(",")
    return kept, variants


def _pairs(overrides: Sequence[str]) -> list[list[str]]:
    """The words of a command line, each option with what follows it."""
    pairs: list[list[str]] = []
    for word in overrides:
        if word.startswith("--") or not pairs:
            pairs.append([word])
        else:
            pairs[-1].append(word)
    return pairs
