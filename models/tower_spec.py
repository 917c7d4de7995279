"""What a tower is built from: its architecture, and how its pictures are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_clip.transform import PreprocessCfg

from models.errors import ModelError


@dataclass(frozen=True)
class TowerSpec:
    """The architecture of a tower and the preprocessing its weights were trained with.

    Args:
        model: An open_clip model configuration. Without `embed_dim` the tower ends with its last norm: no
            feature is read behind that.
        preprocess: Settings of open_clip's preprocessing; what is left out is as CLIP has it.
        gelu: Form of GELU in the blocks, `exact` or `tanh` (as in Hugging Face's SigLIP; timm's is exact);
            empty: as the model says.
        trunk: Settings of timm's SigLIP transformer, for a tower of a shape that has no name in timm.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    gelu: str = ""
    trunk: dict[str, Any] | None = None


def preprocess_settings(spec: TowerSpec) -> PreprocessCfg:
    """Size, mean, standard deviation and resizing of the tower's pictures, whole.

    Raises ModelError for an unknown setting, and for a size the tower does not see.
    """
    seen = spec.model["vision_cfg"].get("image_size", 224)
    try:
        settings = PreprocessCfg(**{"size": seen, **spec.preprocess})
    except TypeError as error:
        raise ModelError(f"tower: preprocess_cfg has an unknown setting ({error})") from error
    if _sides(settings.size) != _sides(seen):
        raise ModelError(
            f"tower: preprocess_cfg has size {settings.size}, but the tower sees {seen} pixels; "
            "correct one of them"
        )
    return settings


def _sides(size: object) -> tuple[object, ...]:
    """Height and width."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)
