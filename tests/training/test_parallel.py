"""Runs of 1, 2 and 4 processes: the same curve, the same tensors, and an end that is noticed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from training.errors import RunError
from training.monitor import read_metrics
from training.parallel import World, joined, local_device

ROOT = Path(__file__).parents[2]


def start(
    size: int, folder: Path, module: str = "workers", **settings: object
) -> list[subprocess.Popen[str]]:
    """As many processes as torchrun would start, without its own watching over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request = json.dumps({"folder": str(folder), **settings})
    processes = []
    for rank in range(size):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {key: str(value) for key, value in where.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", f"tests.training.{module}", request],
                cwd=ROOT,
                env={**os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]], within: float = 150.0) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    try:
        texts = [process.communicate(timeout=within)[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.communicate()
        raise
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


def result(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], list[list[str]]]:
    """Loss curve, final adapter, and the samples of every step."""
    steps = [record for record in read_metrics(folder) if "loss" in record]
    tensors = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    return [r["loss"] for r in steps], tensors, [r["samples"] for r in steps]


def assert_same(folder: Path, expected: Path) -> None:
    losses, tensors, samples = result(folder)
    wanted_losses, wanted_tensors, wanted_samples = result(expected)
    assert losses == pytest.approx(wanted_losses, abs=1e-6)
    assert samples == wanted_samples
    assert tensors.keys() == wanted_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, wanted_tensors[name], atol=1e-6, rtol=0), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    [(code, text)] = finish(start(1, folder))
    assert code == 0, text
    return folder


@pytest.mark.parametrize("size", [2, 4])
def test_result_does_not_depend_on_the_number_of_processes(tmp_path, alone, size):
    for code, text in finish(start(size, tmp_path / "run")):
        assert code == 0, text
    assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize("dead", [0, 1])
def test_the_others_stop_when_a_process_dies_and_the_run_resumes(tmp_path, alone, dead):
    folder = tmp_path / "run"
    processes = start(2, folder, delay=0.3)
    wait_for_state(folder)
    os.kill(processes[dead].pid, signal.SIGKILL)
    began = time.monotonic()
    code, text = finish(processes, within=30)[1 - dead]
    assert time.monotonic() - began < 30
    last = text.strip().splitlines()[-1]
    assert code == 2, text
    assert last.startswith("error: another process of this run has stopped in step")
    assert f"--resume {folder}" in last
    for code, text in finish(start(2, folder)):
        assert code == 0, text
    assert_same(folder, alone)


def test_a_signal_to_any_process_stops_all_at_the_same_step(tmp_path, alone):
    folder = tmp_path / "run"
    processes = start(2, folder, delay=0.3)
    wait_for_state(folder)
    processes[1].send_signal(signal.SIGTERM)
    for code, text in finish(processes):
        assert code == 0, text
    assert len(result_steps(folder)) < len(result_steps(alone))
    for code, text in finish(start(1, folder)):  # the number of processes may change on resuming
        assert code == 0, text
    assert_same(folder, alone)


def test_a_signal_in_a_validation_stops_all_and_the_validation_is_repeated(tmp_path, alone):
    folder = tmp_path / "run"
    for code, text in finish(start(2, folder, stopped_in_validation=True)):
        assert code == 0, text
    assert result_steps(folder)[-1] == 5, "the first validation comes after step 5"
    for code, text in finish(start(2, folder)):
        assert code == 0, text
    assert_same(folder, alone)


def result_steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder) if "loss" in record]


def wait_for_state(folder: Path) -> None:
    """Waits until the run has saved once."""
    deadline = time.monotonic() + 40
    while not list(folder.glob("checkpoints/step-*3")):
        assert time.monotonic() < deadline, "the run saves nothing"
        time.sleep(0.05)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 4, 7])
def test_every_micro_batch_counts_once_and_all_make_the_same_number_of_passes(size, total):
    shares = [World(rank, size).share(total) for rank in range(size)]
    assert sorted(index for share in shares for index, counts in share if counts) == list(range(total))
    assert len({len(share) for share in shares}) == 1


def test_half_of_the_variables_of_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = joined(torch.device("cpu"))
    with pytest.raises(RunError, match="RANK is set, but WORLD_SIZE is not: start several processes"):
        world.__enter__()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match="process 2 of this machine has no GPU, there are 2: start as many"):
        local_device(torch.device("cuda"))
    assert local_device(torch.device("cpu")) == torch.device("cpu")
