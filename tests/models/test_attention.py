"""Packed and cached attention equal the plain causal softmax, segment by segment."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.attention import PackedAttention
from models.kv_cache import KVCache

E = 8


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One segment [T, H, E], one query at a time."""
    out = torch.empty_like(q)
    share = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        for head in range(q.shape[1]):
            scores = k[: t + 1, head // share] @ q[t, head] / math.sqrt(q.shape[2])
            out[t, head] = scores.softmax(0) @ v[: t + 1, head // share]
    return out


def random_qkv(lengths: list[int], heads: int, kv_heads: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    return [torch.randn(n, h, E, generator=generator) for h in (heads, kv_heads, kv_heads)]


shapes = st.tuples(
    st.lists(st.integers(1, 12), min_size=1, max_size=6), st.sampled_from([(4, 4), (4, 2), (2, 1)])
)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 10_000))
def test_packed_equals_each_segment_alone(shape, seed):
    lengths, (heads, kv_heads) = shape
    q, k, v = random_qkv(lengths, heads, kv_heads, seed)
    got = PackedAttention(lengths)(0, q, k, v)
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    wanted = torch.cat([plain(*part) for part in parts])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 4), st.integers(0, 10_000))
def test_cached_equals_uncached(shape, steps, seed):
    lengths, (heads, kv_heads) = shape
    whole = [length + steps for length in lengths]
    q, k, v = random_qkv(whole, heads, kv_heads, seed)
    wanted = PackedAttention(whole)(0, q, k, v).split(whole)
    rows = list(zip(*(x.split(whole) for x in (q, k, v)), strict=True))
    cache = KVCache(1, len(lengths), max(whole))
    heads_of = [torch.cat([row[i][: len(row[i]) - steps] for row in rows]) for i in range(3)]
    got = list(cache.prefill(PackedAttention(lengths), range(len(lengths)))(0, *heads_of).split(lengths))
    for step in range(steps):
        new = [torch.stack([row[i][length + step] for row, length in zip(rows, lengths, strict=True)])
               for i in range(3)]  # fmt: skip
        out = cache.attention(cache.used, cache.advance())(0, *new)
        got = [torch.cat([done, line[None]]) for done, line in zip(got, out, strict=True)]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_rows_that_are_kept_go_on_alone():
    lengths = [3, 5, 2]
    q, k, v = random_qkv([x + 1 for x in lengths], 2, 2, 0)
    rows = list(zip(*(x.split([x + 1 for x in lengths]) for x in (q, k, v)), strict=True))
    cache = KVCache(1, 3, 6)
    cache.prefill(PackedAttention(lengths), range(len(lengths)))(
        0, *(torch.cat([row[i][:-1] for row in rows]) for i in range(3))
    )
    cache.keep(torch.tensor([2, 0]))
    out = cache.attention(cache.used, cache.advance())(
        0, *(torch.stack([rows[r][i][-1] for r in (2, 0)]) for i in range(3))
    )
    for got, row in zip(out, (rows[2], rows[0]), strict=True):
        torch.testing.assert_close(got, plain(*row)[-1])


def test_a_misused_cache_says_so():
    cache = KVCache(1, 2, 4)
    with pytest.raises(ValueError, match="prefill it before the first step"):
        cache.attention(cache.used, cache.advance())
    with pytest.raises(ValueError, match="cache of 2 rows got 1 segments"):
        cache.prefill(PackedAttention([3]), range(2))
    cache.prefill(PackedAttention([3, 4]), range(2))
    with pytest.raises(ValueError, match="room for 4 tokens and is full"):
        cache.attention(cache.used, cache.advance())


def test_gradients_reach_queries_keys_and_values():
    lengths = [2, 7, 3]
    inputs = [x.double().requires_grad_() for x in random_qkv(lengths, 2, 1, 1)]
    packed = PackedAttention(lengths)
    packed(0, *inputs).square().sum().backward()
    got = [x.grad.clone() for x in inputs]
    other = [x.detach().clone().requires_grad_() for x in inputs]
    torch.cat(
        [plain(*p) for p in zip(*(x.split(lengths) for x in other), strict=True)]
    ).square().sum().backward()
    for a, b in zip(got, other, strict=True):
        torch.testing.assert_close(a.double(), b.grad, atol=1e-5, rtol=1e-4)
