"""AdamW over the trained parameters, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from training.errors import RunError
from training.settings import OptimSettings


def make_optimizer(trainables: Mapping[str, Parameter], settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW that decays parameters of two or more dimensions only."""
    half = [name for name, parameter in trainables.items() if parameter.dtype != torch.float32]
    assert not half, f"trained parameters must be float32, or small updates are lost: {half[0]} is not"
    matrices = [parameter for parameter in trainables.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainables.values() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, eps=1e-8
    )


def learning_rate(step: int, *, peak: float, floor: float, warmup: int, steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def optimizer_tensors(
    trainables: Mapping[str, Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """State of the optimizer as flat tensors, `<parameter>|<what>`; empty before the first step."""
    return {
        f"{name}|{key}": value
        for name, parameter in trainables.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    tensors: Mapping[str, Tensor], trainables: Mapping[str, Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Puts back what `optimizer_tensors` gave."""
    state: dict[str, dict[str, Tensor]] = {name: {} for name in trainables}
    for key, value in tensors.items():
        name, _, what = key.rpartition("|")
        if name not in state:
            raise RunError(f"the run state has an optimizer tensor of '{name}', which is not trained here")
        state[name][what] = value
    order = {id(parameter): name for name, parameter in trainables.items()}
    packed = optimizer.state_dict()
    numbered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {i: state[order[id(p)]] for i, p in enumerate(numbered) if state[order[id(p)]]}
    optimizer.load_state_dict(packed)
