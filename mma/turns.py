"""Whose turn it is: one thread at a time computes with the adapters of a model, or changes them.

An answer is made from one adapter from its first token to its last, however many threads ask and swap.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mma.errors import AdapterError


class Turns:
    """A lock that knows its holder, and whether that one computes or changes something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._changing = False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Waits until no other thread computes or changes; inside an own turn it is part of that."""
        with self._turn(changing=False):
            yield

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """The same for a change; refused where this thread is in the middle of an answer of its own."""
        if self._holder == threading.get_ident() and not self._changing:
            raise AdapterError(
                f"adapter: cannot {what} inside an answer that is still being made; finish it first"
            )
        with self._turn(changing=True):
            yield

    @contextmanager
    def _turn(self, changing: bool) -> Iterator[None]:
        if self._holder == threading.get_ident():
            yield
            return
        self._lock.acquire()
        self._holder, self._changing = threading.get_ident(), changing
        try:
            yield
        finally:
            self._holder, self._changing = None, False
            self._lock.release()

    def __deepcopy__(self, memo: object) -> Turns:
        """A copied model has its own turns."""
        return Turns()
