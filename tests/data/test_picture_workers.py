"""Pictures from worker processes: the same as without, their errors too, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data import picture_workers
from data.errors import DataError
from data.picture_workers import Pictures, usual_workers
from data.pictures import Prepared, picture_loader

WORKERS = 2


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None]


LOAD = picture_loader(to_tensor)


@pytest.fixture(scope="module")
def pool() -> Pictures:
    """Two workers for the whole file: each takes seconds to begin."""
    return Pictures(LOAD, WORKERS)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of different sizes, the first ones the largest: they would come back last."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 255, (400 - 40 * index, 30, 3), dtype=np.uint8)
        found.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


def processes_of(parent: int) -> set[int]:
    """Worker processes whose parent this is, whatever else runs."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, owner = stat.read_text().rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if int(owner) == parent and state != "Z" and b"spawn_main" in command:
            found.add(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: set[int]) -> bool:
    """Whether the processes end within a few seconds."""
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def same(one: Prepared, other: Prepared) -> bool:
    return one.size == other.size and torch.equal(one.views, other.views)


def test_workers_give_what_this_process_gives_in_any_order_asked(pool, paths):
    ahead = pool.ahead([*paths, paths[0]])
    for path in [*reversed(paths), paths[0]]:
        assert same(ahead(path), LOAD(path))
    assert same(pool(paths[1]), LOAD(paths[1]))
    assert pool(paths[1]).views.add_(1) is not None  # writable, as any tensor


def test_a_workers_error_is_the_same_line(pool, paths, tmp_path):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(paths[0].read_bytes()[:300])
    for path in (broken, missing):
        with pytest.raises(DataError) as plain:
            LOAD(path)
        with pytest.raises(DataError) as sent:
            pool.ahead([paths[0], path])(path)
        assert str(sent.value) == str(plain.value) and str(path) in str(plain.value)
    assert same(pool(paths[0]), LOAD(paths[0])), "the workers go on"


def test_pictures_are_kept_in_memory_up_to_a_number(paths):
    seen: list[Path] = []

    def load(path: Path) -> Prepared:
        seen.append(path)
        return LOAD(path)

    one, two = paths[:2]
    kept = Pictures(load, kept=1)
    for path in (one, one, two, two, one):
        kept(path)
    assert seen == [one, two, one]
    plain = Pictures(load)
    seen.clear()
    plain(one), plain(one)
    assert seen == [one, one]
    ahead = plain.ahead([two, two])
    assert seen == [one, one], "nothing is loaded here before it is taken"
    ahead(two), ahead(two)
    assert seen == [one, one, two], "a picture that is in a batch twice is loaded once"


def test_kept_pictures_are_not_sent_to_workers_again(paths, monkeypatch):
    asked: list[Path] = []

    class Here:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def submit(self, decode, load, path):
            asked.append(path)
            return ProcessPoolExecutor  # is not asked for a result here

    monkeypatch.setattr(picture_workers, "ProcessPoolExecutor", Here)
    pictures = Pictures(LOAD, 1, kept=4)
    pictures.ahead(paths[:3])
    pictures.ahead(paths[1:4])
    assert asked == paths[:4]


def test_a_killed_worker_is_one_line_and_the_others_end(paths):
    before = processes_of(os.getpid())
    pictures = Pictures(LOAD, 1)
    pictures(paths[0])
    (worker,) = processes_of(os.getpid()) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match=r"decodes pictures was killed, perhaps .*; lower data\.workers"):
        pictures.ahead(paths)(paths[0])
    assert gone({worker})


def test_workers_end_with_their_last_user(paths):
    before = processes_of(os.getpid())
    pictures = Pictures(LOAD, 1)
    pictures(paths[0])
    workers = processes_of(os.getpid()) - before
    assert len(workers) == 1
    del pictures
    assert gone(workers)


SCRIPT = """
import sys, time
from pathlib import Path
from data.picture_workers import Pictures
from tests.data.test_picture_workers import LOAD, WORKERS

if __name__ == "__main__":
    pictures = Pictures(LOAD, WORKERS)
    paths = [Path(word) for word in sys.argv[2:]]
    ahead = pictures.ahead(paths)
    for path in paths:
        ahead(path)
    print("ready", flush=True)
    pictures.ahead(paths * 20)
    if sys.argv[1] == "sleep":
        time.sleep(60)
"""


@pytest.fixture
def started(tmp_path, paths) -> Iterator[object]:
    """Runs the script in a process group of its own and tells its workers once they work."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    running: list[subprocess.Popen[str]] = []

    def start(end: str) -> tuple[subprocess.Popen[str], set[int]]:
        words = [sys.executable, "-W", "error", str(script), end, *map(str, paths)]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process, processes_of(process.pid)

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", ["kill", "interrupt", "return"])
def test_nothing_is_left_behind(started, end):
    process, workers = started("return" if end == "return" else "sleep")
    if end == "kill":
        process.kill()
    if end == "interrupt":  # as a terminal does it: everyone in the group
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert gone(workers)
    if end == "kill":
        return
    assert 1 <= len(workers) <= WORKERS
    assert (process.returncode == 0) == (end == "return")
    assert "Warning" not in errors and errors.count("Traceback") == (end != "return")


def test_the_usual_number_leaves_cores_for_the_step():
    cores = [(None, 1), (1, 1), (2, 1), (4, 1), (16, 1), (16, 4), (64, 1), (64, 8)]
    assert [usual_workers(*each) for each in cores] == [0, 0, 0, 1, 4, 1, 8, 2]
