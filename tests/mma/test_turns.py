"""One thread at a time computes or changes; an answer in pieces keeps its turn until it ends."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from data.packing import PackedBatch, collate
from data.pictures import slot_counter
from data.sample import Sample
from data.template import make_template
from mma import AdapterError
from mma.turns import Turns
from models.build import System
from models.generate import Sampling, generate, stream
from tests.mma.conftest import picture

SOON, PATIENCE = 0.05, 20.0


class Other:
    """Something asked for in another thread."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.done, self.error, self.answer = threading.Event(), None, None
        self._ask = ask
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.answer = self._ask()
        except AdapterError as error:
            self.error = error
        self.done.set()

    @property
    def waits(self) -> bool:
        return not self.done.wait(SOON)

    def ends(self) -> bool:
        return self.done.wait(PATIENCE)


def change(turns: Turns) -> None:
    with turns.changing("change it"):
        pass


def compute(turns: Turns) -> None:
    with turns.computing():
        pass


def pieces(turns: Turns, count: int = 3) -> Iterator[int]:
    with turns.answering() as step:
        for piece in range(count):
            with step():
                pass
            yield piece


def free(turns: Turns) -> bool:
    """Whether another thread gets its turn at once."""
    return Other(lambda: change(turns)).ends()


def test_one_at_a_time():
    turns, inside, most = Turns(), [], []

    def work(index: int) -> None:
        for _ in range(200):
            with turns.computing() if index % 2 else turns.changing("change it"):
                inside.append(index)
                most.append(len(inside))
                inside.remove(index)

    others = [Other(lambda index=index: work(index)) for index in range(6)]
    assert all(other.ends() and other.error is None for other in others)
    assert set(most) == {1}


@pytest.mark.parametrize("outer", ["computing", "changing"])
def test_a_turn_inside_the_own_turn_is_part_of_it(outer):
    turns = Turns()
    with turns.computing() if outer == "computing" else turns.changing("change it"):
        with turns.computing():
            compute(turns)
        if outer == "changing":
            with turns.changing("change more"), turns.computing():
                pass
        other = Other(lambda: compute(turns))
        assert other.waits
    assert other.ends()


def test_no_change_inside_an_own_answer():
    turns = Turns()
    with turns.computing():
        with pytest.raises(AdapterError, match="cannot change it inside an answer that is still being made;"):
            change(turns)
        assert Other(lambda: compute(turns)).waits
    change(turns)
    assert free(turns)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("kind", ["computing", "changing", "step"])
def test_an_exception_gives_the_turn_back(kind, inner):
    turns = Turns()

    def fail() -> None:
        if kind == "step":
            with turns.answering() as step, step():
                raise ZeroDivisionError
        with turns.computing() if kind == "computing" else turns.changing("change it"):
            if inner:
                compute(turns)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert free(turns)


def test_a_change_waits_for_the_last_piece():
    turns = Turns()
    answer = pieces(turns)
    assert next(answer) == 0
    other = Other(lambda: change(turns))
    assert other.waits
    compute(turns)  # what this thread asks for in between belongs to its answer
    with pytest.raises(AdapterError, match="finish it first"):
        change(turns)
    assert list(answer) == [1, 2]
    assert other.ends()


def test_two_answers_of_one_thread_share_a_turn():
    turns = Turns()
    first, second = pieces(turns), pieces(turns)
    assert (next(first), next(second)) == (0, 0)
    assert list(first) == [1, 2]
    other = Other(lambda: change(turns))
    assert other.waits
    assert list(second) == [1, 2]
    assert other.ends()


@pytest.mark.parametrize("how", ["closed", "dropped", "closed elsewhere"])
def test_an_abandoned_answer_gives_its_turn_back(how):
    turns = Turns()
    answer = pieces(turns)
    next(answer)
    if how == "closed":
        answer.close()
    elif how == "dropped":
        del answer
        gc.collect()
    else:
        assert Other(answer.close).ends()
    assert free(turns)
    change(turns)


def test_another_thread_may_fetch_the_pieces():
    """The answer is then the other thread's: it may not change anything, and this one waits."""
    turns = Turns()
    answer = pieces(turns)
    next(answer)
    fetched, go_on = threading.Event(), threading.Event()

    def elsewhere() -> list[int]:
        found = [next(answer)]
        with pytest.raises(AdapterError, match="inside an answer"):
            change(turns)
        fetched.set()
        assert go_on.wait(PATIENCE)
        return found + list(answer)

    other = Other(elsewhere)
    assert fetched.wait(PATIENCE)
    third = Other(lambda: compute(turns))
    assert third.waits
    go_on.set()
    assert other.ends() and other.answer == [1, 2]
    assert third.ends()
    change(turns)


