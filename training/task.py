"""What the training loop asks of whoever uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from training.batches import Batch
from training.parallel import World
from training.step import Model


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how it is saved and validated."""

    model: Model
    trainables: Mapping[str, Parameter]  # name -> parameter, float32
    batches_of_step: Callable[[int], Sequence[Batch]]  # of step k, counted from 0; may be LazyBatches
    steps_per_epoch: int
    save_adapter: Callable[[Path, dict[str, Any]], None]  # writes a complete folder, with its provenance
    validate: Callable[[], dict[str, float]] | None  # "loss" and perhaps "accuracy"
    device: torch.device
    part_of: Callable[[str], str] = lambda name: "adapters"  # name of a trainable -> its part (optim.parts)
    world: World = field(default_factory=World)
