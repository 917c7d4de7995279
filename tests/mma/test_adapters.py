"""Named adapters on one frozen model: choosing, switching off, declaring what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mma import AdapterError, MMAConfig


def logits(model, batch):
    with torch.no_grad():
        return model(batch)


def config(**settings) -> MMAConfig:
    return MMAConfig(**{"dropout": 0.0, "temperature": 1.0, "projector_hidden": 8, **settings})


def shake(adapters, seed: int) -> None:
    """Random values in every trained tensor of the active adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def test_two_adapters_on_one_model(tiny_system, batch):
    model = tiny_system().model
    first = logits(model, batch)
    model.adapters.add_adapter("other", config(r=4, placement="both", tower="modality"))
    shake(model.adapters, 1)
    other = logits(model, batch)
    assert model.adapters.names == ("default", "other")
    assert not torch.allclose(first, other)
    model.adapters.set_adapter("default")
    assert model.adapters.active == "default"
    assert torch.equal(logits(model, batch), first)
    model.adapters.set_adapter("other")
    assert torch.equal(logits(model, batch), other)


def test_the_chosen_adapter_is_the_one_that_is_trained(tiny_system):
    model = tiny_system().model
    model.adapters.add_adapter("other", config())
    for name in ("default", "other"):
        model.adapters.set_adapter(name)
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert trained == {id(p) for p in model.adapters.trainable_parameters(name).values()}


def test_disable_adapter_restores_after_an_exception(tiny_system, batch):
    model = tiny_system().model
    before = logits(model, batch)

    def fail() -> None:
        with model.adapters.disable_adapter():
            assert model.adapters.active is None
            assert not torch.allclose(logits(model, batch), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.adapters.active == "default"
    assert torch.equal(logits(model, batch), before)


def test_disable_adapter_can_be_nested(tiny_system, batch):
    model = tiny_system().model
    before = logits(model, batch)
    with model.adapters.disable_adapter():
        bare = logits(model, batch)
        with model.adapters.disable_adapter():
            assert torch.equal(logits(model, batch), bare)
        assert torch.equal(logits(model, batch), bare)
    assert torch.equal(logits(model, batch), before)


def test_names_are_checked(tiny_system):
    adapters = tiny_system().model.adapters
    with pytest.raises(AdapterError, match="already one named 'default'; choose another name"):
        adapters.add_adapter("default", config())
    for name in ("a.b", ""):
        with pytest.raises(AdapterError, match=f"{name!r} is not a name"):
            adapters.add_adapter(name, config())
    for ask in (adapters.set_adapter, adapters.trainable_parameters):
        with pytest.raises(AdapterError, match=r"none named 'x'; held are \['default'\]"):
            ask("x")


def test_without_an_active_adapter_there_is_nothing_to_ask(tiny_system, tmp_path):
    adapters = tiny_system().model.adapters
    with adapters.disable_adapter():
        for ask in (adapters.report, adapters.routes, lambda: adapters.config, adapters.trainable_parameters):
            with pytest.raises(AdapterError, match="none is active; add, load or set one first"):
                ask()
        with pytest.raises(AdapterError, match="none is active"):
            adapters.save_pretrained(tmp_path / "adapter")
        assert adapters.part("projector") is None
    assert not list(tmp_path.iterdir())


def test_it_is_no_layer(tiny_system):
    with pytest.raises(RuntimeError, match="not a layer"):
        tiny_system().model.adapters(torch.zeros(1))


def test_an_undeclared_parameter_is_an_error(tiny_system):
    model = tiny_system().model
    model.extra = nn.Linear(2, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(AdapterError, match=r"parameter extra\.weight is neither base nor declared"):
        model.adapters.freeze()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    with pytest.raises(AdapterError, match=r"extra\.weight"):
        model.adapters.add_adapter("other", config())
    assert model.adapters.names == ("default",)
    assert model.adapters.active == "default"
    assert not any(".other." in name for name, _ in model.named_parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_a_width_that_does_not_divide_is_refused_whole(tiny_system):
    adapters = tiny_system().model.adapters
    with pytest.raises(AdapterError, match="32 channels do not divide into 3 groups"):
        adapters.add_adapter("thirds", config(r=9, groups=3))
    assert adapters.names == ("default",)
    assert all(p.requires_grad for p in adapters.trainable_parameters().values())
    adapters.add_adapter("thirds", config())


@pytest.mark.parametrize("placement", ["attn", "mlp", "both"])
@pytest.mark.parametrize("tower", ["token", "modality", "none", "legacy_no_residual"])
def test_the_report_names_every_site_and_sums_up(tiny_system, placement, tower):
    model = tiny_system(placement=placement, tower=tower).model
    report = model.adapters.report()
    trained = model.adapters.trainable_parameters()
    assert sum(line.parameters for line in report) == sum(p.numel() for p in trained.values())
    assert sum(line.parameters for line in report) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    roles = ("attn", "mlp") if placement == "both" else (placement,)
    decoder = [f"decoder.blocks.{i}.{role}_norm" for i in range(2) for role in roles]
    pictures = [f"tower.visual.transformer.resblocks.{i}.ln_1" for i in range(4) if tower != "none"]
    assert [line.name for line in report] == [*decoder, *pictures, "projector", "modality"]
    assert {line.channels for line in report} == {32, None}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("placement", ["attn", "both"])
@pytest.mark.parametrize("tower", ["token", "modality", "none", "legacy_no_residual"])
def test_one_step_moves_every_declared_tensor_and_nothing_else(tiny_system, batch, tower, placement, fresh):
    """Also after an evaluation: what it kept must not stand in the way of gradients."""
    model = tiny_system(tower=tower, placement=placement).model
    if fresh:
        logits(model, batch)
        model.adapters.routes()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = model.adapters.trainable_parameters()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1, weight_decay=0.0)
    model.train()
    model.loss(batch).backward()
    optimizer.step()
    declared = {id(p) for p in trained.values()}
    for name, parameter in model.named_parameters():
        if id(parameter) in declared:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            assert not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("evaluated", ["never", "before backward", "before step"])
@pytest.mark.parametrize("cleared", [True, False])
@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}], ids=["plain", "foreach", "fused"])
def test_the_routing_table_follows_an_optimizer_step(tiny_system, batch, kind, cleared, evaluated):
    """Also a fused one, which leaves the versions of the tensors as they were."""
    model = tiny_system().model
    stale = logits(model, batch)
    table = model.adapters.routes()
    optimizer = torch.optim.AdamW(model.adapters.trainable_parameters().values(), lr=0.1, **kind)
    loss = model.loss(batch)
    if evaluated == "before backward":
        logits(model, batch)
    loss.backward()
    if evaluated == "before step":
        logits(model, batch)
    optimizer.step()
    if cleared:
        optimizer.zero_grad()
    by_table = logits(model, batch)
    assert model.adapters.routes() != table
    assert not torch.allclose(by_table, stale)
    torch.testing.assert_close(by_table, model(batch).detach(), atol=1e-5, rtol=1e-5)


