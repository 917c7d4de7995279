from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.errors import DataError
from data.packing import PackedBatch, collate, pack
from data.pictures import Prepared
from data.sample import Tokens, modality_of


@st.composite
def any_tokens(draw: st.DrawFn) -> Tokens:
    """Tokens with any supervised places, with or without a picture."""
    length = draw(st.integers(1, 12))
    ids = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
    supervised = [False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
    slots: tuple[int, ...] = ()
    if length > 3 and draw(st.booleans()):
        slots = (1, 2)
    name = str(draw(st.integers(0, 9)))
    images, counts = ((Path(name),), (2,)) if slots else ((), ())
    return Tokens(name, tuple(ids), tuple(supervised), slots, modality_of(images), images, counts)


def load_picture(path: Path) -> Prepared:
    return Prepared(torch.full((1, 3, 2, 2), float(path.name)), (int(path.name), 7))


def concatenated(batches: list[PackedBatch]) -> dict[str, list[float]]:
    """What the batches hold one after the other, flat positions shifted."""
    whole: dict[str, list[float]] = {"ids": [], "positions": [], "slots": [], "sources": [], "targets": []}
    start = 0
    for batch in batches:
        whole["slots"] += [slot + start for slot in batch.slots.tolist()]
        whole["sources"] += [source + start for source in batch.sources.tolist()]
        for name in ("ids", "positions", "targets"):
            whole[name] += getattr(batch, name).tolist()
        start += len(batch.ids)
    return whole


@given(st.lists(any_tokens(), min_size=1, max_size=6))
def test_a_batch_is_its_samples_one_after_the_other(tokens: list[Tokens]) -> None:
    batch = collate(tokens, load_picture)
    singles = [collate([sample], load_picture) for sample in tokens]
    expected = concatenated(singles)
    assert {name: getattr(batch, name).tolist() for name in expected} == expected
    pictures = [single.pictures for single in singles if single.pictures is not None]
    if pictures:
        assert batch.pictures is not None
        assert torch.equal(batch.pictures, torch.cat(pictures))
    else:
        assert batch.pictures is None
    assert batch.sizes == tuple((int(path.name), 7) for sample in tokens for path in sample.images)
    assert batch.lengths == tuple(map(len, tokens))
    assert batch.modalities == tuple(sample.modality for sample in tokens)
    assert batch.sample_ids == tuple(sample.sample_id for sample in tokens)


@given(st.lists(any_tokens(), min_size=1, max_size=6))
def test_every_supervised_token_is_predicted_from_the_one_before_it(tokens: list[Tokens]) -> None:
    batch = collate(tokens, load_picture)
    flat = [mark for sample in tokens for mark in sample.supervised]
    assert (batch.sources + 1).tolist() == [place for place, mark in enumerate(flat) if mark]
    assert torch.equal(batch.targets, batch.ids[batch.sources + 1])
    segment = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(batch.lengths))
    assert torch.equal(segment[batch.sources], segment[batch.sources + 1])


def test_positions_leave_zero_to_the_modality_token() -> None:
    two = Tokens("a", (1, 5), (False, True), (), "text")
    batch = collate([two, two], load_picture)
    assert batch.positions.tolist() == [1, 2, 1, 2]
    assert batch.sources.tolist() == [0, 2]
    assert batch.ids.dtype == batch.positions.dtype == batch.slots.dtype == torch.int64


def test_to_moves_every_tensor() -> None:
    picture = Tokens("3", (1, 0, 5), (False, False, True), (1,), "image", (Path("3"),), (1,))
    batch = collate([picture], load_picture).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert len(tensors) == 6
    assert all(tensor.is_meta for tensor in tensors)
    assert batch.sample_ids == ("3",)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        collate([], load_picture)


def test_pictures_of_two_sizes_name_the_sample() -> None:
    tokens = [Tokens(n, (1, 0), (False, False), (1,), "image", (Path(n),), (1,)) for n in "45"]
    with pytest.raises(DataError, match=r"sample 5 \(5\) is \(3, 5, 5\) after .* others are \(3, 4, 4\)"):
        collate(tokens, lambda path: Prepared(torch.zeros(1, 3, int(path.name), int(path.name)), (1, 1)))


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 60))
def test_every_sample_is_in_one_group_and_no_group_exceeds_the_budget(
    lengths: list[int], budget: int
) -> None:
    groups = pack(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in group) <= budget for group in groups)
    # Two groups that fit together would have been one.
    totals = sorted(sum(lengths[index] for index in group) for group in groups)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


def test_groups_are_the_fewest_where_that_is_plain() -> None:
    assert pack([6, 4, 7, 3, 10], budget=10) == [[0, 1], [2, 3], [4]]
    assert pack([], budget=10) == []


def test_a_sample_above_the_budget_is_named() -> None:
    with pytest.raises(DataError, match="the sample at index 1 has 11 tokens, more than the 10 of one batch"):
        pack([10, 11], budget=10)
    with pytest.raises(DataError, match="sample q7 has 11 tokens"):
        pack([10, 11], budget=10, ids=["q6", "q7"])
