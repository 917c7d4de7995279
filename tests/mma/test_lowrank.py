"""Low-rank maps calculate as the matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mma.lowrank import LowRank, weighted_sum

CHANNELS, OUT, WIDER = 5, 4, 7


def random_map(seed: int, r: int = 3) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((r, CHANNELS), (r,), (OUT, r), (OUT,))
    return LowRank(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, CHANNELS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def by_hand(low: LowRank, x: torch.Tensor) -> torch.Tensor:
    """One number after the other."""
    out = torch.zeros(*x.shape[:-1], OUT, dtype=x.dtype)
    for o in range(OUT):
        out[..., o] = low.bias[o]
        for rank in range(len(low.down)):
            z = sum(low.down[rank, c] * x[..., c] for c in range(CHANNELS)) + low.down_bias[rank]
            out[..., o] += low.up[o, rank] * z
    return out


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), r=st.integers(1, 6), axes=st.lists(st.integers(0, 3), max_size=3))
def test_it_is_its_formula_and_its_matrix(seed, r, axes):
    low, x = random_map(seed, r), inputs(*axes)
    weight, bias = low.dense()
    assert weight.shape == (OUT, CHANNELS)
    assert torch.allclose(low(x), by_hand(low, x))
    assert torch.allclose(low(x), x @ weight.T + bias)


def test_behind_a_linear_layer():
    """What the layer's output gains; the layer's own bias has no part in it."""
    low, x = random_map(1), inputs(6)
    linear = torch.nn.Linear(OUT, WIDER, dtype=torch.float64)
    seen = low.behind(linear.weight.detach())
    assert len(seen.down) == len(low.down)
    y = torch.randn(6, OUT, dtype=torch.float64)
    assert torch.allclose(linear(y + low(x)) - linear(y), seen(x))


@pytest.mark.parametrize("weights", [(1.0,), (0.5, -2.0), (0.0, 1.0, 3.0)])
def test_a_weighted_sum_is_exact(weights):
    maps, x = [random_map(seed, r=1 + seed) for seed, _ in enumerate(weights)], inputs(6)
    total = weighted_sum(maps, weights)
    assert len(total.down) == sum(len(low.down) for low in maps)
    assert torch.allclose(total(x), sum(weight * low(x) for low, weight in zip(maps, weights, strict=True)))


def test_every_map_has_a_weight():
    with pytest.raises(ValueError, match="shorter"):
        weighted_sum([random_map(0), random_map(1)], [1.0])


def test_a_difference_keeps_the_rank_where_the_down_projection_is_shared():
    one, other, x = random_map(1), random_map(2), inputs(6)
    shared = LowRank(one.down, one.down_bias, other.up, other.bias)
    assert len(shared.minus(one).down) == 3
    assert torch.allclose(shared.minus(one)(x), shared(x) - one(x))
    assert len(other.minus(one).down) == 6
    assert torch.allclose(other.minus(one)(x), other(x) - one(x))
    moved = LowRank(one.down, one.down_bias + 1, other.up, other.bias)
    assert torch.allclose(moved.minus(one)(x), moved(x) - one(x))


@pytest.mark.parametrize("place", range(4))
def test_equal_is_equal_in_every_tensor(place):
    one, tensors = random_map(1), list(vars(random_map(1)).values())
    assert one.equals(LowRank(*tensors))
    tensors[place] = tensors[place] + 1e-9
    assert not one.equals(LowRank(*tensors))


def test_it_computes_in_the_type_of_its_input():
    low, x = random_map(1), inputs(6)
    assert low(x.float()).dtype == torch.float32
    assert {t.dtype for t in vars(low.to(torch.float32)).values()} == {torch.float32}
    assert torch.allclose(low(x.float()).double(), low(x), atol=1e-5)
