"""AdamW over the trained parameters by parts, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from training.errors import RunError
from training.settings import OptimSettings


def moving(
    trainables: Mapping[str, Parameter], settings: OptimSettings, part_of: Callable[[str], str]
) -> dict[str, Parameter]:
    """Those that this run trains; the others, whose part has a rate of 0, need no gradient any more.

    Raises RunError for the rate of a part that is not there, and when nothing is left to train.
    """
    there = {part_of(name) for name in trainables}
    if unknown := sorted(settings.parts.keys() - there):
        raise RunError(f"optim.parts names '{unknown[0]}', but what is trained is {', '.join(sorted(there))}")
    kept = {}
    for name, parameter in trainables.items():
        if settings.parts.get(part_of(name), settings.lr) > 0:
            kept[name] = parameter
        else:
            parameter.requires_grad_(False)
    if not kept:
        raise RunError("optim.parts gives every part a rate of 0: nothing is left to train")
    return kept


def make_optimizer(
    trainables: Mapping[str, Parameter],
    settings: OptimSettings,
    part_of: Callable[[str], str] = lambda name: "adapters",
) -> torch.optim.AdamW:
    """AdamW that decays parameters of two or more dimensions only; every part has its own rate."""
    half = [name for name, parameter in trainables.items() if parameter.dtype != torch.float32]
    assert not half, f"trained parameters must be float32, or small updates are lost: {half[0]} is not"
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in trainables.items():
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((settings.parts.get(part_of(name), settings.lr), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "lr": rate, "share": rate / settings.lr}
            for (rate, decay), members in groups.items()
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=1e-8,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parts from that of `optim.lr`: the schedule scales them alike."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def learning_rate(
    step: int, *, peak: float, floor: float, warmup: int, steps: int, schedule: str = "cosine"
) -> float:
    """Learning rate of optimizer step `step`, counted from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    gone = (step - warmup) / (steps - warmup)
    left = 1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
    return floor + (peak - floor) * left


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
