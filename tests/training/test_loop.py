"""The loop against a plain one, what it writes, and how it ends."""

import errno
import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mma import folder as adapter_folder
from tests.training.toy import batch_of, batches_of_step, sample, step_indices, toy_optim, toy_task
from training import run_state
from training.errors import RunError
from training.loop import train
from training.monitor import MEASURED, Monitor, read_metrics
from training.settings import RunSettings


def plain_loop(steps, optim):
    """The same run written down as plainly as possible: one sample at a time, gradients added by hand."""
    torch.manual_seed(0)
    model = toy_task().model
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        rows = []
        for index in step_indices(step):
            ids = torch.tensor(sample(index))
            x = model.embed(ids)
            logits = model.head(x + model.layer(x).tanh())
            rows += [functional.cross_entropy(logits[i - 1], ids[i]) for i in range(len(ids) - 3, len(ids))]
        loss = torch.stack(rows).mean()
        adamw.zero_grad()
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        loss.backward()
        rate = (
            0.02 * (step + 1) / 4 if step < 4 else 0.01 * (1 + math.cos(math.pi * (step - 4) / (steps - 4)))
        )
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        losses.append(loss.item())
    return losses, {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_loop_equals_a_plain_one(tmp_path):
    task = toy_task(validate=False)
    optim = toy_optim(epochs=6)
    outcome = train(task, optim, RunSettings(tmp_path))
    losses, trained = plain_loop(24, optim)
    assert [record["loss"] for record in read_metrics(tmp_path)] == pytest.approx(losses, abs=1e-6)
    for name, parameter in trained.items():
        assert torch.allclose(task.trainables[name], parameter, atol=1e-6), name
    assert outcome.step == 24
    assert outcome.signal is None


@pytest.mark.parametrize("groups", [1, 5])
def test_result_does_not_depend_on_accumulation(tmp_path, groups):
    def packed(step):
        indices = step_indices(step)
        return [batch_of(indices[start::groups]) for start in range(groups)]

    reference, task = toy_task(validate=False), toy_task(validate=False, batches=packed)
    train(reference, toy_optim(epochs=3), RunSettings(tmp_path / "two"))
    train(task, toy_optim(epochs=3), RunSettings(tmp_path / "other"))
    for name, parameter in reference.trainables.items():
        assert torch.allclose(task.trainables[name], parameter, atol=1e-6), name


def test_a_run_folder_holds_everything(tmp_path):
    outcome = train(
        toy_task(), toy_optim(epochs=4), RunSettings(tmp_path, keep=2, save_every=3, validate_every=8)
    )
    assert outcome.adapter == tmp_path / "adapter"
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "loss.png"):
        assert (tmp_path / name).stat().st_size > 100, name
    assert list((tmp_path / "tensorboard").iterdir())
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert {"step-00000015", "step-00000016"} <= set(kept)
    assert len(kept) <= 3
    records = read_metrics(tmp_path)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 17))
    assert [record["step"] for record in records if "validation" in record] == [8, 16]
    assert {"epoch", "loss", "lr", "grad_norm", "tokens", "targets", "samples", *MEASURED} <= steps[0].keys()
    assert steps[0]["samples"] == [f"s{index}" for index in step_indices(0)]
    assert steps[-1]["epoch"] == 4.0
    assert steps[0]["peak_memory"] > 2**20