def test_the_routing_table_follows_a_load(tiny_system, batch, tmp_path):
    model = tiny_system().model
    model.adapters.save_pretrained(tmp_path / "adapter")
    wanted, table = logits(model, batch), model.adapters.routes()
    shake(model.adapters, 2)
    assert model.adapters.routes() != table
    model.adapters.load_adapter(tmp_path / "adapter", "loaded")
    assert model.adapters.routes() == table
    assert torch.equal(logits(model, batch), wanted)


def test_the_router_pass_is_run_once(tiny_system, batch, monkeypatch):
    model = tiny_system().model
    model.loss(batch).backward()
    model.zero_grad()
    passes = []
    run = model.adapters._tables._router_pass
    monkeypatch.setattr(model.adapters._tables, "_router_pass", lambda: passes.append(run()))
    for _ in range(3):
        logits(model, batch)
    assert len(passes) == 1


def test_each_adapter_has_its_own_table(tiny_system):
    adapters = tiny_system().model.adapters
    first = adapters.routes()
    adapters.add_adapter("other", config(routes=3, modalities=("text", "image", "audio")))
    shake(adapters, 3)
    other = adapters.routes()
    assert {len(weights) for weights in next(iter(other.values())).values()} == {3}
    assert list(next(iter(other.values()))) == ["text", "image", "audio"]
    adapters.set_adapter("default")
    assert adapters.routes() == first


@pytest.mark.parametrize("placement", ["attn", "mlp", "both"])
def test_routes_sum_to_one_at_every_decoder_site(tiny_system, placement):
    model = tiny_system(placement=placement, routes=3).model
    model.train()
    routes = model.adapters.routes()
    assert model.training
    assert len(routes) == {"attn": 2, "mlp": 2, "both": 4}[placement]
    for by_modality in routes.values():
        assert list(by_modality) == ["text", "image"]
        for weights in by_modality.values():
            assert sum(weights) == pytest.approx(1.0, abs=1e-6)


def test_a_failed_router_pass_leaves_the_training_mode(tiny_system, monkeypatch):
    model = tiny_system().model
    model.train()
    monkeypatch.setattr(model.decoder, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.adapters.routes()
    assert model.training
