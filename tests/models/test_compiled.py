"""Compiled blocks give loss and gradients of the others, without a break or a new graph for every batch."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from models.compiled import compile_blocks
from tests.models.test_multimodal import batch_of, sample

# The compiler looks at the gradient of its example inputs, leaves or not.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def of(model, batch):
    model.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    trained = model.adapters.trainable_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


def same(found, wanted) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = max(1.0, gradient.abs().max().item())
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("none", {}), ("selective", {"placement": "both", "tower": "modality"}), ("full", {"tower": "none"})],
)
def test_the_gradients_are_those_of_the_plain_blocks(tiny_system, kind, settings):
    plain, compiled = (tiny_system(dropout=0.0, **settings).model.train() for _ in range(2))
    compiled.checkpointing = kind
    compile_blocks(compiled, "aot_eager")
    batches = [
        batch_of(sample("a", 9, seen=True), sample("b", 20, seen=False), sample("c", 5, seen=True)),
        batch_of(sample("d", 31, seen=True), sample("e", 4, seen=True)),
    ]
    for batch in batches:
        same(of(compiled, batch), of(plain, batch))
    graphs = counters["stats"]["unique_graphs"]
    for length in (6, 17, 40):  # other lengths, other numbers of samples and pictures
        others = [sample(f"s{i}", length + i, seen=i > 0) for i in range(length % 5 + 3)]
        same(of(compiled, batch_of(*others)), of(plain, batch_of(*others)))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize("part", ["tower.last1", "decoder.blocks.1"])
def test_training_and_evaluation_share_a_model(tiny_system, part):
    """A trained part, a first picture alone, no gradients: each asks for graphs of the same code."""
    plain, compiled = (tiny_system(dropout=0.0, tuned=(part,)).model for _ in range(2))
    compile_blocks(compiled, "aot_eager")
    several = batch_of(sample("a", 9, seen=True), sample("b", 20, seen=False), sample("c", 5, seen=True))
    alone = batch_of(sample("d", 7, seen=True))
    for _ in range(2):
        same(of(compiled.train(), several), of(plain.train(), several))
        same(of(compiled, alone), of(plain, alone))
        for batch in (several, alone):
            with torch.no_grad():
                found, wanted = compiled.eval()(batch), plain.eval()(batch)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_answers_are_those_of_the_plain_blocks(tiny_system):
    plain, compiled = (tiny_system().model.eval() for _ in range(2))
    compile_blocks(compiled, "aot_eager")
    batch = batch_of(sample("a", 9, seen=True), sample("b", 20, seen=False))
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), plain(batch), atol=1e-5, rtol=1e-5)
