"""A wrapped norm alone: what it routes by, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mma import BottleneckConfig, LoraConfig, MMAConfig, Site
from mma.routing import Routes, RouteState, spread
from mma.sites import Wrapped, device_of, make_module, replace

CONFIG = MMAConfig(dropout=0.0, temperature=1.0)
NORM = Site("norm", 8, "decoder", "attn", 1, ("q", "k"))
LINEAR = Site("block.q_proj", 8, "decoder", "attn", 1, out=6)


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def wrapped(site: Site, config: MMAConfig) -> Wrapped:
    """A norm of 8 channels with an active adapter of random values."""
    state = RouteState()
    made = Wrapped(nn.LayerNorm(8), state)
    made.adapters["a"] = make_module(site, config, state)
    made.active = "a"
    randomise(made.adapters)
    return made


@pytest.fixture
def site() -> Wrapped:
    return wrapped(NORM, CONFIG)


def test_replace_takes_the_place_of_a_module():
    model = nn.ModuleDict({"block": nn.ModuleDict({"norm": nn.LayerNorm(8), "other": nn.Linear(8, 8)})})
    norm = model["block"]["norm"]
    wrapper = Wrapped(norm, RouteState())
    replace(model, "block.norm", wrapper)
    assert model["block"]["norm"] is wrapper
    x = torch.randn(3, 8)
    assert torch.equal(model["block"]["norm"](x), norm(x))
    top = nn.Sequential(norm)
    replace(top, "0", wrapper)
    assert top[0] is wrapper


def test_a_site_that_is_not_there():
    with pytest.raises(AttributeError, match="nowhere"):
        replace(nn.Sequential(nn.LayerNorm(8)), "nowhere.norm", nn.Identity())


def test_a_wrapper_can_be_asked_what_its_module_has():
    wrapper = Wrapped(nn.Linear(8, 6), RouteState())
    assert wrapper.weight is wrapper.base.weight
    assert wrapper.out_features == 6
    with pytest.raises(AttributeError, match="nothing"):
        _ = wrapper.nothing


def test_each_token_gets_the_weights_of_its_modality(site):
    x = torch.randn(5, 8)
    modality = torch.tensor([0, 1, 1, 0, 1])
    rows = torch.tensor([0, 1])
    with site._state.use(Routes(modality, rows)):
        got = site(x)
    normed, adapter = site.base(x), site.adapters["a"]
    weights = adapter.weights(normed[rows])
    for token in range(5):
        wanted = normed[token] + adapter.folded(weights[modality[token]])(normed[token])
        torch.testing.assert_close(got[token], wanted)
    assert torch.equal(adapter.seen, weights)
    adapter.table = weights.detach()
    with site._state.use(Routes(modality)):
        torch.testing.assert_close(site(x), got)
    with site._state.use(Routes(modality, held=True)):
        torch.testing.assert_close(site(x), got)
    rows_of_tokens = torch.stack([x, x])
    with site._state.use(Routes(torch.tensor([[0], [1]]))):
        got = site(rows_of_tokens)
    for modality in (0, 1):
        with site._state.use(Routes(torch.full((5,), modality))):
            torch.testing.assert_close(site(x), got[modality])


def test_a_decoder_site_must_know_the_modalities(site):
    with pytest.raises(RuntimeError, match="without saying what its tokens carry"):
        site(torch.randn(2, 8))
    site.active = None
    site(torch.randn(2, 8))


@pytest.mark.parametrize("rule", ["token", "modality", "legacy_no_residual"])
def test_a_tower_token_is_routed_without_its_neighbours(rule):
    site = wrapped(Site("norm", 8, "tower", "attn"), MMAConfig(dropout=0.0, tower=rule))
    x = torch.randn(3, 4, 8)
    whole = site(x)
    for picture in range(3):
        for token in range(4):
            torch.testing.assert_close(site(x[picture, token]), whole[picture, token])


@pytest.mark.parametrize("kind", [MMAConfig, BottleneckConfig])
def test_settings_choose_among_norms(kind):
    def made(role: str, part: str = "decoder", **settings: object) -> bool:
        return make_module(Site("n", 8, part, role, 1), kind(**settings), RouteState()) is not None

    assert made("attn", placement="attn")
    assert not made("mlp", placement="attn")
    assert made("mlp", placement="both")
    assert made("both", placement="mlp")  # a norm that attention and MLP share
    assert made("attn", layers=(0, 1))
    assert not made("attn", layers=(0, 2))
    assert made("attn", "tower", layers=(0,))
    assert not made("mlp", "tower")
    assert made("mlp", "tower", tower_placement="mlp")
    off = {"tower": "none"} if kind is MMAConfig else {"tower_placement": "none"}
    assert not made("attn", "tower", **off)
    assert make_module(LINEAR, kind(), RouteState()) is None


def test_lora_chooses_among_linear_layers():
    def made(**settings: object) -> bool:
        return make_module(LINEAR, LoraConfig(**settings), RouteState()) is not None

    assert made()
    assert not made(placement="mlp")
    assert made(placement="mlp", targets=("q_proj",))
    assert not made(targets=("v_proj",))
    assert not made(targets=("q_proj",), layers=(0,))
    assert make_module(NORM, LoraConfig(), RouteState()) is None
    tower = Site("tower.q_proj", 8, "tower", "attn", 1, out=6)
    assert make_module(tower, LoraConfig(), RouteState()) is None
    assert make_module(tower, LoraConfig(tower_placement="attn"), RouteState()) is not None


def test_use_restores_what_was_there_before():
    state = RouteState()
    one, two = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)

    def fail() -> None:
        with state.use(Routes(two, two)):
            assert state.current.token_modality is two
            raise ZeroDivisionError

    with state.use(Routes(one)):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert state.current.token_modality is one
    assert state.current is None


def test_spread_gives_every_token_a_row():
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    assert torch.equal(spread(weights, torch.tensor([1, 0, 1])), weights[[1, 0, 1]])
    assert torch.equal(spread(weights, torch.tensor([[1], [0]])), weights[[1, 0]][:, None])


def test_device_of():
    cpu = torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta"), cpu) == torch.device("meta")
    assert device_of(nn.Identity(), cpu) == cpu
