"""A random model with a two-block decoder and tower, and a tokenizer of single characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from data.picture_workers import Pictures
from data.pictures import slot_counter
from data.template import make_template
from eval.runner import Asker
from mma import MMAConfig
from models.build import BaseSettings, System, layout_of
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.multimodal import MultimodalLM
from models.tower import Features, Tower
from models.tower_spec import TowerSpec


class Characters:
    """Every character up to 255 is a token."""

    bos_id, eos_id = 256, 257

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return [min(ord(character), 255) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids if token < 256)


def tiny_system(max_positions: int = 400) -> System:
    """The same weights on every call; the adapter is as if it had been trained a little."""
    torch.manual_seed(5)
    decoder = Decoder(DecoderConfig(32, 2, 4, 2, 48, 258, max_positions=max_positions))
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    spec = TowerSpec({"embed_dim": 16, "vision_cfg": vision}, {})
    tower = Tower(spec, Features(every=1))
    model = MultimodalLM(decoder, tower, layout_of(BaseSettings(), spec, tower))
    identity: dict[str, Any] = {f"{name}_digest": name for name in ("base", "tower", "tokenizer")}
    model.adapters.identity = {**identity, "base": {}}
    model.adapters.add_adapter("default", MMAConfig(r=4, projector_hidden=8))
    with torch.no_grad():
        for parameter in model.adapters.trainable_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer: Any = Characters()
    return System(model.eval(), tokenizer, BaseSettings())


def asker(system: System, load_picture: Any, **settings: Any) -> Asker:
    """Puts questions to it without showing progress."""
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    return Asker(system, template, Pictures(load_picture), progress=False, **settings)
