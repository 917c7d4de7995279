"""When the device's memory is full: one line that names the part, and the settings that would help."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function

from tests.models.test_multimodal import batch_of, sample
from tests.training.toy import toy_optim, toy_task
from training.errors import RunError
from training.loop import train
from training.out_of_memory import out_of_memory
from training.settings import RunSettings


def full(*_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


class FullBackward(Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return full()


def cross_entropy(*_: object) -> torch.Tensor:
    return full()


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("the forward pass", "loss"),
        ("the logits of the loss", "cross_entropy"),
        ("the backward pass", "backward"),
        ("the optimizer", "step"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "more"), [("none", "selective or full"), ("selective", "full"), ("full", None)]
)
def test_the_part_and_the_settings_are_named(tmp_path, monkeypatch, part, where, kind, more):
    task = toy_task(validate=False)
    plain = type(task.model).loss
    if where == "step":
        monkeypatch.setattr(torch.optim.AdamW, "step", step)
    else:
        instead = {
            "loss": full,
            "cross_entropy": cross_entropy,
            "backward": lambda batch: FullBackward.apply(plain(task.model, batch)),
        }[where]
        monkeypatch.setattr(task.model, "loss", instead if where != "loss" else forward_of(instead))
    with pytest.raises(
        RunError, match=f"too small for {part} in step 1: lower optim.tokens_per_batch"
    ) as error:
        train(task, toy_optim(epochs=3, checkpointing=kind), RunSettings(tmp_path / "run"))
    assert (f"set optim.checkpointing to {more}," in str(error.value)) == (more is not None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["none", "full"])
@pytest.mark.parametrize(
    ("where", "part", "again"),
    [
        ("decoder.blocks.0.attn.k_proj", "the forward pass", "the backward pass"),
        ("tower", "the pictures", "the pictures"),
    ],
)
def test_a_real_model_is_told_apart_too(tiny_system, where, part, again, kind):
    """With `full` a block fails when it is computed again."""
    model = tiny_system().model.train()
    model.checkpointing = kind
    calls = [0]

    def run_out(*_: object) -> None:
        calls[0] += 1
        if where == "tower" or kind == "none" or calls[0] == 2:
            full()

    model.get_submodule(where).register_forward_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError) as error:
        model.loss(batch_of(sample("a", 9, seen=True))).backward()
    wanted = again if kind == "full" else part
    assert f"too small for {wanted} in step 3" in out_of_memory(error.value, 3, toy_optim())


def forward_of(raises):
    def loss(batch):
        return raises(batch)

    return loss


def step(*_: object, **__: object) -> None:
    full()