def test_best_checkpoint_is_the_adapter_and_is_kept(tmp_path):
    task = toy_task()
    scores = iter([1.0, 0.5, 0.9, 0.8, 0.7])
    task = replace(task, validate=lambda: {"loss": next(scores)})
    train(task, toy_optim(epochs=5), RunSettings(tmp_path, keep=1))
    description, tensors = adapter_folder.read(tmp_path / "adapter")
    assert description["provenance"]["step"] == 8
    assert description["provenance"]["scores"] == {"loss": 0.5}
    _, kept = adapter_folder.read(tmp_path / "checkpoints" / "step-00000008")
    assert all(torch.equal(tensors[name], kept[name]) for name in tensors)
    assert all(torch.equal(tensors[name], parameter) for name, parameter in task.trainables.items())
    names = [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step-00000008", "step-00000020"]


def test_patience_stops_the_run(tmp_path):
    scores = iter([0.2, 0.6, 0.5, 0.6, 0.9])
    task = replace(toy_task(), validate=lambda: {"accuracy": next(scores)})
    outcome = train(task, toy_optim(), RunSettings(tmp_path, keep_best="accuracy", patience=2))
    assert outcome.step == 16
    assert outcome.signal is None
    assert adapter_folder.read_description(tmp_path / "adapter")["provenance"]["step"] == 8


def test_validation_that_cannot_be_used_is_an_error(tmp_path):
    task = replace(toy_task(), validate=lambda: {"loss": math.nan})
    with pytest.raises(RunError, match="validation loss after step 4 is nan"):
        train(task, toy_optim(), RunSettings(tmp_path / "nan"))
    task = replace(toy_task(), validate=lambda: {"loss": 1.0})
    with pytest.raises(RunError, match=r"run.keep_best is 'accuracy', but the validation has only loss"):
        train(task, toy_optim(), RunSettings(tmp_path / "missing", keep_best="accuracy"))
    with pytest.raises(RunError, match=r"run.patience is set, but there is no validation"):
        train(toy_task(validate=False), toy_optim(), RunSettings(tmp_path / "none", patience=1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value):
    task = toy_task(validate=False)
    loss = task.model.loss

    def poisoned(batch):
        return loss(batch) * (value if "s7" in batch.sample_ids else 1.0)

    task.model.loss = poisoned
    bad = next(step for step in range(100) if "s7" in batch_ids(step))
    with pytest.raises(RunError) as error:
        train(task, toy_optim(), RunSettings(tmp_path, save_every=1))
    ids = next(batch.sample_ids for batch in batches_of_step(bad) if "s7" in batch.sample_ids)
    assert f"the loss of step {bad + 1} is not a finite number; samples: {', '.join(ids)};" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    states = [folder.name for folder in (tmp_path / "state").glob("*")]
    assert all(int(name.split("-")[1]) <= bad for name in states)


def batch_ids(step):
    return [sample_id for batch in batches_of_step(step) for sample_id in batch.sample_ids]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    task = toy_task(validate=False)
    task.trainables["layer.bias"].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunError, match=r"the gradient norm of step 1 is (inf|nan); samples: s\d+, s"):
        train(task, toy_optim(), RunSettings(tmp_path))


def test_resumed_in_the_middle_of_an_epoch_gives_the_same_bits(tmp_path):
    settings = {"save_every": 3, "validate_every": 5}
    whole = toy_task(dropout=0.3)
    train(whole, toy_optim(epochs=5), RunSettings(tmp_path / "whole", **settings))

    def stop_after_step_11(step):
        if step == 11:  # behind the last save: the metrics of step 11 are written twice
            raise KeyboardInterrupt
        return batches_of_step(step)

    stopped = toy_task(dropout=0.3, batches=stop_after_step_11)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, toy_optim(epochs=5), RunSettings(tmp_path / "other", **settings))
    # Another start: everything must come from the run state.
    resumed = toy_task(dropout=0.3, seed=99)
    resumed.model.embed.load_state_dict(whole.model.embed.state_dict())
    resumed.model.head.load_state_dict(whole.model.head.state_dict())
    train(resumed, toy_optim(epochs=5), RunSettings(tmp_path / "other", **settings))
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "other/adapter" / file).read_bytes() == (
            tmp_path / "whole/adapter" / file
        ).read_bytes()
    assert unmeasured(tmp_path / "other") == unmeasured(tmp_path / "whole")


def unmeasured(folder):
    """The metrics of a run without what depends on the machine."""
    records = read_metrics(folder)
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    outcome = train(toy_task(seed=5), toy_optim(epochs=2), RunSettings(tmp_path))
    assert outcome.step == 8
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_what_a_kill_behind_the_last_state_has_prevented_is_done_on_resuming(tmp_path):
    settings = {"save_every": 3, "validate_every": 8, "keep": 1}
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path, **settings))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    checkpoints = tmp_path / "checkpoints"
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000008"]
    (checkpoints / "step-00000008").rename(checkpoints / "step-00000006")  # neither written nor pruned
    shutil.rmtree(tmp_path / "adapter")
    train(toy_task(seed=5), toy_optim(epochs=2), RunSettings(tmp_path, **settings))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


def test_a_signal_before_the_first_step_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "resume", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    outcome = train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    assert (outcome.step, outcome.signal) == (0, signal.SIGTERM)
    monkeypatch.undo()
    assert train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path)).step == 8


def test_a_run_goes_on_with_less_memory_and_from_a_state_that_knows_fewer_settings(tmp_path):
    train(toy_task(), toy_optim(max_steps=3, warmup_steps=1, warmup=0), RunSettings(tmp_path))
    (file,) = (tmp_path / "state").rglob("*.json")
    state = json.loads(file.read_text())
    settings = next(each["settings"] for each in (state, state.get("about", {})) if "settings" in each)
    del settings["optimizer"]  # as before there was a choice
    assert "checkpointing" not in settings and "tokens_per_batch" not in settings
    file.write_text(json.dumps(state))
    less = toy_optim(max_steps=3, warmup_steps=1, warmup=0, checkpointing="full", tokens_per_batch=64)
    assert train(toy_task(), less, RunSettings(tmp_path)).step == 3
    other = toy_optim(max_steps=3, warmup_steps=1, warmup=0, optimizer="adamw8bit")
    with pytest.raises(RunError, match=r"was begun with other settings \(optimizer\)"):
        train(toy_task(), other, RunSettings(tmp_path))


