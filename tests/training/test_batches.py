"""Steps are made ahead in their order, a few at most, and nothing more once they are not wanted."""

from __future__ import annotations

import time
from contextlib import closing
from threading import current_thread

import pytest

from tests.training.toy import batch_of
from training.batches import AHEAD, Pass, prefetched
from training.errors import RunError

PASS = Pass(0, batch_of([0]), 0)


def wait_for(condition) -> bool:
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return bool(condition())


def test_steps_come_in_order_and_only_a_few_are_made_ahead():
    made: list[int] = []

    def own(step: int) -> list[Pass]:
        assert current_thread().name.startswith("batches")
        made.append(step)
        return [PASS] * step

    with closing(prefetched(own, 3, 9)) as steps:
        for step in range(3, 9):
            assert len(next(steps)) == step
            wanted = list(range(3, min(step + AHEAD + 1, 9)))
            assert wait_for(lambda wanted=wanted: made == wanted)
            time.sleep(0.01)
            assert made == wanted, "more steps are in memory than were asked for"
        assert next(steps, None) is None
    assert list(prefetched(own, 4, 4)) == []


def test_an_error_comes_with_its_step_and_not_before():
    def own(step: int) -> list[Pass]:
        if step == 2:
            raise RunError("step 2 is broken")
        return [PASS]

    steps = prefetched(own, 0, 5)
    assert [next(steps), next(steps)] == [[PASS], [PASS]]
    with pytest.raises(RunError, match="step 2 is broken"):
        next(steps)


def test_nothing_more_is_made_once_the_steps_are_closed():
    made: list[int] = []

    def own(step: int) -> list[Pass]:
        made.append(step)
        time.sleep(0.1)
        return [PASS]

    steps = prefetched(own, 0, 50)
    next(steps)
    steps.close()
    count = len(made)
    time.sleep(0.15)
    assert len(made) == count <= 2
