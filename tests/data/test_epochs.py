from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.epochs import EpochOrder, micro_batches
from data.errors import DataError
from data.sample import Tokens


@given(st.integers(1, 60), st.integers(0, 9), st.integers(1, 20))
def test_an_epoch_of_steps_holds_every_sample_once(n_samples: int, epoch: int, effective_batch: int) -> None:
    order = EpochOrder(n_samples, seed=3)
    per_epoch = order.steps_per_epoch(effective_batch)
    steps = [order.step(epoch * per_epoch + step, effective_batch) for step in range(per_epoch)]
    assert [index for step in steps for index in step] == list(order.permutation(epoch))
    assert sorted(order.permutation(epoch)) == list(range(n_samples))
    assert all(len(step) == effective_batch for step in steps[:-1])
    assert 0 < len(steps[-1]) <= effective_batch


def test_seed_and_epoch_decide_the_order() -> None:
    order = EpochOrder(100, seed=0)
    assert order.permutation(0) != order.permutation(1)
    assert order.permutation(0) != EpochOrder(100, seed=1).permutation(0)
    assert order.permutation(1) == EpochOrder(100, seed=0).permutation(1)


def test_the_order_is_pinned() -> None:
    # A change here would change what every recorded run and every resumed one sees.
    assert EpochOrder(8, seed=0).permutation(0) == (7, 0, 5, 1, 2, 3, 6, 4)


@pytest.mark.parametrize("budget", [30, 60, 1000])
def test_a_step_holds_the_same_samples_at_any_budget(budget: int) -> None:
    tokens = [Tokens(str(n), (1,) * (n + 5), (False,) * (n + 5), (), "text") for n in range(20)]
    indices = EpochOrder(20, seed=0).step(1, effective_batch=8)
    groups = micro_batches(tokens, indices, budget)
    assert sorted(int(sample.sample_id) for group in groups for sample in group) == sorted(indices)
    assert all(sum(map(len, group)) <= budget for group in groups)


def test_a_sample_above_the_budget_is_named() -> None:
    long = Tokens("q7", (1,) * 9, (False,) * 9, (), "text")
    with pytest.raises(DataError, match="sample q7 has 9 tokens, more than the 8"):
        micro_batches([long], [0], budget=8)


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="no samples to train on"):
        EpochOrder(0, seed=0)
    with pytest.raises(DataError, match="the effective batch is 0"):
        EpochOrder(3, seed=0).step(0, effective_batch=0)
