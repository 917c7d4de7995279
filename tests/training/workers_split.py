"""One of two processes that share decoders: python -m tests.training.workers_split REQUEST (JSON)."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from mma import MMAConfig
from models.attention import PackedAttention
from models.build import BaseSettings, build_base
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.multimodal import MultimodalLM
from models.tensor_parallel import load_share, split_decoder, tensor_parallel
from models.weights import load_decoder
from tests.conftest import randomise
from tests.training.workers import gloo_threads
from tests.training.workers_sharded import CPU, batch
from training.parallel import joined

PHI = DecoderConfig(32, 2, 4, 4, 48, 64, norm="layer", gated=False, activation="gelu_tanh", parallel=True,
    attention_bias=True, mlp_bias=True, head_bias=True, rotary_dim=4)  # fmt: skip
TIED = DecoderConfig(32, 2, 4, 2, 48, 64, tied=True, qkv_bias=True)


def logits(decoder: Decoder) -> Tensor:
    ids = torch.randint(0, 64, (20,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return decoder.head(decoder(decoder.embed(ids), torch.arange(20), PackedAttention([12, 8])))


def far(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def built(config: DecoderConfig) -> Decoder:
    decoder = Decoder(config)
    randomise(decoder, 3)
    return decoder


def learned(decoder: Decoder, tower: nn.Module, layout: object) -> dict[str, Tensor]:
    """Loss and gradients of an adapter on a decoder, for a batch of text and a picture."""
    model = MultimodalLM(decoder, tower, layout)
    model.adapters.add_adapter("default", MMAConfig(dropout=0.0, projector_hidden=8))
    trained = model.adapters.trainable_parameters()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    loss = model.loss(batch("split", True, False))
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in trained.items() if p.grad is not None}}


def refused(config: DecoderConfig, change: object = None) -> str:
    decoder = built(config)
    if change == "quantised":
        decoder.blocks[0].attn.q_proj = type("Linear4bit", (nn.Linear,), {})(32, 32, bias=False)
    try:
        split_decoder(decoder)
    except ModelError as error:
        return str(error)
    return ""


def found(settings: dict[str, object]) -> dict[str, object]:
    """How far split decoders are from whole ones, and what is refused."""
    result: dict[str, object] = {}
    for name, config in (("phi", PHI), ("tied", TIED)):
        whole = built(config)
        result[name] = far(logits(split_decoder(copy.deepcopy(whole))), logits(whole))
    for name in settings["meta"]:
        share = load_share(Path(name), dtype=torch.float32)
        whole = load_decoder(Path(name), dtype=torch.float32)
        result[Path(name).name] = far(logits(share), logits(whole))
        held = sum(p.numel() for p in share.blocks.parameters())
        result["share of the blocks"] = held / sum(p.numel() for p in whole.blocks.parameters())
        result["embedding"] = [*result.get("embedding", []), type(share.embed).__name__]
    base = BaseSettings(**settings["base"])
    model = build_base(base).model
    wanted = learned(model.decoder, model.tower, model.layout)
    model = build_base(base).model
    share = load_share(Path(base.decoder), dtype=torch.float32)
    got = learned(share, model.tower, model.layout)
    assert got.keys() == wanted.keys()
    result["gradients"] = max(far(got[name], wanted[name]) for name in wanted if wanted[name].any())
    result["compared"] = sum(bool(tensor.any()) for tensor in wanted.values())
    result["heads"] = refused(DecoderConfig(24, 1, 3, 3, 48, 64))
    result["quantised"] = refused(DecoderConfig(32, 1, 4, 2, 48, 64), "quantised")
    return result


def main(request: str) -> int:
    settings = json.loads(request)
    torch.set_num_threads(1)
    with joined(CPU) as world:
        with tensor_parallel(2):
            result = found(settings)
        try:
            tensor_parallel(3).__enter__()
        except ModelError as error:
            result["groups"] = str(error)
        result["rank"] = world.rank
    result["threads"] = gloo_threads()
    (Path(settings["folder"]) / f"{world.rank}.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
