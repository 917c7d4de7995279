"""One process of runs on a real tiny base, whole and sharded: python -m tests.training.workers_sharded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from data.packing import PackedBatch, collate
from mma import MMAConfig
from models.build import BaseSettings, System, build_new
from tests.models.test_multimodal import picture, sample
from tests.training.toy import toy_optim
from training.batches import LazyBatches
from training.loop import train
from training.parallel import World, joined
from training.settings import RunSettings
from training.sharding import shard_base
from training.task import Task

CPU = torch.device("cpu")
STEPS = 4
# What is trained: everything, or the projector alone, which a batch of text has no gradient for.
RATES = {"all": {}, "projector": {"adapters": 0.0}}


def batch(name: str, *seen: bool) -> PackedBatch:
    return collate([sample(f"{name}-{i}", 5 + i, seen=value) for i, value in enumerate(seen)], picture)


def batches_of_step(step: int) -> LazyBatches:
    """Of two processes the second has text only, and one micro-batch fewer."""
    contents = {"pictures": (True, True), "text": (False, False), "both": (False, True)}
    return LazyBatches([lambda n=name, s=seen: batch(f"{n}{step}", *s) for name, seen in contents.items()])


def make_task(system: System, world: World) -> Task:
    model = system.model
    held_out = batch("validation", True, False)
    return Task(
        model=model,
        trainables=model.adapters.trainable_parameters(),
        batches_of_step=batches_of_step,
        steps_per_epoch=STEPS,
        save_adapter=model.adapters.save_pretrained,
        validate=lambda: {"loss": model.loss(held_out).item()},
        device=CPU,
        part_of=model.part_of,
        world=world,
    )


def shard(system: System, world: World) -> dict[str, int]:
    """Shards the decoder; tells how many numbers its blocks have and how many of them lie here."""
    adapters, decoder = system.model.adapters, system.model.decoder
    trained = adapters.trainable_parameters().values()
    replaced = shard_base(decoder, decoder.blocks, trained, world=world, device=CPU)
    adapters.base.update({name: replaced.get(old, old) for name, old in adapters.base.items()})
    pieces = [p for p in decoder.blocks.parameters() if isinstance(p, DTensor)]
    assert len(pieces) == len(replaced) == sum(n.startswith("decoder.blocks") for n in adapters.base)
    return {"whole": sum(p.numel() for p in pieces), "here": sum(p.to_local().numel() for p in pieces)}


def main(request: str) -> int:
    settings = json.loads(request)
    base, folder = BaseSettings(**settings["base"]), Path(settings["folder"])
    torch.set_num_threads(1)
    with joined(CPU) as world:
        for what, parts in RATES.items():
            for sharded in (False, True):
                torch.manual_seed(0)
                system = build_new(base, MMAConfig(dropout=0.1, projector_hidden=8))
                facts = shard(system, world) if sharded else {}
                run = RunSettings(
                    folder / f"{what}-{'sharded' if sharded else 'whole'}",
                    save_every=2,
                    validate_every=2,
                    shard=sharded,
                )
                optim = toy_optim(max_steps=STEPS, warmup=0.0, ema=0.9, parts=parts)
                train(make_task(system, world), optim, run)
                if sharded:
                    (folder / f"{what}-{world.rank}.json").write_text(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
