"""One optimizer step: the gradient of the mean loss per supervised token, however the samples are packed
and however many processes share them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from training.batches import Pass
from training.errors import RunError
from training.parallel import World


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


@dataclass(frozen=True)
class _Told:
    """What a process tells the others of a micro-batch."""

    index: int
    loss: float
    targets: int
    tokens: int
    sample_ids: list[str]


def accumulate(
    model: Model,
    trainables: Mapping[str, Parameter],
    own: Sequence[Pass],
    *,
    step: int,
    device: torch.device,
    world: World | None = None,
) -> list[_Told]:
    """Makes every gradient that of the mean loss over the batches of all processes; tells what they held."""
    world, sums = world or World(), []
    for item in own:
        torch.manual_seed(item.seed)
        loss = model.loss(item.batch.to(device))
        # The sum, not the mean of each batch: a token weighs the same in whichever batch it is.
        if loss.requires_grad:  # not where only the projector is trained and no sample has a picture
            torch.autograd.backward(loss if item.counts else 0 * loss)
        sums.append(loss.detach().double())
    values = torch.stack(sums).tolist() if sums else []
    told = [
        _Told(p.index, value, p.batch.targets.numel(), sum(p.batch.lengths), list(p.batch.sample_ids))
        for p, value in zip(own, values, strict=True)
        if p.counts
    ]
    # By their place: processes that compute one model together all tell of the same batches.
    gathered = {batch.index: batch for batch in chain.from_iterable(world.gather(told))}
    told = [gathered[index] for index in sorted(gathered)]
    count = sum(batch.targets for batch in told)
    if not count:
        raise RunError(f"step {step} has no supervised token; samples: {_ids(told)}")
    if bad := [batch for batch in told if not math.isfinite(batch.loss)]:
        raise RunError(f"the loss of step {step} is not a finite number; samples: {_ids(bad)}")
    for parameter in trainables.values():
        if parameter.grad is None:
            # It is zero. AdamW would skip None, and a step without a picture would be another kind of step.
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trainables.values() if parameter.grad is not None]
    world.add_up(gradients)
    for gradient in gradients:
        gradient.div_(count)
    return told


def train_step(
    model: Model,
    trainables: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    own: Sequence[Pass],
    *,
    step: int,
    device: torch.device,
    clip: float | None = None,
    world: World | None = None,
) -> StepResult:
    """Moves the trained parameters once; `step` (1 for the first) is named in errors."""
    told = accumulate(model, trainables, own, step=step, device=device, world=world)
    limit = clip if clip is not None else math.inf
    grad_norm = torch.nn.utils.clip_grad_norm_(trainables.values(), limit).item()
    if not math.isfinite(grad_norm):
        raise RunError(f"the gradient norm of step {step} is {grad_norm}; samples: {_ids(told)}")
    optimizer.step()
    # Not before the next step: a validation in between would hold them, and could keep no routing table.
    optimizer.zero_grad(set_to_none=True)
    count = sum(batch.targets for batch in told)
    loss = math.fsum(batch.loss for batch in told) / count
    ids = [sample_id for batch in told for sample_id in batch.sample_ids]
    return StepResult(loss, grad_norm, sum(batch.tokens for batch in told), count, ids)


def _ids(told: Sequence[_Told]) -> str:
    return ", ".join(sample_id for batch in told for sample_id in batch.sample_ids)
