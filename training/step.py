"""One optimizer step: the gradient of the mean loss per supervised token, however the samples are packed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from training.errors import RunError


class Batch(Protocol):
    """Samples that go through the model together."""

    @property
    def targets(self) -> Tensor: ...  # int64[L], one per supervised token
    @property
    def lengths(self) -> Sequence[int]: ...  # tokens of each sample
    @property
    def sample_ids(self) -> Sequence[str]: ...
    def to(self, device: torch.device) -> Batch: ...


class Model(Protocol):
    """What training asks of a model."""

    def loss(self, batch: Any) -> Tensor: ...  # float32[], sum of the cross-entropy over batch.targets
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    loss: float  # mean per supervised token
    grad_norm: float  # before clipping
    tokens: int
    targets: int
    sample_ids: list[str]


def seed_step(seed: int, step: int) -> None:
    """Seeds the generators for one step, so that dropout does not depend on the steps before it."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


def accumulate(
    model: Model, batches: Sequence[Batch], *, step: int, device: torch.device
) -> tuple[float, int]:
    """Adds the gradient of the mean loss over all batches; returns that loss and the number of targets."""
    count = sum(batch.targets.numel() for batch in batches)
    if not count:
        raise RunError(f"step {step} has no supervised token; samples: {_ids(batches)}")
    sums = []
    for batch in batches:
        loss = model.loss(batch.to(device))
        # Not the mean of each batch: a token weighs the same in whichever batch it is.
        torch.autograd.backward(loss / count)
        sums.append(loss.detach().double())
    values = torch.stack(sums).tolist()
    bad = [batch for batch, value in zip(batches, values, strict=True) if not math.isfinite(value)]
    if bad:
        raise RunError(f"the loss of step {step} is not a finite number; samples: {_ids(bad)}")
    return math.fsum(values) / count, count


def train_step(
    model: Model,
    trainables: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    step: int,
    device: torch.device,
    clip: float | None = None,
) -> StepResult:
    """Moves the trained parameters once; `step` (1 for the first) is named in errors."""
    optimizer.zero_grad(set_to_none=True)
    loss, count = accumulate(model, batches, step=step, device=device)
    for parameter in trainables.values():
        if parameter.grad is None:
            # It is zero. AdamW would skip None, and a step without a picture would be another kind of step.
            parameter.grad = torch.zeros_like(parameter)
    limit = clip if clip is not None else math.inf
    grad_norm = torch.nn.utils.clip_grad_norm_(trainables.values(), limit).item()
    if not math.isfinite(grad_norm):
        raise RunError(f"the gradient norm of step {step} is {grad_norm}; samples: {_ids(batches)}")
    optimizer.step()
    ids = [sample_id for batch in batches for sample_id in batch.sample_ids]
    return StepResult(loss, grad_norm, sum(sum(batch.lengths) for batch in batches), count, ids)


def _ids(batches: Sequence[Batch]) -> str:
    return ", ".join(sample_id for batch in batches for sample_id in batch.sample_ids)
