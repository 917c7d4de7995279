"""One adapter equals its formula written out slowly, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mma.adapter import (
    ACTIVATIONS,
    Bottleneck,
    Mixture,
    ModalityRouted,
    TokenRouted,
    UnroutedReplacement,
    VectorRouted,
)
from mma.config import BottleneckConfig, MMAConfig
from mma.errors import AdapterError
from mma.routing import Routes, RouteState


def softmax(logits: list[Tensor]) -> list[Tensor]:
    exponents = [torch.exp(x) for x in logits]
    return [x / sum(exponents) for x in exponents]


def plain_update(adapter: Mixture, x: Tensor, weights: list[Tensor]) -> Tensor:
    """sum_k w_k (B_k z + b_k) for one token x float[C], channel by channel."""
    channels, routes = len(x), len(weights)
    r, groups = len(adapter.down.bias), adapter.groups
    z = [
        adapter.down.bias[j] + sum(adapter.down.weight[j, c] * x[c] for c in range(channels))
        for j in range(r)
    ]
    per_group, width = channels // groups, r // groups
    out = []
    for channel in range(channels):
        group = channel // per_group  # the channels of group g read the g-th part of the bottleneck
        total = torch.zeros((), dtype=x.dtype)
        for route in range(routes):
            value = adapter.up_bias[route * channels + channel]
            for j in range(width):
                value = value + adapter.up[route, channel, j] * z[group * width + j]
            total = total + weights[route] * value
        out.append(total)
    return torch.stack(out)


def randomise(adapter: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def routed(channels: int, config: MMAConfig) -> ModalityRouted:
    return ModalityRouted(channels, config, RouteState())


class ByTable(torch.nn.Module):
    """The routed adapter with weights float[..., K] of its own for every token."""

    def __init__(self, adapter: ModalityRouted) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        self.adapter.table = weights.reshape(-1, weights.shape[-1])
        return self.adapter(x, x, Routes(torch.arange(x[..., 0].numel()).view(x.shape[:-1])))


@st.composite
def shapes(draw):
    groups = draw(st.integers(1, 3))
    config = MMAConfig(
        r=groups * draw(st.integers(1, 3)),
        groups=groups,
        routes=draw(st.integers(1, 3)),
        scale=draw(st.sampled_from([1.0, 0.5, -2.0])),
        temperature=draw(st.sampled_from([1.0, 10.0])),
        dropout=0.0,
    )
    return config, groups * draw(st.integers(1, 4)), draw(st.integers(0, 99))


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), leading=st.sampled_from([(3,), (2, 2), (0,), ()]))
def test_it_equals_the_formula(shape, leading):
    config, channels, seed = shape
    adapter = routed(channels, config).double()
    randomise(adapter, seed)
    x = torch.randn(*leading, channels, dtype=torch.float64)
    weights = torch.rand(*leading, config.routes, dtype=torch.float64)
    wanted = [
        token + config.scale * plain_update(adapter, token, list(weight))
        for token, weight in zip(x.view(-1, channels), weights.view(-1, config.routes), strict=True)
    ]
    got = ByTable(adapter)(x, weights)
    assert got.shape == x.shape
    if wanted:
        torch.testing.assert_close(got, torch.stack(wanted).view(x.shape), atol=1e-12, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(shape=shapes())
def test_the_router_is_a_softmax_at_a_temperature(shape):
    config, channels, seed = shape
    adapter = routed(channels, config)
    randomise(adapter, seed)
    m = torch.randn(channels)
    logits = [
        (adapter.router.bias[k] + sum(adapter.router.weight[k, c] * m[c] for c in range(channels)))
        / config.temperature
        for k in range(config.routes)
    ]
    torch.testing.assert_close(adapter.weights(m), torch.stack(softmax(logits)), atol=1e-6, rtol=1e-5)


def test_one_learned_vector_routes_every_token_alike():
    config = MMAConfig(r=4, routes=3, dropout=0.0, temperature=2.0, scale=0.5)
    adapter = VectorRouted(6, config)
    randomise(adapter, 1)
    x = torch.randn(2, 6)
    weights = softmax([logit / 2.0 for logit in adapter.route_logits])
    wanted = torch.stack([token + 0.5 * plain_update(adapter, token, weights) for token in x])
    torch.testing.assert_close(adapter(x, x, None), wanted, atol=1e-5, rtol=1e-5)


def test_the_legacy_kind_replaces_its_input():
    """As the public code does it: no residual, no scale, one path."""
    adapter = UnroutedReplacement(6, MMAConfig(r=4, dropout=0.0, scale=0.5, tower="legacy_no_residual"))
    assert torch.equal(adapter(torch.randn(2, 6), torch.randn(2, 6), None), torch.zeros(2, 6))
    randomise(adapter, 2)
    x = torch.randn(2, 6)
    wanted = torch.stack([plain_update(adapter, token, [torch.tensor(1.0)]) for token in x])
    torch.testing.assert_close(adapter(x, x, None), wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=5, deadline=None)
@given(shape=shapes())
def test_gradients_by_finite_differences(shape):
    config, channels, seed = shape
    adapter = routed(channels, config).double()
    randomise(adapter, seed)
    names = [name for name, _ in adapter.named_parameters() if not name.startswith("router.")]

    def run(x: Tensor, weights: Tensor, *tensors: Tensor) -> Tensor:
        given = {f"adapter.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
        return torch.func.functional_call(ByTable(adapter), given, (x, weights))

    x = torch.randn(3, channels, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, config.routes, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, weights, *(adapter.get_parameter(name) for name in names)))


def test_gradients_of_the_router():
    """The weights are kept in fp32, too coarse for finite differences: compared with the plain softmax."""
    config = MMAConfig(r=4, routes=3, dropout=0.0, temperature=2.0)
    adapter = routed(6, config)
    randomise(adapter, 3)
    m, towards = torch.randn(6, requires_grad=True), torch.randn(3)
    trained = (adapter.router.weight, adapter.router.bias, m)
    got = torch.autograd.grad((adapter.weights(m) * towards).sum(), trained)
    logits = (adapter.router.weight * m).sum(1) / 2.0 + adapter.router.bias / 2.0
    wanted = torch.autograd.grad((torch.stack(softmax(list(logits))) * towards).sum(), trained)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    vector = VectorRouted(6, config)
    randomise(vector, 4)
    vector(torch.randn(2, 6), torch.randn(2, 6), None).sum().backward()
    assert vector.route_logits.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_the_identity(kind):
    config = MMAConfig(dropout=0.5)
    x = torch.randn(5, 16).to(kind)
    mixture, vector = routed(16, config), VectorRouted(16, config)
    got = ByTable(mixture)(x, mixture.weights(x))
    assert torch.equal(got, x)
    assert torch.equal(vector(x, x, None), x)
    assert torch.equal(Bottleneck(16, BottleneckConfig(dropout=0.5))(x, x, None), x)
    assert got.dtype == kind
    assert mixture.weights(x).dtype == torch.float32


def test_dropout_acts_in_training_only():
    adapter = routed(16, MMAConfig(dropout=0.5))
    randomise(adapter, 5)
    x = torch.randn(5, 16)
    weights = adapter.weights(x)
    run = ByTable(adapter)
    assert not torch.equal(run(x, weights), run(x, weights))
    run.eval()
    assert torch.equal(run(x, weights), run(x, weights))


@pytest.mark.parametrize("channels", [16, 1024, 4096])
def test_parameter_counts(channels):
    """8d + 8 down, 2 (4d + d) up, 2d + 2 router; the legacy kind has one path and no router."""

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        assert count(routed(channels, MMAConfig())) == 20 * channels + 10
        assert count(UnroutedReplacement(channels, MMAConfig())) == 13 * channels + 8
        assert count(VectorRouted(channels, MMAConfig())) == 18 * channels + 10


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_the_plain_bottleneck(activation):
    adapter = Bottleneck(6, BottleneckConfig(r=4, dropout=0.0, scale=0.5, activation=activation))
    randomise(adapter, 6)
    y = torch.randn(2, 3, 6)
    z = y @ adapter.down.weight.T + adapter.down.bias
    z = {
        "none": z,
        "relu": z.clamp(min=0),
        "silu": z / (1 + torch.exp(-z)),
        "gelu": z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    }[activation]
    wanted = y + 0.5 * (z @ adapter.up[0].T + adapter.up_bias)
    torch.testing.assert_close(adapter(torch.randn(9), y, None), wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(shape=shapes())
def test_folded_is_what_it_adds(shape):
    config, channels, seed = shape
    x = torch.randn(5, channels, dtype=torch.float64)
    mixture = routed(channels, config).double()
    randomise(mixture, seed)
    table = torch.rand(2, config.routes, dtype=torch.float64)
    for modality in range(2):
        got = ByTable(mixture)(x, table[modality].expand(5, -1))
        mixture.table = table
        torch.testing.assert_close(x + mixture.fold(modality)(x), got)
    vector = VectorRouted(channels, config).double()
    bottleneck = Bottleneck(channels, BottleneckConfig(r=3, dropout=0.0, scale=0.3)).double()
    for adapter in (vector, bottleneck):
        randomise(adapter, seed)
        torch.testing.assert_close(x + adapter.fold(0)(x), adapter(x, x, None), atol=1e-6, rtol=1e-6)


def test_what_cannot_be_folded_says_why():
    with pytest.raises(AdapterError, match="activation 'relu' is not linear, .* activation: none"):
        Bottleneck(4, BottleneckConfig(activation="relu")).fold(0)
    with pytest.raises(AdapterError, match="'legacy_no_residual' replaces its input"):
        UnroutedReplacement(4, MMAConfig()).fold(0)
    with pytest.raises(AdapterError, match="rule 'token' routes every picture token by itself"):
        TokenRouted(4, MMAConfig()).fold(0)


def test_biases_are_flat():
    """Weight decay goes by the number of axes, so that no bias may have two."""
    adapter = routed(16, MMAConfig(routes=3))
    flat = {name for name, parameter in adapter.named_parameters() if parameter.ndim == 1}
    assert flat == {"down.bias", "up_bias", "router.bias"}


def test_channels_must_divide_into_groups():
    with pytest.raises(AdapterError, match="10 channels do not divide into 4 groups"):
        routed(10, MMAConfig(groups=4))


def test_route_weights_sum_to_one():
    weights = routed(16, MMAConfig(routes=4)).weights(torch.randn(7, 16))
    assert torch.allclose(weights.sum(-1), torch.ones(7))
    assert math.isclose(weights.min().item(), weights.min().clamp(0, 1).item())
