"""Blocks whose weights are held away compute what they compute here, and there is room for two of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from data.packing import collate
from data.pictures import Prepared
from data.sample import Tokens
from finetune.plan import plan
from finetune.recipe import reader
from mma import LoraConfig, MMAConfig, PartsConfig
from mma.sites import device_of
from models.build import BaseSettings, System, build_base, load
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.export import write_hf
from models.generate import Sampling, generate
from models.offload import AwayLinear, Offload, held_away
from models.weights import load_decoder
from tests.conftest import TOKENIZER, randomise
from training.errors import RunError
from training.settings import RunSettings

BLOCKS = 5
CPU = torch.device("cpu")
ADAPTERS = (MMAConfig(dropout=0.0, temperature=1.0, projector_hidden=8), LoraConfig(r=4, projector_hidden=8))
BIASED = DecoderConfig(
    32, 3, 4, 4, 48, 60, attention_bias=True, mlp_bias=True, head_bias=True, gated=False, norm="layer",
    activation="gelu_tanh", parallel=True, rotary_dim=4, family="phi",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory) -> BaseSettings:
    """The tiny base with a deeper decoder."""
    folder = tmp_path_factory.mktemp("deep")
    decoder = Decoder(DecoderConfig(32, BLOCKS, 4, 2, 48, vocab_size=1700))
    randomise(decoder, 5)
    write_hf(decoder, folder, torch.float32)
    shutil.copy(TOKENIZER, folder)
    return replace(tiny_base, decoder=str(folder))


def batch():
    """A sample with a picture and one without."""
    ids = (5, 0, 0, 7, 9, 11)
    seen = Tokens("a", ids, (False,) * 4 + (True,) * 2, (1, 2), "image", (Path("a.png"),), (2,))
    read = Tokens("b", (5, 6, 8), (False, True, True), (), "text")
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return collate([seen, read], lambda _: Prepared(pixels, (16, 16)))


def tuned(base: BaseSettings, config, offload: int, device: str = "cpu") -> System:
    """A base with an adapter of random values."""
    system = build_base(base, device, offload)
    system.model.adapters.add_adapter("default", config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return system


def away_in(module: nn.Module) -> list[AwayLinear]:
    return [layer for layer in module.modules() if isinstance(layer, AwayLinear)]


def step(system: System) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a step."""
    trained = system.model.adapters.trainable_parameters()
    for parameter in trained.values():
        parameter.grad = None
    loss = system.model.train().loss(batch().to(system.model.device))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trained.items() if p.grad is not None}


def same(found, wanted) -> bool:
    (loss, gradients), (other, others) = found, wanted
    return (
        torch.equal(loss, other)
        and gradients.keys() == others.keys()
        and all(torch.equal(gradients[name], others[name]) for name in gradients)
    )


