"""The moving average: what it holds, when it is in the model, and a run that is killed with it."""

import json
import math
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from mma import folder as adapter_folder
from tests.training.test_kill import Server, check_same
from tests.training.toy import batches_of_step, toy_optim, toy_run, toy_task
from training.ema import MovingAverage
from training.errors import RunError
from training.loop import train
from training.run_state import newest_state, read_state
from training.settings import OptimSettings, RunSettings

DECAY = 0.9
FILES = ("adapter_model.safetensors", "adapter_config.json")


def by_hand(values, decay):
    """The average of the tensors in order, the first being the start, in float64."""
    average = values[0].double()
    for steps, value in enumerate(values[1:]):
        d = min(decay, (1 + steps) / (10 + steps))
        average = d * average + (1 - d) * value.double()
    return average


def checkpoint(folder, step):
    return adapter_folder.read(folder / "checkpoints" / f"step-{step:08d}")[1]


def trainables_of_state(folder):
    return read_state(newest_state(folder / "state")).tensors["trainables"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copy_of(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """Runs without and with the average that save after each of 20 steps, and the tensors at the start."""
    root = tmp_path_factory.mktemp("runs")
    settings = {"save_every": 1, "keep": 99}
    for name, ema in (("plain", None), ("averaged", DECAY)):
        task = toy_task(validate=False, dropout=0.3)
        train(task, toy_optim(epochs=5, ema=ema), RunSettings(root / name, **settings))
    return root, copy_of(toy_task().trainables)


def test_average_of_given_values():
    values = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    average = MovingAverage({"x": values[0]}, 0.7)
    for steps, value in enumerate(values[1:]):
        average.update({"x": value}, steps)
        assert torch.allclose(average.tensors["x"].double(), by_hand(values[: steps + 2], 0.7), atol=1e-6)


def test_the_start_is_soon_forgotten():
    average = MovingAverage({"x": torch.full((1,), 1000.0)}, 0.9999)
    for steps in range(100):
        average.update({"x": torch.ones(1)}, steps)
    assert average.tensors["x"].item() == pytest.approx(1.0, abs=1e-3)


def test_applied_puts_the_same_bits_back():
    trained = {"a": torch.randn(4, requires_grad=True), "b": torch.tensor([math.nan, -0.0, math.inf])}
    before = {name: tensor.detach().numpy().tobytes() for name, tensor in trained.items()}
    average = MovingAverage({"a": torch.ones(4), "b": torch.zeros(3)}, DECAY)

    def fail():
        assert same(copy_of(trained), average.tensors)
        raise KeyError

    with pytest.raises(KeyError), average.applied(trained):
        fail()
    assert {name: tensor.detach().numpy().tobytes() for name, tensor in trained.items()} == before
    assert same(average.tensors, {"a": torch.ones(4), "b": torch.zeros(3)})


def test_checkpoints_hold_the_average_and_training_does_not_notice(every_step):
    root, start = every_step
    plain = [start, *(checkpoint(root / "plain", step) for step in range(1, 21))]
    for step in range(1, 21):
        averaged = checkpoint(root / "averaged", step)
        for name, tensor in averaged.items():
            expected = by_hand([tensors[name] for tensors in plain[: step + 1]], DECAY)
            assert torch.allclose(tensor.double(), expected, atol=1e-6), (step, name)
    assert not torch.allclose(averaged["layer.weight"], plain[-1]["layer.weight"], atol=1e-3)
    assert same(trainables_of_state(root / "averaged"), plain[-1])


def test_without_validation_the_last_average_is_the_adapter(every_step):
    root, _ = every_step
    description, tensors = adapter_folder.read(root / "averaged" / "adapter")
    assert same(tensors, checkpoint(root / "averaged", 20))
    assert description["provenance"]["ema"] == DECAY
    assert "ema" not in adapter_folder.read_description(root / "plain" / "adapter")["provenance"]


def test_the_model_is_left_with_the_adapter(tmp_path):
    task = toy_task(validate=False)
    train(task, toy_optim(epochs=2, ema=DECAY), RunSettings(tmp_path))
    assert same(copy_of(task.trainables), adapter_folder.read(tmp_path / "adapter")[1])


def test_validation_patience_and_the_best_go_by_the_average(tmp_path):
    task, seen = toy_task(), []
    scores = iter([1.0, 0.5, 0.9, 0.8, 0.4])

    def validate():
        seen.append(copy_of(task.trainables))
        return {"loss": next(scores)}

    outcome = train(
        replace(task, validate=validate),
        toy_optim(ema=DECAY),
        RunSettings(tmp_path, save_every=4, keep=9, patience=2),
    )
    assert outcome.step == 16
    for step, tensors in zip((4, 8, 12, 16), seen, strict=True):
        assert same(tensors, checkpoint(tmp_path, step))
    description, tensors = adapter_folder.read(tmp_path / "adapter")
    assert description["provenance"]["step"] == 8
    assert same(tensors, seen[1])
    assert not same(trainables_of_state(tmp_path), seen[-1])


def test_a_failed_validation_leaves_the_trained_tensors(tmp_path, every_step):
    root, _ = every_step
    task = toy_task(dropout=0.3)

    def validate():
        assert not same(copy_of(task.trainables), checkpoint(root / "plain", 4))
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        train(replace(task, validate=validate), toy_optim(epochs=5, ema=DECAY), RunSettings(tmp_path))
    assert same(copy_of(task.trainables), checkpoint(root / "plain", 4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run with an average that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    toy_run(folder, ema=DECAY)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def test_killed_runs_end_in_the_same_bits(tmp_path, server, whole):
    moments = random.Random(1)
    folder, kills, runs = tmp_path / "0", 0, 0
    while kills < 6:
        pid = server.start(folder, ema=DECAY)
        time.sleep(moments.uniform(0.05, 0.45))
        with suppress(ProcessLookupError):  # it may have come to its end
            os.kill(pid, signal.SIGKILL)
        if server.wait() == 0:
            check_same(folder, whole)
            runs += 1
            folder = tmp_path / str(runs)
        else:
            kills += 1
    server.start(folder, ema=DECAY)
    assert server.wait() == 0
    check_same(folder, whole)


def test_a_validation_that_is_interrupted_is_repeated(tmp_path, whole):
    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 0.0}

    task = replace(toy_task(dropout=0.3), validate=interrupted)
    outcome = train(task, toy_optim(ema=DECAY), RunSettings(tmp_path, save_every=3, validate_every=5))
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    toy_run(tmp_path, ema=DECAY)
    assert_same_adapter(tmp_path, whole)


def stopped_run(folder, ema):
    """A run that is cut off behind its save at step 9."""

    def stop_after_step_11(step):
        if step == 11:
            raise KeyboardInterrupt
        return batches_of_step(step)

    with pytest.raises(KeyboardInterrupt):
        train(
            toy_task(dropout=0.3, batches=stop_after_step_11),
            toy_optim(ema=ema),
            RunSettings(folder, save_every=3, validate_every=5),
        )


def assert_same_adapter(folder, whole):
    for file in FILES:
        assert (folder / "adapter" / file).read_bytes() == (whole / "adapter" / file).read_bytes()


def test_the_average_comes_from_the_run_state(tmp_path, whole):
    stopped_run(tmp_path, DECAY)
    resumed, frozen = toy_task(dropout=0.3, seed=99), toy_task().model
    resumed.model.embed.load_state_dict(frozen.embed.state_dict())
    resumed.model.head.load_state_dict(frozen.head.state_dict())
    train(resumed, toy_optim(ema=DECAY), RunSettings(tmp_path, save_every=3, validate_every=5))
    assert_same_adapter(tmp_path, whole)


@pytest.mark.parametrize(("begun", "resumed"), [(0.9, 0.99), (0.9, None), (None, 0.9)])
def test_resuming_with_another_decay_is_refused(tmp_path, begun, resumed):
    stopped_run(tmp_path, begun)
    with pytest.raises(RunError, match=r"was begun with other settings \(ema\): put them back"):
        train(toy_task(), toy_optim(ema=resumed), RunSettings(tmp_path))


def test_a_run_begun_before_there_was_an_average_goes_on(tmp_path):
    toy_run(tmp_path / "whole")
    stopped_run(tmp_path / "old", None)
    path = newest_state(tmp_path / "old" / "state") / "state.json"
    content = json.loads(path.read_text())
    del content["about"]["settings"]["ema"], content["kinds"]
    path.write_text(json.dumps(content))
    toy_run(tmp_path / "old")
    assert_same_adapter(tmp_path / "old", tmp_path / "whole")


def test_a_state_that_lost_its_average_is_refused(tmp_path):
    stopped_run(tmp_path, DECAY)
    (newest_state(tmp_path / "state") / "ema.safetensors").unlink()
    with pytest.raises(RunError, match=r"cannot be read \(it has best, optimizer, trainables, not best, ema"):
        toy_run(tmp_path, ema=DECAY)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, math.nan])
def test_a_decay_out_of_range_is_refused(value):
    with pytest.raises(RunError, match=r"optim.ema is .*: it must be more than 0 and below 1"):
        OptimSettings(ema=value)


def test_routing_tables_follow_the_average(tiny_system):
    adapters = tiny_system().model.adapters
    trained = adapters.trainable_parameters()
    own = adapters.routes()
    average = MovingAverage(trained, DECAY)
    for tensor in average.tensors.values():
        tensor.mul_(0.5)
    with average.applied(trained):
        averaged = adapters.routes()
    assert averaged != own
    assert adapters.routes() == own
