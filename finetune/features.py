"""Where the pictures of a run come from: workers, caches, and the features of a tower that nothing trains.

Shapes: V views, H and W pixels, K tokens of a view, C tower width.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import PIL
import torch
from torch import Tensor

from data.packing import LoadPicture
from data.picture_cache import CachedPictures, cached_pictures
from data.picture_workers import Pictures, usual_workers
from data.pictures import Prepared, picture_loader
from finetune.recipe import Recipe
from finetune.samples import Data
from models.build import System
from models.multimodal import MultimodalLM
from training.errors import RunError
from training.parallel import World

# What decides how a picture becomes views, and what the tower makes of them.
OF_VIEWS = ("pictures", "grids")
OF_FEATURES = ("tower", "tower_features", "tower_every", "tower_layer", "tower_gelu", "precision")


def pictures_of(recipe: Recipe, system: System, data: Data, world: World) -> Pictures:
    """The pictures of a recipe as its batches hold them: views, or with `data.feature_cache` tower features.

    Raises RunError where features are to be kept, but the recipe trains the tower.
    """
    settings, load = recipe.data, picture_loader(system.preprocess)
    if settings.picture_cache is not None:
        load = cached_pictures(load, settings.picture_cache, _about(system))
    workers = settings.workers
    if workers is None:
        workers = usual_workers(_cores(), world.here) if _has_pictures(data) else 0
    if settings.feature_cache is not None:
        require_still_tower(system.model)
        load = _cached_features(system, load, settings.feature_cache)
        workers = 0  # to read a few kilobytes is cheaper than to send them, and the tower is here
    return Pictures(load, workers, settings.pictures_in_memory)


def _cores() -> int:
    """Those that this process may use; a scheduler may have given it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_still_tower(model: MultimodalLM) -> None:
    """Raises RunError where the active adapter trains something in the tower: features are not constant."""
    for name in model.adapters.trainable_parameters():
        if name.startswith("tower.") or model.part_of(name) == "tower":
            raise RunError(
                f"data.feature_cache is set, but the recipe trains the tower ({name}): leave it out, or "
                "train nothing there"
            )


def _has_pictures(data: Data) -> bool:
    """Whether there are any; samples that are made when they are asked for may have some."""
    return not isinstance(data.train, tuple) or any(tokens.images for tokens in data.held)


def _about(system: System, *, features: bool = False) -> str:
    """What decides the views of a picture, or its features."""
    identity, names = system.model.adapters.identity, OF_VIEWS + (OF_FEATURES if features else ())
    told = {
        "preprocess": identity["preprocess"],
        "pillow": PIL.__version__,  # its resizing may round otherwise in another version
        **{name: getattr(system.settings, name) for name in names},
        **({"tower_digest": identity["tower_digest"]} if features else {}),
    }
    return json.dumps(told, sort_keys=True, default=str)


def _cached_features(system: System, load: LoadPicture, folder: Path) -> CachedPictures:
    """The tower's features of a picture, float[V, K, C], from the folder or the tower.

    The tower sees one picture at a time: then its features are the same bits whichever batch it is first in.
    """
    tower = system.model.tower

    @torch.no_grad()
    def seen(path: Path) -> Prepared:
        picture = load(path)
        device = next(tower.parameters()).device
        return Prepared(tower(picture.views.to(device, tower.dtype)).cpu(), picture.size)

    return CachedPictures(seen, folder, _about(system, features=True), _named, _unnamed)


def _named(features: Tensor) -> dict[str, Tensor]:
    return {"features": features}


def _unnamed(tensors: dict[str, Tensor]) -> Tensor:
    return tensors["features"]
