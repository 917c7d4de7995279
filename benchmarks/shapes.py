"""The shapes that training is measured at, and models of random weights in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.measure import CPU_SMALL, TINY_TOWER
from mma import MMAConfig
from models.build import BaseSettings, layout_of
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.multimodal import MultimodalLM
from models.named import named
from models.rope import Rotary
from models.tower import Features, Tower
from models.tower_files import read_spec
from models.tower_spec import TowerSpec


@dataclass(frozen=True)
class TrainShape:
    """A decoder and a tower, and how much of them is measured.

    Args:
        every: The tower's class token is read after so many blocks, six times in all.
        budget: Tokens that go through the model at once.
        longest: Longer samples are cut.
        samples: Samples of a step by prompt format.
    """

    decoder: DecoderConfig
    tower: TowerSpec
    every: int
    budget: int
    samples: Mapping[str, int]
    rounds: int
    on: str = "cpu"
    dtype: torch.dtype = torch.float32
    longest: int = 2048

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return torch.device(self.on)


SHAPES = {
    "cpu-small": TrainShape(
        CPU_SMALL, read_spec("ViT-B-32"), 2, 2048, {"QCM-ALE": 16, "QCM-A": 16}, rounds=3
    ),
    "7b": TrainShape(
        named("llama-7b"),
        read_spec("ViT-L-14"),
        4,
        4096,
        {"QCM-ALE": 32, "QCM-A": 64},
        rounds=5,
        on="cuda",
        dtype=torch.bfloat16,
    ),
    "tiny": TrainShape(
        DecoderConfig(64, 2, 4, 4, 96, vocab_size=500),
        TowerSpec({**TINY_TOWER, "vision_cfg": {**TINY_TOWER["vision_cfg"], "layers": 6}}, {}),
        1,
        512,
        {"QCM-ALE": 4, "QCM-A": 4},
        rounds=2,
        longest=128,
    ),
}


MEASURED = ("cpu-small", "7b")  # `tiny` only shows that a benchmark runs


def training_model(shape: TrainShape, device: torch.device) -> MultimodalLM:
    """A system of random weights with a fresh adapter of LaVIN's settings; on `meta` without memory."""
    torch.manual_seed(0)
    config = shape.decoder
    with torch.device("meta"):
        decoder, seen = Decoder(config).to(shape.dtype), Tower(shape.tower, Features(every=shape.every))
    for part in (decoder, seen.to(shape.dtype)):
        part.to_empty(device=device)
        for parameter in part.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            else:
                torch.nn.init.ones_(parameter)
    decoder.rotary = Rotary(config.turning, config.rope_theta, config.rope_scaling).to(device)
    model = MultimodalLM(decoder, seen, layout_of(BaseSettings(), shape.tower, seen)).eval()
    with device:
        model.adapters.add_adapter("default", MMAConfig())
    return model
