"""Finds before the first stage what a later one would be refused for, as far as descriptions tell."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from finetune.features import require_still_tower
from finetune.recipe import Recipe
from models.build import outline
from training.errors import RunError


def foresee(stages: Mapping[str, Recipe]) -> None:
    """Builds every stage without memory; raises the error of the package that would refuse it."""
    before: dict[str, torch.Size] = {}
    for name, recipe in stages.items():
        model = outline(recipe.base)
        model.adapters.add_adapter("default", recipe.settings)
        if recipe.data.feature_cache:
            require_still_tower(model)
        held = {key: p.shape for key, p in model.adapters.trainable_parameters().items()}
        parts = {model.part_of(key) for key in held}
        if unknown := sorted(recipe.optim.parts.keys() - parts):
            raise RunError(
                f"stage {name}: optim.parts names '{unknown[0]}', but what is trained is "
                f"{', '.join(sorted(parts))}"
            )
        for key, shape in before.items():
            if held.get(key) != shape:
                raise RunError(
                    f"stage {name}: it begins with {key} {list(shape)} of the stage before, but has no place "
                    "for it; give both the same projector, and the later one the earlier one's tuned parts"
                )
        for source in recipe.data.mix:
            if not source.path.exists():
                raise RunError(f"stage {name}: there is no file {source.path}; correct data.mix")
        before = held
