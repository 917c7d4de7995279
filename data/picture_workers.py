"""Pictures decoded ahead of their use in worker processes, and kept in memory where asked for.

A worker gets paths and a picklable function from a path to a `Prepared`, nothing else: no tokenizer, no
model, no tensors of a device. It is a fresh interpreter (`spawn`), since a fork of a process with threads or
a CUDA context is not safe. What comes back, and in which order, does not depend on the number of workers.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from numpy.typing import NDArray

from data.errors import DataError
from data.packing import LoadPicture, PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens

# Cores for each worker where nothing is said: the rest are for the step and for reading its results.
CORES = 4
MOST = 8


def usual_workers(cores: int | None, processes: int = 1) -> int:
    """How many workers each of several processes takes on a machine where nothing is said."""
    return min((cores or 1) // (CORES * processes), MOST)


class Pictures:
    """What `collate` asks for pictures.

    Args:
        load: Gives the picture of a path; picklable where there are workers.
        workers: Number of processes that load; 0: this one does, when a picture is asked for.
        kept: The last so many pictures stay in memory.

    Raises DataError, when a picture is asked for, for what is wrong with its file, and when a worker died.
    """

    def __init__(self, load: LoadPicture, workers: int = 0, kept: int = 0) -> None:
        start = _in_processes(load, workers) if workers else _here(load)
        self._start: Callable[[Path], Callable[[], Prepared]] = lru_cache(maxsize=kept)(start)

    def __call__(self, path: Path) -> Prepared:
        """The picture of one path."""
        return self._start(path)()

    def ahead(self, paths: Iterable[Path]) -> LoadPicture:
        """Has the workers begin with these pictures, and gives what takes each when it is there."""
        coming = {path: self._start(path) for path in dict.fromkeys(paths)}
        return lambda path: coming[path]()

    def batch(self, samples: Sequence[Tokens]) -> PackedBatch:
        """The packed batch of some samples, whose pictures are loaded side by side."""
        return collate(samples, self.ahead(images_of(samples)))


def images_of(samples: Iterable[Tokens]) -> list[Path]:
    """The picture files of samples, in order."""
    return [path for sample in samples for path in sample.images]


def _here(load: LoadPicture) -> Callable[[Path], Callable[[], Prepared]]:
    """Loads a picture in this process, when it is taken."""
    return lambda path: cache(lambda: load(path))


def _in_processes(load: LoadPicture, workers: int) -> Callable[[Path], Callable[[], Prepared]]:
    """Begins to load a picture elsewhere; the processes start with the first, and end with the last user."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    atexit.register(_end, weakref.ref(pool))

    def start(path: Path) -> Callable[[], Prepared]:
        try:
            with _uninterrupted():
                return cache(_Coming(pool.submit(_decoded, load, path)))
        except BrokenProcessPool as error:
            raise _died() from error

    return start


def _end(pool: weakref.ref[ProcessPoolExecutor]) -> None:
    """Ends a pool that is still used at the interpreter's end: later, its own callback finds no modules."""
    if (left := pool()) is not None:
        left.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process that begins inside never sees Ctrl-C: it ends with its parent, silently."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Coming:
    """A picture on its way from a worker."""

    def __init__(self, future: Future[tuple[NDArray[Any], tuple[int, int]]]) -> None:
        self._future = future

    def __call__(self) -> Prepared:
        try:
            views, size = self._future.result()
        except BrokenProcessPool as error:
            raise _died() from error
        return Prepared(torch.from_numpy(views), size)


def _died() -> DataError:
    return DataError(
        "a process that decodes pictures was killed, perhaps for want of memory; lower data.workers"
    )


def _begin() -> None:
    """The first thing a worker does."""
    torch.set_num_threads(1)
    # A scheduler's signal may go to the whole group, but a run that stops still finishes its step.
    os.setpgid(0, 0)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker would wait for ever when its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(1)


def _decoded(load: LoadPicture, path: Path) -> tuple[NDArray[Any], tuple[int, int]]:
    """A picture as it travels: arrays are copied through a pipe, which leaves no shared memory behind."""
    picture = load(path)
    return picture.views.numpy(), picture.size
