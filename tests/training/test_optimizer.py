"""The schedule, the groups of AdamW, and its state as tensors."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import Parameter

from finetune.plan import plan
from finetune.recipe import reader
from tests.training.toy import ToyModel, batch_of, batches_of_step, toy_optim, toy_task
from training import optimizer as optimizers
from training.batches import passes
from training.errors import RunError
from training.loop import train
from training.optimizer import (
    average_bytes,
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    moving,
    optimizer_tensors,
    set_rate,
)
from training.settings import OptimSettings, RunSettings
from training.step import accumulate, train_step


def test_schedule_is_that_of_the_published_training():
    expected = [9e-3 * (step + 1) / 5 for step in range(5)]
    expected += [9e-3 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15)) for step in range(5, 20)]
    got = [learning_rate(step, peak=9e-3, floor=0.0, warmup=5, steps=20) for step in range(20)]
    assert got == pytest.approx(expected, rel=1e-14)


def test_schedule_ends_at_the_floor_and_needs_no_warmup():
    assert learning_rate(0, peak=1.0, floor=0.1, warmup=0, steps=10) == 1.0
    assert learning_rate(10, peak=1.0, floor=0.1, warmup=0, steps=10) == pytest.approx(0.1)


def test_warmup_in_epochs_may_be_a_fraction_and_steps_take_precedence():
    assert OptimSettings(warmup=0.2).warmup_length(steps_per_epoch=10) == 2
    assert OptimSettings(warmup_steps=7).warmup_length(steps_per_epoch=10) == 7
    assert OptimSettings(epochs=3).steps(10) == 30
    assert OptimSettings(max_steps=4).steps(10) == 4


def test_one_dimensional_parameters_do_not_decay():
    trainables = {"matrix": Parameter(torch.ones(2, 2)), "vector": Parameter(torch.ones(2))}
    optimizer = make_optimizer(trainables, OptimSettings(lr=0.1, weight_decay=0.5))
    for parameter in trainables.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(trainables["vector"], torch.ones(2))
    assert torch.allclose(trainables["matrix"], torch.full((2, 2), 0.95))


def test_state_is_the_same_after_a_round_trip():
    task = toy_task()
    optimizer = make_optimizer(task.trainables, toy_optim())
    for step in range(3):
        train_step(
            task.model,
            task.trainables,
            optimizer,
            passes(task.batches_of_step(step)),
            step=step,
            device=task.device,
        )
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(task.trainables, optimizer).items()}
    other = make_optimizer(task.trainables, toy_optim())
    load_optimizer_tensors(tensors, task.trainables, other)
    again = optimizer_tensors(task.trainables, other)
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert len(tensors) == 3 * len(task.trainables)


def test_state_of_another_model_is_refused():
    task = toy_task()
    with pytest.raises(RunError, match="optimizer tensor of 'router'"):
        load_optimizer_tensors(
            {"router|exp_avg": torch.zeros(1)}, task.trainables, make_optimizer(task.trainables, toy_optim())
        )


def test_trained_parameters_must_be_float32():
    with pytest.raises(AssertionError, match="float32"):
        make_optimizer({"a": Parameter(torch.ones(2, dtype=torch.bfloat16))}, OptimSettings())


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_gradient_does_not_depend_on_the_packing(groups):
    task = toy_task()
    indices = [3, 1, 4, 15, 9]
    accumulate(task.model, task.trainables, passes([batch_of(indices)]), step=1, device=task.device)
    whole = {name: p.grad.clone() for name, p in task.trainables.items() if p.grad is not None}
    for parameter in task.trainables.values():
        parameter.grad = None
    parts = [batch_of(indices[start::groups]) for start in range(groups)]
    accumulate(task.model, task.trainables, passes(parts), step=1, device=task.device)
    for name, gradient in whole.items():
        assert torch.allclose(task.trainables[name].grad, gradient, atol=1e-7), name


def test_clipping_shortens_the_gradient_and_reports_its_full_norm():
    norms, moves = [], []
    for clip in (None, 1e-3):
        task = toy_task()
        optimizer = torch.optim.SGD(task.trainables.values(), lr=1.0)
        before = {name: p.detach().clone() for name, p in task.trainables.items()}
        batches = passes(task.batches_of_step(0))
        result = train_step(
            task.model, task.trainables, optimizer, batches, step=1, device=task.device, clip=clip
        )
        norms.append(result.grad_norm)
        change = [(task.trainables[name].detach() - before[name]).square().sum() for name in before]
        moves.append(math.sqrt(sum(change)))
    assert norms[0] == norms[1] > 1e-2
    assert moves == pytest.approx([norms[0], 1e-3], rel=1e-2)


def test_a_step_without_targets_is_refused():
    batch = batch_of([0])
    empty = type(batch)(batch.ids, batch.sources[:0], batch.targets[:0], batch.lengths, batch.sample_ids)
    with pytest.raises(RunError, match="step 7 has no supervised token; samples: s0"):
        accumulate(ToyModel(), {}, passes([empty]), step=7, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "optim.lr is 0.0: it must be more than 0"),
        ({"lr": math.nan}, "optim.lr is nan"),
        ({"batch": 0}, "optim.batch is 0: it must be at least 1"),
        ({"betas": (0.9, 1.0)}, "optim.betas is 1.0"),
        ({"clip": -1.0}, "optim.clip is -1.0"),
        ({"warmup": -0.5}, "optim.warmup is -0.5: it must be 0 or more"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "optim.min_lr is 0.01, above optim.lr of 0.001"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(RunError, match=message):
        OptimSettings(**settings)


def test_warmup_must_end_before_the_run_does():
    with pytest.raises(RunError, match=r"optim.warmup gives 20 steps of warmup in a run of 10 steps"):
        OptimSettings(epochs=1).warmup_length(10)


def test_run_settings_out_of_range_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"run.keep is 0"):
        RunSettings(tmp_path, keep=0)
    with pytest.raises(RunError, match=r"run.save_every is -1"):
        RunSettings(tmp_path, save_every=-1)


def part_of(name):
    return "tower" if name.startswith("layer") else "projector"


def test_parts_have_their_own_rates_which_the_schedule_scales_alike():
    task, settings = toy_task(), toy_optim(lr=0.1, parts={"tower": 0.02})
    optimizer = make_optimizer(task.trainables, settings, part_of)
    set_rate(optimizer, 0.05)
    names = {id(parameter): name for name, parameter in task.trainables.items()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == task.trainables.keys()
    for name, rate in rates.items():
        assert rate == pytest.approx(0.01 if part_of(name) == "tower" else 0.05)


def test_a_part_with_rate_0_is_not_trained():
    task, settings = toy_task(), toy_optim(parts={"tower": 0.0})
    kept = moving(task.trainables, settings, part_of)
    assert sorted(kept) == ["unused.bias", "unused.weight"]
    assert not task.trainables["layer.weight"].requires_grad
    assert len(optimizer_tensors(kept, make_optimizer(kept, settings, part_of))) == 0


def test_rates_of_parts_that_are_not_there_are_refused():
    with pytest.raises(RunError, match="names 'decoder', but what is trained is projector, tower"):
        moving(toy_task().trainables, toy_optim(parts={"decoder": 1e-3}), part_of)
    with pytest.raises(RunError, match="nothing is left to train"):
        moving(toy_task().trainables, toy_optim(parts={"tower": 0, "projector": 0}), part_of)


def test_linear_and_constant_schedules():
    def rates(schedule):
        return [learning_rate(s, peak=1.0, floor=0.2, warmup=2, steps=6, schedule=schedule) for s in range(6)]

    assert rates("linear") == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4])
    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_warmup_as_a_share_of_all_steps():
    assert OptimSettings(epochs=10, warmup_ratio=0.03).warmup_length(20) == 6
    with pytest.raises(RunError, match=r"optim.warmup_steps and optim.warmup_ratio are both set"):
        OptimSettings(warmup_steps=3, warmup_ratio=0.1)
    with pytest.raises(RunError, match=r"optim.parts.tower is -1"):
        OptimSettings(parts={"tower": -1})
    with pytest.raises(RunError, match=r"optim.warmup_ratio is 1.0"):
        OptimSettings(warmup_ratio=1.0)


def moved(settings, steps, device="cpu", resumed_after=None):
    """A large matrix and a small vector after some steps down a bowl; resumed in another optimizer."""
    generator = torch.Generator().manual_seed(0)
    start = {
        "matrix": torch.randn(96, 64, generator=generator),
        "vector": torch.randn(9, generator=generator),
    }
    trained = {name: Parameter(value.to(device)) for name, value in start.items()}
    optimizer = make_optimizer(trained, settings)
    for step in range(steps):
        if step == resumed_after:
            kept = {name: t.cpu().clone() for name, t in optimizer_tensors(trained, optimizer).items()}
            optimizer = make_optimizer(trained, settings)
            load_optimizer_tensors(kept, trained, optimizer)
        for name, parameter in trained.items():
            parameter.grad = (parameter.detach() - 0.1) * (1 + step % 3) + len(name) * 1e-3
        optimizer.step()
    return {name: parameter.detach().cpu() for name, parameter in trained.items()}, optimizer


def bowl(kind):
    return OptimSettings(lr=1e-2, optimizer=kind, weight_decay=0.1)


def check_eight_bits(kind, device):
    wide, _ = moved(bowl("adamw"), 12, device)
    short, optimizer = moved(bowl(kind), 12, device)
    assert torch.allclose(wide["vector"], short["vector"], atol=1e-6)  # too small for 8 bits
    # Each step is about 0.01, and 8 bits round the averages by a few percent.
    assert (wide["matrix"] - short["matrix"]).square().mean().sqrt() < 0.03 * 12 * 0.01
    assert not torch.equal(wide["matrix"], short["matrix"])
    averages = {}
    for parameter, state in optimizer.state.items():
        kept = ("state1", "state2", "absmax1", "absmax2")
        averages[parameter.numel()] = sum(state[key].nbytes for key in kept if key in state)
    assert averages == {numbers: average_bytes(kind, numbers) for numbers in averages}
    again, _ = moved(bowl(kind), 12, device, resumed_after=5)
    assert all(torch.equal(again[name], short[name]) for name in short)


def test_eight_bits_move_like_32_and_resume_in_the_same_bits():
    check_eight_bits("adamw8bit", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["adamw8bit", "paged_adamw8bit"])
def test_eight_bits_on_a_gpu(kind):
    check_eight_bits(kind, "cuda")


@pytest.mark.gpu
def test_the_averages_of_a_resumed_run_are_still_paged():
    trained = {"matrix": Parameter(torch.ones(400, 300, device="cuda"))}
    optimizer = make_optimizer(trained, bowl("paged_adamw8bit"))
    trained["matrix"].grad = torch.ones_like(trained["matrix"])
    optimizer.step()
    kept = {name: t.cpu().clone() for name, t in optimizer_tensors(trained, optimizer).items()}
    other = make_optimizer(trained, bowl("paged_adamw8bit"))
    load_optimizer_tensors(kept, trained, other)
    state = other.state[trained["matrix"]]
    assert state["state1"].is_paged and torch.equal(state["state1"].cpu(), kept["matrix|state1"])


@pytest.mark.gpu
def test_a_gpu_takes_the_fused_step_which_is_the_same():
    fused, optimizer = moved(bowl("adamw"), 12, "cuda", resumed_after=5)
    assert optimizer.param_groups[0]["fused"]
    plain, optimizer = moved(bowl("adamw"), 12)
    assert not optimizer.param_groups[0]["fused"]
    assert all(torch.allclose(fused[name], plain[name], atol=1e-6) for name in plain)


def test_a_run_in_eight_bits_resumes_in_the_same_bits(tmp_path):
    optim, run = toy_optim(optimizer="adamw8bit", epochs=2), partial(RunSettings, save_every=1)

    def stop_after_step_5(step):
        if step == 5:
            raise KeyboardInterrupt
        return batches_of_step(step)

    whole = toy_task(dropout=0.2)
    train(whole, optim, run(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(toy_task(dropout=0.2, batches=stop_after_step_5), optim, run(tmp_path / "other"))
    resumed = toy_task(dropout=0.2)
    train(resumed, optim, run(tmp_path / "other"))
    for name, parameter in whole.trainables.items():
        assert torch.equal(parameter, resumed.trainables[name]), name


def test_the_plan_counts_averages_in_eight_bits():
    recipe = reader("lora").read_values(
        {"method": "lora", "run": {"folder": "a"}, "data": {"root": "a"}}, "a"
    )
    less = replace(recipe, optim=replace(recipe.optim, optimizer="adamw8bit"))
    wide, short = (plan(each).lines[-1] for each in (recipe, less))
    assert wide.bytes == 16 * wide.trained
    # Some of the mini base's matrices are too small for 8 bits.
    assert 10.03 * wide.trained < short.bytes < 16 * wide.trained


def test_bitsandbytes_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="optim.optimizer adamw8bit needs bitsandbytes; pip install"):
        make_optimizer(toy_task().trainables, bowl("adamw8bit"))


def test_pages_need_a_gpu():
    with pytest.raises(RunError, match="paged_adamw8bit needs a GPU; take adamw8bit or adamw"):
        make_optimizer(toy_task().trainables, bowl("paged_adamw8bit"))
