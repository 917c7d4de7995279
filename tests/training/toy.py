"""A run small enough to be killed twenty times: a tiny language model with dropout, and its batches.

python -m tests.training.toy       reads runs from stdin, one JSON object a line, and forks one process each
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mma import folder as adapter_folder
from training.loop import Outcome, train
from training.settings import OptimSettings, RunSettings
from training.task import Task

VOCABULARY, SAMPLES, BATCH = 23, 20, 5


@dataclass(frozen=True)
class ToyBatch:
    """Packed samples: the last three tokens of each are supervised."""

    ids: Tensor
    sources: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device) -> ToyBatch:
        return replace(self, ids=self.ids.to(device), targets=self.targets.to(device))


class ToyModel(nn.Module):
    """Frozen embedding and head around a trained layer with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16).requires_grad_(False)
        self.layer = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(16, VOCABULARY).requires_grad_(False)

    def forward(self, batch: ToyBatch) -> Tensor:
        x = self.embed(batch.ids)
        return self.head(x + self.dropout(self.layer(x).tanh()))[batch.sources]

    def loss(self, batch: ToyBatch) -> Tensor:
        return functional.cross_entropy(self(batch).float(), batch.targets, reduction="sum")


def sample(index: int) -> list[int]:
    """Token ids of one sample."""
    generator = torch.Generator().manual_seed(index)
    length = int(torch.randint(5, 12, (), generator=generator))
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def batch_of(indices: Sequence[int]) -> ToyBatch:
    """Samples packed in one batch."""
    ids: list[int] = []
    sources: list[int] = []
    lengths = []
    for index in indices:
        tokens = sample(index)
        ids += tokens
        lengths.append(len(tokens))
        sources += [len(ids) - 4, len(ids) - 3, len(ids) - 2]
    flat = torch.tensor(ids)
    at = torch.tensor(sources)
    return ToyBatch(flat, at, flat[at + 1], tuple(lengths), tuple(f"s{index}" for index in indices))


def step_indices(step: int) -> list[int]:
    """Which samples a step holds."""
    epoch, within = divmod(step, SAMPLES // BATCH)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()
    return order[within * BATCH : (within + 1) * BATCH]


def batches_of_step(step: int) -> list[ToyBatch]:
    """A step in two micro-batches."""
    indices = step_indices(step)
    return [batch_of(indices[:3]), batch_of(indices[3:])]


def toy_task(
    dropout: float = 0.0,
    batches: Callable[[int], Sequence[ToyBatch]] = batches_of_step,
    validate: bool = True,
    seed: int = 0,
    delay: float = 0.0,
) -> Task:
    """A fresh toy model with everything that training needs."""
    torch.manual_seed(seed)
    model = ToyModel(dropout)
    trainables = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def score() -> dict[str, float]:
        batch = batch_of(range(10))  # of the training samples, so that the best comes late
        logits = model(batch)
        return {
            "loss": functional.cross_entropy(logits, batch.targets).item(),
            "accuracy": (logits.argmax(-1) == batch.targets).float().mean().item(),
        }

    def save_adapter(folder: Path, provenance: dict[str, object]) -> None:
        tensors = {name: parameter.detach() for name, parameter in trainables.items()}
        adapter_folder.write(folder, {"provenance": provenance}, tensors)

    return Task(
        model=model,
        trainables=trainables,
        batches_of_step=lambda step: time.sleep(delay) or batches(step),
        steps_per_epoch=SAMPLES // BATCH,
        save_adapter=save_adapter,
        validate=score if validate else None,
        device=torch.device("cpu"),
    )


def toy_optim(**settings: object) -> OptimSettings:
    """Settings that suit the toy."""
    return OptimSettings(
        **{"lr": 0.02, "epochs": 15, "batch": BATCH, "warmup": 1.0, "threads": 1, **settings}
    )


def toy_run(folder: Path, delay: float = 0.0, ema: float | None = None, **settings: object) -> Outcome:
    """Begins or resumes the run that is killed."""

    run = RunSettings(folder, **{"save_every": 3, "validate_every": 5, **settings})
    return train(toy_task(dropout=0.3, delay=delay), toy_optim(ema=ema), run)


def serve() -> None:
    """Forks a process per line, so that none has to import PyTorch anew."""
    importlib.import_module("torch._dynamo")  # what the first optimizer step imports: seconds
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            outcome = toy_run(Path(request.pop("folder")), **request)
            os._exit(0 if outcome.signal is None else 128 + outcome.signal)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
