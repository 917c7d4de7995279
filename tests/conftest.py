"""A tiny random base on disk, and systems built from it, for every test that needs a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from mma import MMAConfig
from models.build import BaseSettings, System, build_new
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.export import write_hf
from models.tower import Features, Tower
from models.tower_spec import TowerSpec
from tests.small import World, make_world

TOKENIZER = Path(__file__).parent.parent / "assets/mini/decoder/tokenizer.model"
TOWER_MODEL = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
}


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Fills every parameter with random values, so that nothing is left at a special start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1.0 if parameter.ndim == 1 else 0.0))


def write_base(folder: Path, seed: int = 0, n_kv_heads: int = 2) -> BaseSettings:
    """A random decoder of width 32 and tower of width 32 in a folder."""
    config = DecoderConfig(32, 2, 4, n_kv_heads, 48, vocab_size=1700)
    decoder = Decoder(config)
    randomise(decoder, seed)
    write_hf(decoder, folder / "decoder", torch.float32)
    shutil.copy(TOKENIZER, folder / "decoder" / "tokenizer.model")
    spec = TowerSpec(TOWER_MODEL, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"})
    tower = Tower(spec, Features(every=2))
    randomise(tower, seed + 1)
    (folder / "tower").mkdir()
    content = {"model_cfg": spec.model, "preprocess_cfg": spec.preprocess}
    (folder / "tower" / "open_clip_config.json").write_text(json.dumps(content))
    tensors = {f"visual.{name}": x.contiguous() for name, x in tower.visual.state_dict().items()}
    save_file(tensors, folder / "tower" / "open_clip_model.safetensors")
    return BaseSettings(str(folder / "decoder"), tower=str(folder / "tower"), tower_every=2)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> BaseSettings:
    """Settings of a tiny random base on disk; do not write there."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tiny_system(tiny_base: BaseSettings) -> Callable[..., System]:
    """Builds the tiny base with an adapter; `trained=True` gives the adapter random values."""

    def build(trained: bool = True, **settings: object) -> System:
        config = replace(MMAConfig(dropout=0.0, temperature=1.0, projector_hidden=8), **settings)  # type: ignore[arg-type]
        system = build_new(tiny_base, config)
        if trained:
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for parameter in system.model.adapters.trainable_parameters().values():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return system

    return build


@pytest.fixture(scope="session")
def trained_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small world whose recipe was run once; do not write there."""
    root = tmp_path_factory.mktemp("small")
    (root / "base").mkdir()
    write_base(root / "base")
    world = make_world(root)
    assert train.main([str(world.recipe)]) == 0
    return world


@pytest.fixture
def world(trained_world: World, tmp_path: Path) -> World:
    """A copy of the small world, to be spoilt."""
    return trained_world.copy(tmp_path / "world")
