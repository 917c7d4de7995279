"""The frozen image encoder: an open_clip vision transformer and the class tokens it is read by.

The preprocessing belongs to the tower and comes with it. Knows nothing of decoders or adapters.

Shapes: P pictures, H and W pixels, V tower width, K class tokens (one after every n-th block).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from models.errors import ModelError
from models.weights import read_tensors

Preprocess = Callable[[Image.Image], Tensor]
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True)
class TowerSpec:
    """An open_clip model configuration and the preprocessing its weights were trained with."""

    model: dict[str, Any]
    preprocess: dict[str, Any]


def read_spec(name: str, weights: str = "") -> TowerSpec:
    """The spec of an open_clip architecture name, a JSON file or a folder with `open_clip_config.json`.

    A name says nothing of preprocessing; with a pretrained tag as weights it is the tag's, and so is the
    activation, which some tags have otherwise than their architecture.
    """
    path = Path(name)
    path = path / CONFIG_FILE if path.is_dir() else path
    if path.suffix == ".json":
        if not path.is_file():
            raise ModelError(f"tower: there is no file {path}; set base.tower to the tower's folder")
        try:
            content = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ModelError(f"tower: {path} is not JSON ({error}); fetch it again") from error
        model = content.get("model_cfg", content) if isinstance(content, dict) else {}
        for key in ("vision_cfg", "embed_dim"):
            if key not in model:
                raise ModelError(f"tower: {path} has no {key}; it must be an open_clip model configuration")
        spec = TowerSpec(model, content.get("preprocess_cfg", {}))
        for key, value in (("vision_cfg", model["vision_cfg"]), ("preprocess_cfg", spec.preprocess)):
            if not isinstance(value, dict):
                raise ModelError(
                    f"tower: {path} has {key} {value!r}, not a table of settings; fetch it again"
                )
        return spec
    config = open_clip.get_model_config(name)
    if config is None:
        raise ModelError(
            f"tower: {name!r} is neither a folder with {CONFIG_FILE} nor a model open_clip knows "
            "(open_clip.list_models() lists those)"
        )
    tag = open_clip.get_pretrained_cfg(name, weights)
    if "quick_gelu" in tag:
        config["quick_gelu"] = tag["quick_gelu"]
    names = {field.name for field in fields(PreprocessCfg)}
    return TowerSpec(config, {key: value for key, value in tag.items() if key in names})


def preprocess_settings(spec: TowerSpec) -> PreprocessCfg:
    """Size, mean, standard deviation and resizing of the tower's pictures, whole."""
    settings = {"size": spec.model["vision_cfg"].get("image_size", 224), **spec.preprocess}
    try:
        return PreprocessCfg(**settings)
    except TypeError as error:
        raise ModelError(f"tower: preprocess_cfg has an unknown setting ({error})") from error


def preprocess_of(spec: TowerSpec) -> Preprocess:
    """The tower's own way from a picture to float[3, H, W]."""
    try:
        transform: Preprocess = image_transform_v2(preprocess_settings(spec), is_train=False)
        transform(Image.new("RGB", (8, 8)))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"tower: preprocess_cfg cannot prepare a picture ({error}); correct it") from error
    return transform


class Tower(nn.Module):
    """A vision transformer read by the class token after every n-th block (LaVIN, arXiv 2305.15023)."""

    def __init__(self, spec: TowerSpec, every: int = 4) -> None:
        super().__init__()
        settings = spec.model["vision_cfg"]
        if "timm_model_name" in settings or isinstance(settings.get("layers"), list):
            raise ModelError("tower: only open_clip's own vision transformers have class tokens to read")
        try:
            vision = open_clip.model.CLIPVisionCfg(**settings)
        except TypeError as error:
            raise ModelError(f"tower: vision_cfg has an unknown setting ({error})") from error
        quick = bool(spec.model.get("quick_gelu", False))
        try:
            self.visual = open_clip.model._build_vision_tower(
                spec.model["embed_dim"], vision, quick_gelu=quick
            )
        except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise ModelError(f"tower: vision_cfg describes no tower ({reason}); correct it") from error
        self.width: int = self.visual.conv1.out_channels
        self.image_size: tuple[int, int] = self.visual.image_size
        if not 0 < every <= len(self.blocks):
            raise ModelError(
                f"tower: class tokens after every {every} blocks, but there are {len(self.blocks)}; "
                f"set base.tower_every to 1 to {len(self.blocks)}"
            )
        self.every = every

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks of the tower."""
        return self.visual.transformer.resblocks

    @property
    def tokens(self) -> int:
        """How many class tokens a picture gives."""
        return len(self.blocks) // self.every

    def forward(self, pictures: Tensor) -> Tensor:
        """float[P, 3, H, W] -> class tokens float[P, K, V]."""
        read = range(self.every - 1, len(self.blocks), self.every)
        found = self.visual.forward_intermediates(
            pictures, indices=list(read), intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        kept = [prefix[:, 0] for prefix in found["image_intermediates_prefix"]]
        return torch.stack(kept, dim=1)


def find_tower_weights(name: str, weights: str) -> Path:
    """The file of a tower's weights: a path, an open_clip pretrained tag, or the file in its folder."""
    if not weights:
        path = Path(name) / WEIGHTS_FILE
        if not path.is_file():
            raise ModelError(f"tower: {name!r} brings no weights; set base.tower_weights to their file")
        return path
    if (path := Path(weights)).is_file():
        return path
    if weights in open_clip.list_pretrained_tags_by_model(name):
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, weights)))
    raise ModelError(f"tower: {weights!r} is neither a file nor a pretrained tag of {name}")


def load_tower_weights(tower: Tower, path: Path) -> None:
    """Loads `visual.*` of an open_clip or OpenAI CLIP file (safetensors or restricted .pt), strictly."""
    tensors = read_tensors(path)
    visual = {name.removeprefix("visual."): x for name, x in tensors.items() if name.startswith("visual.")}
    expected = tower.visual.state_dict()
    missing, wrong = sorted(expected.keys() - visual.keys()), []
    for name in sorted(expected.keys() & visual.keys()):
        if visual[name].shape != expected[name].shape:
            wrong.append(f"{name} is {tuple(visual[name].shape)}, not {tuple(expected[name].shape)}")
    if missing or wrong or visual.keys() - expected.keys():
        extra = sorted(visual.keys() - expected.keys())
        raise ModelError(
            f"tower: {path} does not fit the tower: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}, {len(wrong)} misshapen {wrong[:3]}"
        )
    tower.visual.load_state_dict(visual, assign=True)
