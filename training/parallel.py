"""Several processes that train together: who computes what, and what they tell each other.

Two ways of talking: a few numbers and names over gloo, where a process that dies is noticed at once and
waiting for a validation may take long; gradients over NCCL on GPUs, where all arrive together.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Its default arguments hold the group that is there when it is first imported, which an optimizer's first
# step does: imported before any group, or gloo's threads would outlive `joined` and run into Python's end.
import torch.distributed.nn.functional
from torch import Tensor

from training.errors import RunError

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # others wait while the first process validates; a dead one is noticed by gloo
PROMPT = timedelta(seconds=25)  # for NCCL, which does not notice
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class PeerStopped(RunError):
    """Another process of the run has stopped or died."""


@dataclass(frozen=True)
class World:
    """The processes of a run and the place of this one; without torchrun a world of one, with no group."""

    rank: int = 0
    size: int = 1
    data: dist.ProcessGroup | None = None  # where gradients travel; none: the default group
    split: bool = False  # all of them compute one model together, layer by layer

    @property
    def here(self) -> int:
        """How many of them run on this machine, as torchrun tells."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.size > 1 else 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run folder and validates."""
        return self.rank == 0

    def share(self, total: int) -> list[tuple[int, bool]]:
        """Indices of this process's micro-batches among `total`, and whether each counts.

        All processes make the same number of passes, or a sharded base would wait for ever: who has fewer
        repeats one that does not count. Where they compute one model together, each makes all of them.
        """
        if self.split:
            return [(index, True) for index in range(total)]
        own = [(index, True) for index in range(self.rank, total, self.size)]
        rounds = -(-total // self.size)
        return own + [(self.rank % total, False)] * (rounds - len(own))

    def gather(self, value: T) -> list[T]:
        """What every process gives, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with talking():
            dist.all_gather_object(values, value)
        return values

    def tell(self, value: T | None) -> T | None:
        """What the first process says, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        with talking():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.gather(None)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Sums tensors over all processes, in place, as one flat fp32 tensor.

        Where they compute one model together each has the sum already, and they agree on its last bits.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        with talking():
            dist.all_reduce(flat, group=self.data)
        _spread(flat / self.size if self.split else flat, tensors)

    def agree_on(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the tensors of the first process into those of all, so that they start in the same bits."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors.values()])
        with talking():
            dist.broadcast(flat, src=0, group=self.data)
        _spread(flat, list(tensors.values()))


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun has described; left at the end of the block.

    Raises RunError when only a part of torchrun's variables is set or the others cannot be reached.
    """
    held = [name for name in VARIABLES if name in os.environ]
    if not held or os.environ.get("WORLD_SIZE") == "1":
        yield World()
        return
    if missing := [name for name in (*VARIABLES, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise RunError(f"{held[0]} is set, but {missing[0]} is not: start several processes with torchrun")
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
        data = dist.new_group(backend="nccl", timeout=PROMPT) if device.type == "cuda" else None
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise RunError(
            f"the processes cannot reach each other ({line}): check torchrun's settings"
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size(), data)
    finally:
        # A sharded model is a cycle that holds the group, whose threads must end before the interpreter does:
        # where the model is still in use here, at the latest when the program has run.
        atexit.register(gc.collect)
        gc.collect()
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise RunError(
            f"process {index} of this machine has no GPU, there are {torch.cuda.device_count()}: "
            "start as many processes as there are GPUs"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextmanager
def talking() -> Iterator[None]:
    """Turns the error of a broken connection into PeerStopped; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not any(word in text for word in ("gloo", "nccl", "connection", "peer")):
            raise
        raise PeerStopped("another process of this run has stopped") from error


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
