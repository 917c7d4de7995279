"""A run that is killed, stopped or started twice: nothing is lost, and it ends in the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mma import folder as adapter_folder
from tests.training.toy import toy_optim, toy_run, toy_task
from training.errors import RunError
from training.loop import train
from training.monitor import MEASURED, read_metrics
from training.run_state import newest_state, read_state
from training.settings import RunSettings

ROOT = Path(__file__).parents[2]
DELAY = 0.008
FINAL = "adapter/adapter_model.safetensors"


class Server:
    """Forks runs from a process that has imported everything once."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.toy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, folder, **settings):
        """Begins or resumes a run; gives its process id."""
        print(
            json.dumps({"folder": str(folder), "delay": DELAY, **settings}),
            file=self.process.stdin,
            flush=True,
        )
        return int(self.process.stdout.readline())

    def wait(self):
        """The exit code of the run; negative for a signal that killed it."""
        return int(self.process.stdout.readline())

    def close(self):
        """Ends the server."""
        self.process.communicate()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    toy_run(folder)
    torch.set_num_threads(threads)
    return folder


def check_nothing_unreadable(folder):
    """Every folder under its own name is complete."""
    for path in [*folder.glob("checkpoints/step-*"), *folder.glob("adapter")]:
        if not path.name.endswith(".part"):
            adapter_folder.read(path)
    for path in folder.glob("state/step-*"):
        if not path.name.endswith(".part"):
            read_state(path)


def unmeasured(folder):
    records = read_metrics(folder)
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def check_same(folder, whole):
    """The same final adapter, metrics and folders as those of the run that nothing happened to."""
    check_nothing_unreadable(folder)
    assert (folder / FINAL).read_bytes() == (whole / FINAL).read_bytes()
    assert unmeasured(folder) == unmeasured(whole)
    for part in ("checkpoints", "."):
        assert sorted(p.name for p in (folder / part).iterdir()) == sorted(
            p.name for p in (whole / part).iterdir()
        )
    for path in (folder / "checkpoints").iterdir():
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (path / file).read_bytes() == (whole / "checkpoints" / path.name / file).read_bytes()
    assert len(list((folder / "state").iterdir())) == 1


def test_killed_at_twenty_moments(tmp_path, server, whole):
    moments = random.Random(0)
    folder, kills, runs = tmp_path / "0", 0, 0
    reached = set()
    while kills < 20:
        pid = server.start(folder)
        time.sleep(moments.uniform(0.02, 0.45))
        with suppress(ProcessLookupError):  # it may have come to its end
            os.kill(pid, signal.SIGKILL)
        if server.wait() == 0:
            check_same(folder, whole)
            runs += 1
            folder = tmp_path / str(runs)
        else:
            kills += 1
            check_nothing_unreadable(folder)
            reached.add(newest_state(folder / "state"))
    server.start(folder)
    assert server.wait() == 0
    check_same(folder, whole)
    assert len(reached) > 8, "the kills must fall into many parts of the run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_in_a_complete_checkpoint(tmp_path, server, whole, number):
    pid = server.start(tmp_path, save_every=1000, validate_every=1000)
    wait_for_steps(tmp_path, 7)
    os.kill(pid, number)
    assert server.wait() == 128 + number
    state = read_state(newest_state(tmp_path / "state"))
    assert 7 <= state.progress.step < 60
    assert len(unmeasured(tmp_path)) == state.progress.step
    adapter_folder.read(tmp_path / "checkpoints" / f"step-{state.progress.step:08d}")
    assert not (tmp_path / "adapter").exists()
    toy_run(tmp_path)
    assert (tmp_path / FINAL).exists()


def wait_for_steps(folder, count):
    """Waits until a run has taken so many steps."""
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() or len(read_lines(folder)) < count:
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.01)


def read_lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_stopped_and_resumed_again_and_again_gives_the_same_bits(tmp_path, server, whole):
    code = None
    for count in (3, 8, 30, 50):
        pid = server.start(tmp_path)
        wait_for_steps(tmp_path, count)
        os.kill(pid, signal.SIGTERM)
        code = server.wait()
        assert code == 128 + signal.SIGTERM
        check_nothing_unreadable(tmp_path)
    server.start(tmp_path)
    assert server.wait() == 0
    assert (tmp_path / FINAL).read_bytes() == (whole / FINAL).read_bytes()
    assert unmeasured(tmp_path) == unmeasured(whole)


def test_a_validation_that_is_interrupted_is_repeated(tmp_path, whole):
    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 0.0}

    run = RunSettings(tmp_path, save_every=3, validate_every=5)
    task = toy_task(dropout=0.3)
    object.__setattr__(task, "validate", interrupted)
    outcome = train(task, toy_optim(), run)
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    assert read_state(newest_state(tmp_path / "state")).progress.validated == 0
    toy_run(tmp_path)
    assert (tmp_path / FINAL).read_bytes() == (whole / FINAL).read_bytes()
    assert unmeasured(tmp_path) == unmeasured(whole)


def test_two_processes_cannot_write_one_run(tmp_path, server):
    pid = server.start(tmp_path)
    wait_for_steps(tmp_path, 1)
    with pytest.raises(RunError, match="another process is writing to"):
        toy_run(tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL


def test_the_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(toy_task(), toy_optim(epochs=2), RunSettings(tmp_path))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
