"""Rows of the cache that are filled, freed, moved and arranged anew stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.attention import PackedAttention
from models.kv_cache import KVCache
from tests.models.test_attention import plain, random_qkv


def rows_of(lengths: list[int], seed: int = 0) -> list[list[Tensor]]:
    """q, k and v of each row."""
    q, k, v = random_qkv(lengths, 4, 2, seed)
    return [list(row) for row in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)]


def fill(cache: KVCache, rows: list[list[Tensor]], places: list[int], lengths: list[int]) -> None:
    packed = cache.prefill(PackedAttention(lengths), places)
    packed(0, *(torch.cat([row[i][:n] for row, n in zip(rows, lengths, strict=True)]) for i in range(3)))


def step(cache: KVCache, rows: dict[int, tuple[list[Tensor], int]]) -> None:
    """One more token in the rows at these places (row, and what it holds), against plain attention."""
    attend = cache.attention(cache.used, cache.advance())
    new = [torch.zeros(cache.used, *next(iter(rows.values()))[0][i].shape[1:]) for i in range(3)]
    for place, (row, held) in rows.items():
        for i in range(3):
            new[i][place] = row[i][held]
    got = attend(0, *new)
    for place, (row, held) in rows.items():
        wanted = plain(*(x[: held + 1] for x in row))[-1]
        torch.testing.assert_close(got[place], wanted, atol=1e-5, rtol=1e-5)


def test_a_freed_row_is_filled_again_between_others():
    a, b, c, d = rows_of([8, 9, 7, 6])
    cache = KVCache(1, 3, 10)
    fill(cache, [a, b, c], [0, 1, 2], [3, 6, 2])
    memory = [x.data_ptr() for x in (*cache.keys, *cache.values)]
    step(cache, {0: (a, 3), 1: (b, 6), 2: (c, 2)})
    cache.drop([1])
    assert cache.free == [1] and cache.used == 3
    step(cache, {0: (a, 4), 2: (c, 3)})
    fill(cache, [d], [1], [4])  # shorter than what stood there
    assert cache.free == []
    step(cache, {0: (a, 5), 1: (d, 4), 2: (c, 4)})
    cache.drop([0, 1])
    cache.keep(torch.tensor([2]))
    assert cache.used == 1 and cache.free == [1, 2]
    step(cache, {0: (c, 5)})
    assert [x.data_ptr() for x in (*cache.keys, *cache.values)] == memory


def test_a_free_row_may_count_on_beyond_its_room():
    a, b = rows_of([9, 9])
    cache = KVCache(1, 2, 9)
    fill(cache, [a, b], [0, 1], [8, 3])
    cache.drop([0])
    for held in range(3, 8):
        step(cache, {1: (b, held)})


def test_the_same_memory_in_another_shape():
    a, b, c, d = rows_of([9, 6, 5, 4])
    cache = KVCache(1, 2, 20, tokens=43)
    fill(cache, [a, b], [0, 1], [7, 2])
    step(cache, {0: (a, 7), 1: (b, 2)})
    memory = [x.data_ptr() for x in (*cache.keys, *cache.values)]
    cache.arrange(4, 10)
    assert (cache.rows, cache.room, cache.free) == (4, 10, [2, 3])
    fill(cache, [c, d], [2, 3], [3, 1])
    step(cache, {0: (a, 8), 1: (b, 3), 2: (c, 3), 3: (d, 1)})
    assert [x.data_ptr() for x in (*cache.keys, *cache.values)] == memory
    assert cache.keys[0].untyped_storage().nbytes() == 43 * 2 * 8 * 4


@pytest.mark.parametrize("shape", [(5, 10), (2, 4), (0, 5)])
def test_a_shape_that_does_not_fit_is_refused(shape):
    (a,) = rows_of([9])
    cache = KVCache(1, 2, 20)
    fill(cache, [a], [0], [7])
    with pytest.raises(ValueError, match=f"{shape[0]} rows of {shape[1]} tokens do not fit"):
        cache.arrange(*shape)


def test_a_prefill_names_a_row_for_every_segment():
    cache = KVCache(1, 4, 8)
    with pytest.raises(ValueError, match="cache of 1 rows got 2 segments"):
        cache.prefill(PackedAttention([3, 2]), [2])


def test_what_is_left_of_a_longer_row_is_not_seen():
    a, b = rows_of([9, 9])
    cache = KVCache(1, 1, 9)
    fill(cache, [[a[0], a[1] * 50, a[2] * 50]], [0], [8])
    cache.drop([0])
    fill(cache, [b], [0], [2])
    step(cache, {0: (b, 2)})
