"""The micro-batches of a step: which of them a process computes, made while those before are computed."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.parallel import World

AHEAD = 2  # steps whose batches wait in memory: one evens nothing out when a step's pictures are large


class Batch(Protocol):
    """Samples that go through the model together."""

    @property
    def targets(self) -> Tensor: ...  # int64[L], one per supervised token
    @property
    def lengths(self) -> Sequence[int]: ...  # tokens of each sample
    @property
    def sample_ids(self) -> Sequence[str]: ...
    def to(self, device: torch.device) -> Batch: ...


class LazyBatches(Sequence[Batch]):
    """The micro-batches of a step, each made when it is asked for: a process asks for its own only."""

    def __init__(self, makers: Sequence[Callable[[], Batch]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: int) -> Batch:
        return self._makers[index]()


@dataclass(frozen=True)
class Pass:
    """A micro-batch that this process computes: its place in the step, its seed, and whether it counts."""

    index: int
    batch: Batch
    seed: int
    counts: bool = True


def passes(
    batches: Sequence[Batch], *, seed: int = 0, step: int = 0, world: World | None = None
) -> list[Pass]:
    """What this process computes of a step; only these batches are made."""
    share = (world or World()).share(len(batches))
    return [Pass(index, batches[index], batch_seed(seed, step, index), counts) for index, counts in share]


def batch_seed(seed: int, step: int, index: int) -> int:
    """Seed of one micro-batch: its dropout depends on nothing before it and on no other process."""
    digest = hashlib.blake2b(f"{seed} {step} {index}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def prefetched(
    passes_of_step: Callable[[int], list[Pass]], first: int, end: int
) -> Generator[list[Pass], None, None]:
    """The passes of the steps in order; those of the next `AHEAD` are made while a step computes."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    coming: deque[Future[list[Pass]]] = deque()
    try:
        for step in range(first, end):
            for later in range(step + len(coming), min(step + 1 + AHEAD, end)):
                coming.append(pool.submit(passes_of_step, later))
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