@pytest.mark.parametrize("config", ADAPTERS, ids=["mma", "lora"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("count", [1, 2, 3, BLOCKS])
def test_loss_and_gradients_are_the_same_in_every_bit(base, config, checkpointing, count):
    plain, ours = (tuned(base, config, offload) for offload in (0, count))
    plain.model.checkpointing = ours.model.checkpointing = checkpointing
    assert len(away_in(ours.model)) == 7 * count and not away_in(plain.model)
    for _ in range(2):
        assert same(step(ours), step(plain))


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_each_block_comes_once_each_way_and_only_two_are_here(base, checkpointing):
    system = tuned(base, ADAPTERS[0], BLOCKS)
    system.model.checkpointing = checkpointing
    offload = away_in(system.model)[0]._offload
    rooms = {room.data_ptr() for room in offload._rooms}
    block = sum(layer.weight.numel() for layer in away_in(system.model.decoder.blocks[0]))
    assert len(rooms) == 2 and all(room.numel() == block for room in offload._rooms)
    # The two blocks at each turn of the way stay.
    for fetched in (2 * BLOCKS - 2, 4 * BLOCKS - 6, 6 * BLOCKS - 10):
        step(system)
        assert offload.fetched == fetched
    assert {room.data_ptr() for room in offload._rooms} == rooms


def test_nothing_that_is_kept_for_the_gradient_lies_in_the_rooms(base):
    system, kept = tuned(base, ADAPTERS[0], BLOCKS), set()
    offload = away_in(system.model)[0]._offload

    def keep(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        system.model.train().loss(batch())
    away = {flat.untyped_storage().data_ptr() for flat in (*offload._rooms, *offload._held)}
    assert kept and not kept & away


def test_the_next_block_is_here_before_it_is_asked_for():
    offload = Offload(CPU)
    for index in range(4):
        place, parts = offload.add([torch.full((2, 3), float(index)), torch.full((3, 2), index + 0.5)])
        assert place == index and all(offload.holds(place, part) for part in parts)
    assert not offload.holds(0, torch.ones(2, 3)) and not offload.holds(0, parts[0])
    way = [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 0, 1]  # training, then two passes without a gradient
    for index, following in zip(way, [*way[1:], None], strict=True):
        for start, shape, value in ((0, (2, 3), index), (6, (3, 2), index + 0.5)):
            found = offload.weight(index, start, torch.Size(shape))
            assert torch.equal(found, torch.full(shape, float(value)))
        assert following in (None, index) or following in offload._here or (index, following) == (3, 0)


def test_answers_digests_and_files_are_those_of_the_whole_base(base, tmp_path):
    plain, ours = (tuned(base, ADAPTERS[0], offload) for offload in (0, 3))
    assert ours.digests == plain.digests
    sampling = Sampling(max_new_tokens=6)
    with torch.inference_mode():
        assert generate(ours, batch(), sampling) == generate(plain, batch(), sampling)
    assert same(step(ours), step(plain))  # also after inference
    ours.model.adapters.save_pretrained(tmp_path / "a")
    again = load(tmp_path / "a")
    assert not away_in(again.model)
    assert torch.equal(again.model.eval()(batch()), plain.model.eval()(batch()))


def test_biases_and_parallel_blocks_too(tmp_path):
    decoder = Decoder(BIASED)
    randomise(decoder, 3)
    write_hf(decoder, tmp_path, torch.float32)
    plain, ours = (
        load_decoder(tmp_path, dtype=torch.bfloat16, offload=count).requires_grad_(False) for count in (0, 3)
    )
    assert len(away_in(ours)) == 3 * 6
    for mine, other in zip(ours.blocks, plain.blocks, strict=True):
        x = torch.randn(3, 32).bfloat16()
        assert torch.equal(mine.mlp(x), other.mlp(x))


def test_the_blocks_are_spread_evenly():
    assert held_away(0, 8) == ()
    assert held_away(2, 8) == (0, 4)
    assert held_away(3, 8) == (0, 2, 5)
    assert held_away(8, 8) == tuple(range(8))


def test_an_adapter_is_placed_by_what_is_on_the_device(base):
    layer = away_in(build_base(base, offload=1).model)[0]
    assert device_of(layer, torch.device("meta")) == torch.device("meta")
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_what_cannot_be_is_refused(base, tmp_path):
    with pytest.raises(ModelError, match=r"offload: the decoder has 5 blocks, not 6; lower run\.offload"):
        build_base(base, offload=BLOCKS + 1)
    with pytest.raises(ModelError, match=r"only full weights are held away; turn off base\.quantise or run"):
        build_base(replace(base, quantise="fp8"), offload=1)
    with pytest.raises(RunError, match=r"run\.offload is -1: it must be 0 or more"):
        RunSettings(tmp_path, offload=-1)
    for other in ("shard", "split", "compile"):
        with pytest.raises(RunError, match=r"run\.offload is set with run\.shard, .* turn one off"):
            RunSettings(tmp_path, offload=1, **{other: True})


def test_what_is_tuned_in_full_merged_or_moved_cannot_be_held_away(base):
    message = r"can be neither tuned in full nor merged nor moved; set run\.offload to 0"
    with pytest.raises(ModelError, match=message):
        step(tuned(base, PartsConfig(projector_hidden=8, tuned=("decoder",)), 1))
    merged = tuned(base, ADAPTERS[1], 1)
    merged.model.adapters.merge_adapter()
    with pytest.raises(ModelError, match=message):
        merged.model.eval()(batch())


def test_a_run_gives_the_same_adapter(world):
    arguments = [str(world.recipe), "--run.folder", str(world.root / "other"), "--run.offload", "2"]
    assert train.main(arguments) == 0
    file = "adapter/adapter_model.safetensors"
    assert (world.root / "other" / file).read_bytes() == (world.run / file).read_bytes()


@pytest.mark.parametrize(("count", "there"), [(1, 1), (4, 2)])
def test_the_plan_counts_what_the_device_holds(base, count, there):
    values = {
        "method": "parts",
        "run": {"folder": "a"},
        "data": {"root": "a"},
        "adapter": {"projector": "linear"},
    }
    recipe = replace(reader("parts").read_values(values, "a"), base=base)
    less = replace(recipe, run=replace(recipe.run, offload=count))
    whole, held = (plan(each).lines[0] for each in (recipe, less))
    block = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    assert whole.bytes - held.bytes == (count - there) * block and whole.parameters == held.parameters


@pytest.mark.gpu
def test_a_gpu_holds_two_blocks_and_gives_the_same(base):
    plain, ours = (tuned(base, ADAPTERS[1], offload, "cuda") for offload in (0, BLOCKS))
    for _ in range(3):
        assert same(step(ours), step(plain))
    layers = away_in(ours.model)
    assert all(layer.weight.is_pinned() and not layer.weight.is_cuda for layer in layers)
    assert all(p.is_cuda for p in ours.model.adapters.trainable_parameters().values())
    sampling = Sampling(max_new_tokens=6)
    assert generate(ours, batch(), sampling) == generate(plain, batch(), sampling)
