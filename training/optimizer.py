"""AdamW over the trained parameters by parts, and the learning rate as a function of the step.

In 8 bits (arXiv 2110.02861) the two averages lie in blocks of numbers that share a scale; paged, they may
leave the GPU for the host's memory when it is full. Those of small tensors stay in fp32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from training.errors import RunError
from training.settings import OptimSettings

SMALLEST, BLOCK = (
    4096,
    256,
)  # numbers in the smallest tensor that bitsandbytes averages in 8 bits, and a scale


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
) -> torch.optim.Optimizer:
    """AdamW that decays parameters of two or more dimensions only; every part has its own rate.

    Raises RunError for one in 8 bits without bitsandbytes, and for a paged one without a GPU.
    """
    half = [name for name, parameter in trainables.items() if parameter.dtype != torch.float32]
    assert not half, f"trained parameters must be float32, or small updates are lost: {half[0]} is not"
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in trainables.items():
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((settings.parts.get(part_of(name), settings.lr), decay), []).append(parameter)
    on_gpu = all(parameter.is_cuda for parameter in trainables.values())
    made: torch.optim.Optimizer = _kind(settings.optimizer, on_gpu)(
        [
            {"params": members, "weight_decay": decay, "lr": rate, "share": rate / settings.lr}
            for (rate, decay), members in groups.items()
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=1e-8,
    )
    return made


def _kind(name: str, on_gpu: bool) -> Callable[..., torch.optim.Optimizer]:
    """The class of an optimizer, ready to be made."""
    if name == "adamw":
        return partial(torch.optim.AdamW, fused=True if on_gpu else None)
    if find_spec("bitsandbytes") is None:
        raise RunError(f"optim.optimizer {name} needs bitsandbytes; pip install bitsandbytes")
    if name == "paged_adamw8bit" and not on_gpu:
        raise RunError("optim.optimizer paged_adamw8bit needs a GPU; take adamw8bit or adamw")
    # It tells of kernels that it would have liked to load.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes import optim  # noqa: PLC0415  # takes seconds, and only this needs it

    made: Callable[..., torch.optim.Optimizer] = (
        optim.AdamW8bit if name == "adamw8bit" else optim.PagedAdamW8bit
    )
    return made


def average_bytes(name: str, numbers: int) -> float:
    """Bytes of an optimizer's two averages of a tensor."""
    if name == "adamw" or numbers < SMALLEST:
        return 8 * numbers
    return 2 * (numbers + 4 * math.ceil(numbers / BLOCK))


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
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in trainables.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if not key.startswith("qmap")  # the values that 8 bits stand for, which all tensors share
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
    of = {parameter: state[name] for name, parameter in trainables.items() if state[name]}
    if not isinstance(optimizer, torch.optim.AdamW):
        _fill(optimizer, of)
        return
    packed = optimizer.state_dict()
    numbered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {i: of[parameter] for i, parameter in enumerate(numbered) if parameter in of}
    optimizer.load_state_dict(packed)


def _fill(optimizer: Any, of: Mapping[Parameter, Mapping[str, Tensor]]) -> None:
    """Fills the state of an optimizer of bitsandbytes where it lies: what is paged stays so."""
    for place, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if parameter not in of:
                continue
            optimizer.init_state(group, parameter, place, index)
            if parameter.is_cuda:
                torch.cuda.synchronize(parameter.device)  # a kernel zeroes what the host is about to write
            held = optimizer.state[parameter]
            for key, value in of[parameter].items():
                if isinstance(held[key], Tensor):
                    held[key].copy_(value)
                else:
                    held[key] = int(value)
