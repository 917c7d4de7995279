"""Whole LLaVA models: what their folders say of tower, pictures and projector, and the projector's tensors.

LLaVA (arXiv 2304.08485, 2310.03744) and LLaVA-NeXT, as Hugging Face writes them or as they were published.
The decoder is read by `hf_folder.py`, the tower by `hf_tower.py`.

Shapes: D decoder width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.errors import ModelError
from models.hf_config import LLAVA
from models.hf_folder import TensorFolder
from models.hf_tower import read_hf_tower
from models.tensor_files import read_json, read_tensors
from models.tower_files import read_spec
from models.tower_spec import preprocess_settings
from models.views import parse_grids

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # where config.json names none
# Projector and newline in files: of Hugging Face, and of LLaVA itself.
LINEAR = re.compile(r"(?:model\.)?multi_modal_projector\.linear_([12])\.(weight|bias)")
LAYER = re.compile(r"(?:model\.)?mm_projector\.(?:(\d)\.)?(weight|bias)")
NEWLINE = re.compile(r"(?:model\.)?image_newline")


@dataclass(frozen=True)
class Joined:
    """How a LLaVA joins its parts."""

    settings: dict[str, Any]  # of the base, by their names in `BaseSettings`
    projector: str  # its kind


def read_llava(folder: Path, tower: str = "") -> Joined:
    """What a folder says of its parts; the tower is named where the folder does not describe it.

    Raises ModelError when the folder is of another model, or joins its parts in a way there is not here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"llava: there is no file {path}; name the folder of a LLaVA model")
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in LLAVA:
        raise ModelError(f"llava: {path} describes a {kind!r} model; known are {', '.join(LLAVA)}")
    if isinstance(vision := config.get("vision_config"), dict):
        read, projector = _of_hugging_face(folder, config, vision), "mlp2x_gelu"
    else:
        read, projector = _as_published(path, config, tower), config.get("mm_projector_type", "linear")
        if any(re.search(r"(^|\.)vision_tower\.", name) for name in TensorFolder(folder).files):
            read["tower_weights"] = str(folder)  # tuned with the rest
    return Joined({"decoder": str(folder), "tower_features": "patches", **read}, projector)


def _of_hugging_face(folder: Path, config: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / "config.json"
    # A tower without a class token has nothing to leave out; `default` drops its first patch.
    wanted = "full" if vision.get("model_type") == "siglip_vision_model" else "default"
    for name, value, usual in (
        ("vision_feature_select_strategy", wanted, "default"),
        ("projector_hidden_act", "gelu", "gelu"),
        ("multimodal_projector_bias", True, True),
    ):
        _check(path, config, name, usual, (value,))
    square = "square" if read_hf_tower(folder).preprocess["resize_mode"] == "shortest" else "own"
    shown = {"pictures": "pad" if _pads(folder) else square}
    if config["model_type"] == "llava_next":
        points = config.get("image_grid_pinpoints") or PINPOINTS
        shown = {"pictures": "anyres", "grids": _grids(path, points, vision.get("image_size", 224))}
    return {"tower": str(folder), "tower_layer": _layer(path, config, vision), **shown}


def _as_published(path: Path, config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    if not tower:
        raise ModelError(
            f"llava: {path} says its tower is {config.get('mm_vision_tower')}, but not how that is built; "
            "name the tower's folder too"
        )
    _check(path, config, "mm_vision_select_feature", "patch", ("patch",))
    shape = _check(path, config, "image_aspect_ratio", "square", (None, "square", "pad", "anyres"))
    shown = {"pictures": shape or "square"}
    if shape == "anyres":
        _check(path, config, "mm_patch_merge_type", "flat", ("spatial_unpad",))
        side = preprocess_settings(read_spec(tower)).size
        points = config.get("image_grid_pinpoints", PINPOINTS)
        if isinstance(points, str):
            points = [[down * _side(side), across * _side(side)] for down, across in parse_grids(points)]
        shown["grids"] = _grids(path, points, _side(side), width_first=True)
    return {"tower": tower, "tower_layer": config.get("mm_vision_select_layer", -2), **shown}


def _check(path: Path, config: Mapping[str, Any], name: str, usual: Any, known: Sequence[Any]) -> Any:
    """A setting, which is one of the known."""
    if (said := config.get(name, usual)) not in known:
        raise ModelError(
            f"llava: {path} has {name} {said!r}; what can be read here is {' or '.join(map(repr, known))}"
        )
    return said


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _layer(path: Path, config: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    """Which layer is read, counted from the end; the file may count hidden states from the start."""
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ModelError(f"llava: {path} has vision_feature_layer {layer!r}; only one layer can be read")
    return layer if layer < 0 else layer - vision.get("num_hidden_layers", 12) - 1


def _grids(path: Path, points: Any, side: int, width_first: bool = False) -> str:
    """Rows x columns of tiles for every height and width that the file names, in their order."""
    try:
        pairs = [(wide, high) if width_first else (high, wide) for high, wide in points]
        return ",".join(f"{_tiles(high, side)}x{_tiles(wide, side)}" for high, wide in pairs)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"llava: {path} has image_grid_pinpoints {points!r}; they must be pairs of multiples of {side}"
        ) from error


def _tiles(length: int, side: int) -> int:
    if length % side:
        raise ValueError
    return length // side


def _pads(folder: Path) -> bool:
    """Whether pictures are padded to a square before anything else."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            return bool(content.get("image_processor", content).get("do_pad", False))
    return False


def fill_parts(parts: Mapping[str, nn.Module], path: Path) -> None:
    """Loads the `projector`, and the `newline` where there is one, strictly.

    The path is a folder of Hugging Face, or a file (LLaVA's `mm_projector.bin`); what it holds beside them
    does not matter. Raises ModelError when a tensor is missing, unexpected or misshapen.
    """
    found = _tensors(path)
    wanted = {f"{part}.{name}": x for part, net in parts.items() for name, x in net.state_dict().items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    wrong = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if missing or extra or wrong:
        raise ModelError(
            f"llava: {path} does not fit the projector: missing {missing}, unexpected {extra}, "
            f"misshapen {wrong}"
        )
    for part, net in parts.items():
        net.load_state_dict({name: found[f"{part}.{name}"] for name in net.state_dict()})


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of projector and newline by their names here."""
    if path.is_dir():
        folder = TensorFolder(path)
        return {ours: _shaped(ours, folder.read(name)) for name in folder.files if (ours := _name(name))}
    held = read_tensors(path)
    return {ours: _shaped(ours, tensor) for name, tensor in held.items() if (ours := _name(name))}


def _name(name: str) -> str:
    """What a tensor of a file is called here; empty when it is of neither."""
    if found := LINEAR.fullmatch(name):
        return f"projector.{2 * (int(found[1]) - 1)}.{found[2]}"
    if found := LAYER.fullmatch(name):
        return f"projector.{found[1] or 0}.{found[2]}"
    return "newline.weight" if NEWLINE.fullmatch(name) else ""


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """float[D] -> float[1, D] for the newline, which is an embedding here."""
    return tensor[None] if name == "newline.weight" else tensor