def test_resuming_with_other_settings_is_refused(tmp_path):
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    with pytest.raises(RunError, match=r"was begun with other settings \(lr\)"):
        train(toy_task(), toy_optim(epochs=2, lr=0.5), RunSettings(tmp_path))


def test_resuming_with_another_adapter_is_refused(tmp_path):
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    task = toy_task()
    del task.trainables["unused.bias"]
    with pytest.raises(RunError, match=r"has an unknown trained tensor 'unused.bias'"):
        train(task, toy_optim(epochs=2), RunSettings(tmp_path))
    task = toy_task()
    task.trainables["layer.bias"].data = torch.zeros(3)
    with pytest.raises(RunError, match=r"'layer.bias' is \[16\], here it is \[3\]"):
        train(task, toy_optim(epochs=2), RunSettings(tmp_path))


def test_a_damaged_state_is_refused(tmp_path):
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    state = run_state.newest_state(tmp_path / "state")
    (state / "trainables.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="cannot be read"):
        train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    whole = toy_task(dropout=0.3)
    train(whole, toy_optim(epochs=3), RunSettings(tmp_path / "whole", save_every=2))
    write_file, written = run_state.write_file, []

    def full_disk(path, data):
        written.append(path)
        if len(written) > 9:  # four files a state: the third one fails half-way
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(run_state, "write_file", full_disk)
    folder = tmp_path / "full"
    with pytest.raises(
        RunError, match=r"the disk is full: free some space; step 4 is kept in .*state/step-0"
    ):
        train(toy_task(dropout=0.3), toy_optim(epochs=3), RunSettings(folder, save_every=2))
    assert len(list((folder / "state").iterdir())) == 1
    monkeypatch.undo()
    train(toy_task(dropout=0.3), toy_optim(epochs=3), RunSettings(folder, save_every=2))
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_while_the_adapter_is_written_loses_nothing(tmp_path, monkeypatch):
    whole = toy_task(dropout=0.3)
    train(whole, toy_optim(epochs=3), RunSettings(tmp_path / "whole", save_every=2))
    folder, write_file = tmp_path / "full", adapter_folder._write_file

    def full_disk(path, content):
        if "step-00000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, content)

    monkeypatch.setattr(adapter_folder, "_write_file", full_disk)
    with pytest.raises(RunError, match=r"disk is full.*step 6 is kept in .*state/step-0"):
        train(toy_task(dropout=0.3), toy_optim(epochs=3), RunSettings(folder, save_every=2, keep=9))
    assert not (folder / "checkpoints/step-00000006").exists()
    monkeypatch.undo()
    train(toy_task(dropout=0.3), toy_optim(epochs=3), RunSettings(folder, save_every=2, keep=9))
    adapter_folder.read(folder / "checkpoints/step-00000006")
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_while_metrics_are_written_is_one_line(tmp_path, monkeypatch):
    def full_disk(self, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Monitor, "_write", full_disk)
    with pytest.raises(RunError, match="the disk is full: free some space; nothing was saved yet"):
        train(toy_task(), toy_optim(), RunSettings(tmp_path))


def test_state_is_readable_json_and_tensors(tmp_path):
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    state = run_state.newest_state(tmp_path / "state")
    assert {path.suffix for path in state.iterdir()} == {".json", ".safetensors"}
    content = json.loads((state / "state.json").read_text())
    assert content["progress"]["step"] == 8
    assert content["about"]["threads"] == 1


def test_a_part_with_rate_0_is_carried_through_save_and_resume(tmp_path):
    def task(batches=batches_of_step, bias=None):
        made = toy_task(batches=batches)
        if bias is not None:
            with torch.no_grad():
                made.trainables["layer.bias"].copy_(bias)
        return replace(made, part_of=lambda name: "bias" if name == "layer.bias" else "adapters")

    def stopping(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches_of_step(step)

    optim, kept = toy_optim(epochs=4, parts={"bias": 0.0}), torch.full((16,), 0.5)
    whole = task(bias=kept)
    train(whole, optim, RunSettings(tmp_path / "whole"))
    assert train(task(stopping, kept), optim, RunSettings(tmp_path / "run")).signal == signal.SIGTERM
    state = run_state.read_state(run_state.newest_state(tmp_path / "run" / "state"))
    assert torch.equal(state.tensors["trainables"]["layer.bias"], kept)
    assert not [name for name in state.tensors["optimizer"] if name.startswith("layer.bias")]
    resumed = task()  # its own bias is another: the state's is taken
    train(resumed, optim, RunSettings(tmp_path / "run"))
    for name, parameter in resumed.trainables.items():
        assert torch.equal(parameter, whole.trainables[name]), name
    _, tensors = adapter_folder.read(tmp_path / "run" / "adapter")
    assert torch.equal(tensors["layer.bias"], kept)
