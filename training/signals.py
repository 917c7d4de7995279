"""Ctrl-C and SIGTERM end a run after the step that is under way."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised inside `StopSignals.interruptible` only; a BaseException, so that no library swallows it."""


class StopSignals:
    """Remembers the first stop signal; a second one of Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._interruptible = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be thrown away half-way: a signal raises Interrupted in it."""
        try:
            self._interruptible = True
            if self.received is not None:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            print(f"{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)
        self.received = number
        if self._interruptible:
            self._interruptible = False
            raise Interrupted
