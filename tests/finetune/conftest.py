"""Recipes and plans, each made once: describing a decoder of 110 billion parameters takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from finetune import plan as planning
from finetune import recipe as recipes
from finetune.plan import Plan, plan
from finetune.recipe import Recipe, read_stages
from models.build import BaseSettings
from models.multimodal import MultimodalLM

ROOT = Path(__file__).parents[2]
Stages = dict[str, tuple[Recipe, Plan]]


@pytest.fixture(scope="session")
def planned() -> Callable[..., Stages]:
    """(name of a recipe, variants) -> the recipe and the plan of every stage."""
    described: dict[BaseSettings, MultimodalLM] = {}
    plans: dict[str, Plan] = {}

    def outline(settings: BaseSettings) -> MultimodalLM:
        """Described once for all kinds of numbers, without the adapter of the plan before."""
        key = replace(settings, quantise="none")
        if key not in described:
            described.clear()  # recipes come one after the other
            described[key] = original(settings)
        for name in described[key].adapters.names:
            described[key].adapters.delete_adapter(name)
        return described[key]

    def stages(name: str, *variants: str) -> Stages:
        words = ["--variant", ",".join(variants)] if variants else []
        found = {}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(planning, "outline", outline)
            patched.setattr(recipes, "reader", read)
            for stage, recipe in read_stages(ROOT / "recipes" / f"{name}.yaml", words).items():
                key = repr((name, stage, recipe.base, recipe.settings, recipe.optim.parts))
                if key not in plans:
                    plans[key] = plan(recipe, stage)
                found[stage] = (recipe, plans[key])
        return found

    original, read = planning.outline, cache(recipes.reader)
    return cache(stages)
