"""Every saving gives the loss and the gradients of the plain path: alone, and together."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from models.attention import PackedAttention
from models.loss import cross_entropy
from models.multimodal import MultimodalLM
from tests.models.test_multimodal import batch_of, sample

BATCH = (
    sample("a", 9, seen=True),
    sample("b", 20, seen=False),
    sample("c", 1, seen=True),
    sample("d", 13, seen=False),
)


def plain_loss(model: MultimodalLM, batch) -> Tensor:
    """All tokens through all blocks, all logits at once."""
    hidden = model.hidden(batch).index_select(0, batch.sources)
    return functional.cross_entropy(model.logits(hidden), batch.targets, reduction="sum")


def gradients(model: MultimodalLM, loss_of) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(5)  # of the dropout
    model.zero_grad()
    loss = loss_of(model, batch_of(*BATCH))
    loss.backward()
    trained = model.adapters.trainable_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


def agree(model: MultimodalLM, bound: float = 1e-5) -> None:
    model.checkpointing = "none"
    dropped = getattr(model.adapters.config, "dropout", 0) > 0  # other masks where fewer tokens come by
    wanted, expected = gradients(model, type(model).loss if dropped else plain_loss)
    for kind in ("none", "selective", "full"):
        model.checkpointing = kind
        loss, found = gradients(model, lambda model, batch: model.loss(batch))
        assert loss == pytest.approx(wanted, rel=bound)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = max(1.0, gradient.abs().max().item())
            assert (found[name] - gradient).abs().max() <= bound * scale, (kind, name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"placement": "both"},
        {"placement": "both", "dropout": 0.3},
        {"placement": "mlp", "tower": "modality", "dropout": 0.2},
        {"tuned": ("decoder.norm", "decoder.head")},
        {"tuned": ("decoder.blocks.1",)},
    ],
)
def test_every_saving_gives_the_gradients_of_the_plain_path(tiny_system, settings):
    model = tiny_system(**settings).model.train()
    agree(model)


def test_only_what_is_read_leaves_the_last_block(tiny_system):
    model = tiny_system().model
    rows: list[int] = []
    model.decoder.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    batch = batch_of(*BATCH)
    model.train().loss(batch)
    assert rows == [len(batch.targets) + 2]  # and the two modality tokens, which the last sites read
    with torch.no_grad():
        model.eval()(batch)
    assert rows[-1] == len(batch.targets)


def kept(model: MultimodalLM) -> int:
    """Numbers that autograd keeps while the loss is computed."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = model.loss(batch_of(*BATCH))
    assert loss.requires_grad
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for where, size in sizes.items() if where not in owned)


def test_each_kind_keeps_less_than_the_one_before(tiny_system):
    model = tiny_system().model.train()
    amounts = []
    for model.checkpointing in ("none", "selective", "full"):
        amounts.append(kept(model))
    assert amounts[0] > 1.1 * amounts[1] > 1.1 * 1.1 * amounts[2]


@contextmanager
def chunks_of(rows: int, vocabulary: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.loss.CHUNK_BYTES", 4 * vocabulary * rows)
        yield


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 7, 50])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_in_chunks_is_that_of_all_logits(kind, rows, trained, bias):
    torch.manual_seed(0)
    head = nn.Linear(12, 40, bias=bias).to(kind).requires_grad_(trained)
    targets = torch.randint(0, 40, (7,))
    start = (4 * torch.randn(7, 12)).to(kind)
    found = []
    for one_by_one in (False, True):
        head.zero_grad()
        hidden = start.clone().requires_grad_()
        if one_by_one:
            with chunks_of(rows, 40):
                loss = cross_entropy(hidden, head, targets)
        else:
            loss = functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
        (loss / 1000).backward()  # no power of two: bf16 must not round it for all
        found.append([loss.detach(), hidden.grad, *(p.grad for p in head.parameters() if trained)])
    bound = 1e-5 if kind == torch.float32 else 2e-2
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=bound * b.abs().max().item(), rtol=bound)
    along = (found[1][1].double() * found[0][1].double()).sum() / found[0][1].double().square().sum()
    assert along.item() == pytest.approx(1, abs=1e-5 if kind == torch.float32 else 1.5e-3)


def test_no_logits_of_all_positions_exist():
    """Wider than a chunk: the largest tensor that is made has a chunk's rows."""
    head = nn.Linear(8, 1000, bias=False).requires_grad_(False)
    hidden = torch.randn(64, 8, requires_grad=True)
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(
                x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)
            )
            return out

    with chunks_of(4, 1000), Watch():
        cross_entropy(hidden, head, torch.zeros(64, dtype=torch.long)).backward()
    assert max(size for size in largest if size != head.weight.numel()) == 4 * 1000


def test_no_supervised_position_is_a_loss_of_zero():
    head = nn.Linear(8, 10, bias=False)
    for trained in (False, True):
        hidden = torch.randn(0, 8, requires_grad=True)
        loss = cross_entropy(hidden, head.requires_grad_(trained), torch.empty(0, dtype=torch.long))
        loss.backward()
        assert loss.item() == 0


def test_segments_of_one_token_see_themselves():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, 8).unbind(0)
    mixed = PackedAttention([1, 2, 1])(0, q, k, v)
    torch.testing.assert_close(mixed[0], v[0])
    torch.testing.assert_close(mixed[3], v[3])
    torch.testing.assert_close(mixed[1], v[1])
