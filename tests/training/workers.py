"""One process of a toy run, started as torchrun would: python -m tests.training.workers REQUEST (JSON)."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.training.toy import ToyBatch, batch_of, step_indices, toy_optim, toy_task
from training.batches import LazyBatches
from training.errors import RunError
from training.loop import train
from training.parallel import joined
from training.settings import RunSettings


def lazily(step: int) -> LazyBatches:
    """A step in three micro-batches: two processes cannot share them evenly, and of four one has none."""
    indices = step_indices(step)

    def maker(part: list[int]) -> ToyBatch:
        return batch_of(part)

    parts = (indices[:2], indices[2:3], indices[3:])
    return LazyBatches([lambda part=part: maker(part) for part in parts])


def main(request: str) -> int:
    """Trains to the end; a RunError is told in one line."""
    settings = json.loads(request)
    delay = settings.pop("delay", 0.0)
    device = torch.device("cpu")
    torch.set_num_threads(1)
    try:
        with joined(device) as world:
            task = toy_task(dropout=0.3, batches=lazily, delay=delay)
            # Another start in every process but the first: they must take over its tensors.
            if world.rank:
                with torch.no_grad():
                    task.trainables["layer.bias"].add_(1)
            if settings.get("stopped_in_validation") and world.first:
                task = replace(task, validate=interrupted)
            run = RunSettings(Path(settings["folder"]), save_every=3, validate_every=5)
            train(replace(task, world=world), toy_optim(epochs=settings.get("epochs", 6)), run)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if left := gloo_threads():
        print(f"these threads outlive the group: {left}", file=sys.stderr)
        return 3
    return 0


def interrupted() -> dict[str, float]:
    """A validation that a stop signal comes into."""
    os.kill(os.getpid(), signal.SIGTERM)
    return {"loss": 0.0}


def gloo_threads() -> list[str]:
    """Threads of this process that belong to a process group."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if name.startswith(("gloo", "pt_"))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
