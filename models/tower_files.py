"""Where a tower comes from: a name open_clip knows, or a folder of open_clip or Hugging Face."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import open_clip
from open_clip.transform import PreprocessCfg
from torch import Tensor

from models.errors import ModelError
from models.hf_tower import HF_CONFIG, hf_tensors, open_clip_names, read_hf_tower
from models.tensor_files import read_tensors
from models.tower_spec import TowerSpec

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def read_spec(name: str, weights: str = "") -> TowerSpec:
    """The spec of an open_clip architecture name, a JSON file, or a folder of open_clip or Hugging Face.

    A name says nothing of preprocessing; with a pretrained tag as weights it is the tag's, and so is the
    activation, which some tags have otherwise than their architecture. Raises ModelError when nothing of
    this is there, or it describes no vision transformer.
    """
    path = Path(name)
    if path.is_dir():
        if (path / CONFIG_FILE).is_file():
            return _read_json(path / CONFIG_FILE)
        if (path / HF_CONFIG).is_file():
            return read_hf_tower(path)
        raise ModelError(
            f"tower: {path} has neither {CONFIG_FILE} nor {HF_CONFIG} (Hugging Face); "
            "set base.tower to the tower's folder"
        )
    if path.suffix == ".json":
        return _read_json(path)
    config = open_clip.get_model_config(name)
    if config is None:
        raise ModelError(
            f"tower: {name!r} is neither a folder with {CONFIG_FILE} or {HF_CONFIG} nor a model open_clip "
            "knows (open_clip.list_models() lists those)"
        )
    tag = open_clip.get_pretrained_cfg(name, weights)
    if "quick_gelu" in tag:
        config["quick_gelu"] = tag["quick_gelu"]
    names = {field.name for field in fields(PreprocessCfg)}
    return TowerSpec(config, {key: value for key, value in tag.items() if key in names})


def _read_json(path: Path) -> TowerSpec:
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
            raise ModelError(f"tower: {path} has {key} {value!r}, not a table of settings; fetch it again")
    return spec


def find_tower_weights(name: str, weights: str) -> Path:
    """Where a tower's weights are: a file, a folder, an open_clip pretrained tag, or its own folder.

    For a folder of Hugging Face, whose weights may be in several files, it is the folder itself.
    """
    if not weights:
        folder = Path(name)
        if (folder / WEIGHTS_FILE).is_file():
            return folder / WEIGHTS_FILE
        if (folder / HF_CONFIG).is_file() and not (folder / CONFIG_FILE).is_file():
            return folder
        raise ModelError(f"tower: {name!r} brings no weights; set base.tower_weights to their file")
    path = Path(weights)
    if path.is_file() or (path / HF_CONFIG).is_file():
        return path
    if weights in open_clip.list_pretrained_tags_by_model(name):
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, weights)))
    raise ModelError(f"tower: {weights!r} is neither a file nor a pretrained tag of {name}")


def tower_tensors(path: Path, timm: bool) -> dict[str, Tensor]:
    """The tower's tensors in a file or a Hugging Face folder, by open_clip's names.

    Those are others where open_clip's transformer is timm's. What a file holds beside a tower is left out.
    """
    if path.is_dir():
        return open_clip_names(hf_tensors(path), timm)
    tensors = read_tensors(path)
    visual = {name.removeprefix("visual."): x for name, x in tensors.items() if name.startswith("visual.")}
    return visual or open_clip_names(tensors, timm)