def test_who_asks_again_and_again_does_not_keep_others_out():
    turns, stop, served = Turns(), threading.Event(), []

    def greedy() -> None:
        while not stop.is_set():
            compute(turns)
            served.append(1)

    busy = [Other(greedy) for _ in range(3)]
    waited = []
    for _ in range(20):
        before = len(served)
        change(turns)
        waited.append(len(served) - before)
    stop.set()
    assert all(other.ends() for other in busy)
    assert sorted(waited)[10] < 20, "about three others were before it in the queue"


def test_a_thread_that_ended_leaves_its_answer_to_nobody():
    """A new thread can get the number of an ended one; it must not inherit its answer."""
    turns, held = Turns(), []

    def begin() -> None:
        held.append(pieces(turns))
        next(held[0])

    assert Other(begin).ends()
    others = [Other(lambda: compute(turns)) for _ in range(4)]
    assert all(other.waits for other in others)
    held[0].close()
    assert all(other.ends() for other in others)


@pytest.mark.parametrize("copied", [deepcopy, lambda turns: pickle.loads(pickle.dumps(turns))])
def test_a_copy_has_its_own_turns(copied):
    turns = Turns()
    with turns.computing():
        assert free(copied(turns))


# -- with a model


def prompt(system: System, *texts: str) -> PackedBatch:
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    asked = [Sample(text, text, "", (Path("p.png"),) * (len(text) % 2)) for text in texts]
    return collate([template.tokens(one, response="") for one in asked], picture)


SAMPLING = Sampling(max_new_tokens=6)


def test_nothing_changes_inside_a_stream(tiny_system, tmp_path):
    system = tiny_system()
    adapters = system.model.adapters
    adapters.save_pretrained(tmp_path / "a")
    batch = prompt(system, "How warm is it?")
    wanted = generate(system, batch, SAMPLING)
    answer = stream(system, batch, SAMPLING)
    text = next(answer)[1]
    for ask, what in (
        (lambda: adapters.hotswap_adapter(tmp_path / "a"), "swap an adapter"),
        (lambda: adapters.load_adapter(tmp_path / "a", "b"), "add an adapter"),
        (lambda: adapters.delete_adapter("default"), "delete an adapter"),
        (lambda: adapters.set_adapter("default"), "set an adapter"),
        (lambda: adapters.merge_adapter("text"), "merge an adapter"),
        (lambda: adapters.disable_adapter().__enter__(), "disable the adapter"),
    ):
        with pytest.raises(AdapterError, match=f"cannot {what} inside an answer .* finish it first"):
            ask()
    assert text + "".join(piece for _, piece in answer) == wanted[0]
    adapters.hotswap_adapter(tmp_path / "a")


def test_another_answer_between_two_pieces(tiny_system):
    system = tiny_system()
    one, two = prompt(system, "How warm is it?"), prompt(system, "Which word?", "Why?")
    wanted = generate(system, one, SAMPLING), generate(system, two, SAMPLING)
    answer = stream(system, one, SAMPLING)
    text = next(answer)[1]
    assert generate(system, two, SAMPLING) == wanted[1]
    assert text + "".join(piece for _, piece in answer) == wanted[0][0]


def test_modes_between_two_pieces_are_the_callers(tiny_system):
    system = tiny_system()
    system.model.train()
    answer = stream(system, prompt(system, "How warm is it?"), SAMPLING)
    next(answer)
    assert system.model.training
    list(answer)
    assert system.model.training


def test_an_abandoned_stream_lets_a_swap_in(tiny_system, tmp_path):
    system = tiny_system()
    system.model.adapters.save_pretrained(tmp_path / "a")
    answer = stream(system, prompt(system, "How warm is it?"), SAMPLING)
    next(answer)
    swap = Other(lambda: system.model.adapters.hotswap_adapter(tmp_path / "a"))
    assert swap.waits
    del answer
    gc.collect()
    assert swap.ends() and swap.error is None


def test_every_piece_of_a_stream_is_fetched_by_another_thread(tiny_system):
    system = tiny_system()
    batch = prompt(system, "How warm is it?")
    wanted = generate(system, batch, SAMPLING)
    answer, found = stream(system, batch, SAMPLING), []

    def fetch() -> bool:
        found.append(next(answer, None))
        return torch.is_grad_enabled()

    while not found or found[-1] is not None:
        other = Other(fetch)
        assert other.ends()
        assert other.answer is True, "the thread computes with gradients as before"
    assert "".join(piece for _, piece in found[:-1]) == wanted[0]
    assert free(system.model.adapters.turns)
