"""The joined model: what a sample gives does not depend on its company, and nothing moves but adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens, modality_of
from mma import MMAConfig
from models.build import build_base, build_new

VOCABULARY = 1700


def picture(path: Path) -> Prepared:
    """A picture made from its name."""
    generator = torch.Generator().manual_seed(sum(str(path).encode()))
    return Prepared(torch.randn(1, 3, 16, 16, generator=generator), (16, 16))


def sample(name: str, length: int, *, seen: bool, slots: int = 2) -> Tokens:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    ids = torch.randint(3, VOCABULARY, (length + (slots if seen else 0),), generator=generator).tolist()
    places = tuple(range(1, 1 + slots)) if seen else ()
    for place in places:
        ids[place] = 0
    supervised = [index >= len(ids) - 2 and index not in (0, *places) for index in range(len(ids))]
    images = (Path(f"{name}.png"),) if seen else ()
    marks = (slots,) * len(images)
    return Tokens(name, tuple(ids), tuple(supervised), places, modality_of(images), images, marks)


def batch_of(*samples: Tokens) -> PackedBatch:
    return collate(samples, picture)


companies = st.lists(st.tuples(st.integers(3, 20), st.booleans()), min_size=1, max_size=5)


@pytest.mark.parametrize("tower", ["token", "modality", "none"])
@pytest.mark.parametrize("placement", ["attn", "both"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(company=companies, place=st.integers(0, 5), grad=st.booleans())
def test_a_sample_does_not_depend_on_its_company(tiny_system, tower, placement, company, place, grad):
    model = tiny_system(tower=tower, placement=placement).model
    subject = sample("subject", 9, seen=True)
    others = [sample(f"other{i}", length, seen=seen) for i, (length, seen) in enumerate(company)]
    samples = [*others[:place], subject, *others[place:]]
    with torch.set_grad_enabled(grad):
        alone = model.hidden(batch_of(subject)).detach()
        together = model.hidden(batch_of(*samples)).detach()
    row = together.split([len(s) for s in samples])[samples.index(subject)]
    assert ((row - alone).abs().max() / alone.abs().max()).item() < 1e-5


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(company=companies)
def test_loss_of_a_batch_is_the_sum_of_its_samples(tiny_system, company):
    model = tiny_system().model
    samples = [sample(f"s{i}", length, seen=seen) for i, (length, seen) in enumerate(company)]
    together = model.loss(batch_of(*samples)).item()
    alone = sum(model.loss(batch_of(one)).item() for one in samples)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("tower", ["token", "modality", "none"])
@pytest.mark.parametrize("placement", ["attn", "mlp", "both"])
def test_a_fresh_adapter_changes_nothing(tiny_system, tower, placement):
    """Bit for bit: with the pictures' features equal, fresh adapters leave the base's own logits."""
    model = tiny_system(trained=False, tower=tower, placement=placement).model
    text = batch_of(sample("a", 8, seen=False), sample("b", 5, seen=False))
    pictures = picture(Path("x")).views
    with torch.no_grad():
        fresh, features = model(text), model.tower(pictures)
        with model.adapters.disable_adapter():
            assert torch.equal(model(text), fresh)
            assert torch.equal(model.tower(pictures), features)


def test_a_disabled_adapter_leaves_the_base(tiny_system, tiny_base):
    base, model = build_base(tiny_base).model, tiny_system().model
    batch = batch_of(sample("a", 8, seen=True), sample("b", 5, seen=False))
    with torch.no_grad():
        tuned = model(batch)
        with model.adapters.disable_adapter():
            assert torch.equal(model(batch), base(batch))
        assert torch.equal(model(batch), tuned)
        assert not torch.allclose(tuned, base(batch))


def test_the_tower_is_skipped_without_pictures(tiny_system):
    model = tiny_system().model
    seen = []
    model.tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    with torch.no_grad():
        model(batch_of(sample("a", 8, seen=False)))
        model(batch_of(sample("a", 8, seen=False), sample("b", 8, seen=True)))
    assert seen == [1]


def test_table_and_modality_tokens_agree(tiny_system):
    """The router pass is exact: weights from the table are those of the tokens in the batch."""
    model = tiny_system().model
    batch = batch_of(sample("a", 8, seen=True), sample("b", 5, seen=False))
    by_tokens = model(batch).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(batch), by_tokens, atol=1e-5, rtol=1e-5)


def test_modality_decides_the_route(tiny_system):
    model = tiny_system().model
    routes = model.adapters.routes()
    assert set(routes) == {f"decoder.blocks.{i}.attn_norm" for i in range(2)}
    for weights in routes.values():
        assert weights["text"] != weights["image"]
        assert sum(weights["text"]) == pytest.approx(1, abs=1e-6)


def test_only_declared_parameters_move(tiny_system):
    model = tiny_system(trained=False).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    declared = {id(p) for p in model.adapters.trainable_parameters().values()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    batch = batch_of(sample("a", 8, seen=True), sample("b", 5, seen=False))
    for _ in range(3):  # up-projections start at zero, so what lies behind them moves from the second step
        with torch.no_grad():
            model(batch)
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (id(parameter) in declared), name


def test_bf16_base_trains_fp32_adapters(tiny_base):
    model = build_new(replace(tiny_base, precision="bf16"), MMAConfig(projector_hidden=8)).model
    batch = batch_of(sample("a", 8, seen=True), sample("b", 5, seen=False))
    model.train()
    loss = model.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.decoder.embed.weight.dtype == torch.bfloat16
    grads = {name: p.grad for name, p in model.adapters.trainable_parameters().items()}
    assert all(g is not None and g.dtype == torch.float32 for g in grads.values())
