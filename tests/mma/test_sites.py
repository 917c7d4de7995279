"""A wrapped norm alone: what it routes by, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mma import MMAConfig, Site
from mma.routing import RouteState, spread
from mma.sites import ModalitySite, TowerSite, device_of, wrap

CONFIG = MMAConfig(dropout=0.0, temperature=1.0)


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def site() -> ModalitySite:
    """A decoder site of 8 channels with an active adapter of random values."""
    made = ModalitySite(nn.LayerNorm(8), 8, RouteState())
    made.add("a", CONFIG)
    made.active = "a"
    randomise(made.adapters)
    return made


def test_wrap_takes_the_place_of_the_norm():
    model = nn.ModuleDict({"block": nn.ModuleDict({"norm": nn.LayerNorm(8), "other": nn.Linear(8, 8)})})
    norm = model["block"]["norm"]
    wrapper = wrap(model, Site("block.norm", 8, "decoder", "attn"), RouteState())
    assert isinstance(wrapper, ModalitySite)
    assert model["block"]["norm"] is wrapper
    assert wrapper.norm is norm
    x = torch.randn(3, 8)
    assert torch.equal(model["block"]["norm"](x), norm(x))


def test_wrap_in_the_model_itself_and_in_a_tower():
    model = nn.Sequential(nn.LayerNorm(8))
    assert isinstance(wrap(model, Site("0", 8, "tower", "attn"), RouteState()), TowerSite)
    assert isinstance(model[0], TowerSite)


def test_a_site_that_is_not_there():
    with pytest.raises(AttributeError, match="nowhere"):
        wrap(nn.Sequential(nn.LayerNorm(8)), Site("nowhere", 8, "decoder", "attn"), RouteState())


def test_each_token_gets_the_weights_of_its_modality(site):
    x = torch.randn(5, 8)
    modality = torch.tensor([0, 1, 1, 0, 1])
    rows = torch.tensor([0, 1])
    with site._state.use(modality, rows):
        got = site(x)
    normed, adapter = site.norm(x), site.adapters["a"]
    weights = adapter.weights(normed[rows])
    for token in range(5):
        torch.testing.assert_close(got[token], adapter(normed[token], weights[modality[token]]))
    assert torch.equal(site.last_weights, weights)
    site.table["a"] = weights.detach()
    with site._state.use(modality, None):
        torch.testing.assert_close(site(x), got)


def test_a_decoder_site_must_know_the_modalities(site):
    with pytest.raises(RuntimeError, match=r"outside RouteState\.use"):
        site(torch.randn(2, 8))
    site.active = None
    site(torch.randn(2, 8))


def test_an_adapter_that_is_not_at_this_site_changes_nothing(site):
    x = torch.randn(2, 8)
    site.active = "b"
    assert torch.equal(site(x), site.norm(x))
    tower = TowerSite(nn.LayerNorm(8), 8)
    tower.active = "b"
    assert torch.equal(tower(x), tower.norm(x))


@pytest.mark.parametrize("rule", ["token", "modality", "legacy_no_residual"])
def test_a_tower_token_is_routed_without_its_neighbours(rule):
    site = TowerSite(nn.LayerNorm(8), 8)
    site.add("a", MMAConfig(dropout=0.0, tower=rule))
    site.active = "a"
    randomise(site.adapters)
    x = torch.randn(3, 4, 8)
    whole = site(x)
    for picture in range(3):
        for token in range(4):
            torch.testing.assert_close(site(x[picture, token]), whole[picture, token])


def test_use_restores_what_was_there_before():
    state = RouteState()
    one, two = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)

    def fail() -> None:
        with state.use(two, two):
            assert state.current.token_modality is two
            raise ZeroDivisionError

    with state.use(one, None):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert state.current.token_modality is one
    assert state.current is None


def test_spread_gives_every_token_a_row():
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    assert torch.equal(spread(weights, torch.tensor([1, 0, 1])), weights[[1, 0, 1]])


def test_device_of():
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
