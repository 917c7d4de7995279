"""Whose turn it is: one thread at a time computes with the adapters of a model, or changes them.

An answer is made from one adapter from its first token to its last, however many threads ask and swap. It
may be handed out in pieces: between two of them it stands still and its turn goes on, and any thread may
fetch the next piece or give the answer up. What a thread asks for in between belongs to the turn of the
answer it has in hand. Knows no adapter and no tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mma.errors import AdapterError

Step = Callable[[], AbstractContextManager[None]]


class _Turn:
    """One answer or change, and what its thread asks for before it has ended."""

    def __init__(self, thread: object, changing: bool) -> None:
        self.thread = thread  # who computed in it last
        self.changing = changing
        self.open: set[object] = set()  # its blocks; it ends with the last of them


class Turns:
    """Gives turns: who waits longest at the door is not overtaken by who asks again at once."""

    def __init__(self) -> None:
        self._next = threading.Lock()  # whoever is served next waits inside, the others wait for it
        self._taken = threading.Lock()
        self._turn: _Turn | None = None
        # What follows is for answers in pieces, which other threads may fetch, close or let be collected:
        # a lock here is given back by any thread, and collection may come in the middle of any line.
        self._computing = threading.Lock()  # two threads with pieces of one turn go one after the other
        self._computes: object | None = None
        self._leaving = threading.RLock()
        self._local = threading.local()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Waits until no other thread computes or changes; inside an own turn it is part of that."""
        with self.answering() as step, step():
            yield

    @contextmanager
    def answering(self) -> Iterator[Step]:
        """The same for an answer that is handed out in pieces: it computes inside `with step():` only."""
        with self._turn_of(changing=False) as turn:
            yield lambda: self._step(turn)

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """The same for a change; refused where this thread is in the middle of an answer of its own."""
        turn = self._turn
        if turn is not None and turn.thread is self._me() and not turn.changing:
            raise AdapterError(
                f"adapter: cannot {what} inside an answer that is still being made; finish it first"
            )
        with self._turn_of(changing=True) as turn, self._step(turn):
            yield

    @contextmanager
    def _turn_of(self, changing: bool) -> Iterator[_Turn]:
        block = object()
        turn = self._join(block) or self._begin(block, changing)
        try:
            yield turn
        finally:
            with self._leaving:
                turn.open.discard(block)
                if not turn.open and self._turn is turn:
                    self._turn = None
                    self._taken.release()

    def _join(self, block: object) -> _Turn | None:
        """Makes the block part of this thread's own turn, if it has one."""
        with self._leaving:
            turn = self._turn
            if turn is None or turn.thread is not self._me():
                return None
            turn.open.add(block)
            return turn if self._turn is turn else None  # it may have been collected in the line before

    def _begin(self, block: object, changing: bool) -> _Turn:
        with self._next:
            self._taken.acquire()
        turn = _Turn(self._me(), changing)
        turn.open.add(block)
        self._turn = turn
        return turn

    @contextmanager
    def _step(self, turn: _Turn) -> Iterator[None]:
        me = self._me()
        if self._computes is me:
            yield
            return
        self._computing.acquire()
        self._computes = turn.thread = me
        try:
            yield
        finally:
            self._computes = None
            self._computing.release()

    def _me(self) -> object:
        """Stands for this thread; the number of a thread may be given to another one after its end."""
        if not hasattr(self._local, "thread"):
            self._local.thread = object()
        me: object = self._local.thread
        return me

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        """A copied or stored model has its own turns."""
        return Turns, ()
