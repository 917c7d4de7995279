"""Which base a command works on: the one an adapter folder names, with what the command line says otherwise.

Settings as plain values; imports no model.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mma.config import brief
from mma.errors import AdapterError

# Settings of models.build.BaseSettings beside the decoder, and their meaning.
OPTIONS = {
    "tokenizer": "file of the tokenizer (default: the decoder's)",
    "tower": "open_clip name, JSON file or folder of the tower",
    "tower_weights": "file of the tower's weights, or an open_clip tag",
    "tower_every": "tower blocks between two class tokens",
    "precision": "fp32 or bf16",
    "architecture": "name of the decoder's architecture",
    "delta": "folder of a delta to add to the decoder",
    "quantise": "none, int8, nf4 or fp8",
    "tower_features": "class or patches",
    "tower_layer": "layer that patches are read of",
    "tower_gelu": "form of the tower's GELU: exact or tanh",
    "pictures": "own, square, pad, squash or anyres",
    "grids": "grids of anyres",
}

NUMBERS = ("tower_every", "tower_layer")  # whole numbers; the others are texts


def add_base_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Options that name a base, and what holds without them."""
    group = parser.add_argument_group("base", default)
    group.add_argument(
        "--base", metavar="DIR", help="folder of the decoder, or one with decoder/ and tower/ in it"
    )
    for name, meaning in OPTIONS.items():
        kind = int if name in NUMBERS else str
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="VALUE", help=meaning)


def with_options(message: str) -> str:
    """A message about settings of a base, with the options that set them here."""
    names = {"decoder": "--base", **{name: f"--{name.replace('_', '-')}" for name in OPTIONS}}
    return re.sub(r"(?<![\w./])base\.(\w+)", lambda match: names.get(match[1], match[0]), message)


def named(options: argparse.Namespace) -> bool:
    """Whether the command line says anything of a base."""
    return any(getattr(options, name) is not None for name in ("base", *OPTIONS))


def base_settings(options: argparse.Namespace, recorded: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of the base; raises AdapterError when neither folder nor command line names one."""
    if unknown := [key for key in recorded if key not in ("decoder", *OPTIONS)]:
        raise AdapterError(
            f"adapter: {folder} names its base by the unknown setting {brief(unknown[0])}; it was made by "
            "another program, or a newer version"
        )
    settings = dict(recorded)
    if options.base is not None:
        given = Path(options.base)
        both = (given / "decoder").is_dir()
        settings["decoder"] = str(given / "decoder" if both else given)
        if both and (given / "tower").is_dir():
            settings |= {"tower": str(given / "tower"), "tower_weights": ""}
        # A tokenizer belongs to its decoder; another one is taken only where the decoder has none.
        if (Path(settings["decoder"]) / "tokenizer.model").is_file():
            settings["tokenizer"] = ""
    if not settings.get("decoder"):
        raise AdapterError(f"adapter: {folder} does not say which base it was made for; name one with --base")
    if options.tower is not None:
        settings["tower_weights"] = ""
    return settings | {name: x for name in OPTIONS if (x := getattr(options, name)) is not None}
