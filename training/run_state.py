"""What a run needs to go on in the same bits: written whole or not at all, nothing pickled.

RUN/state/step-00000123-0007/ (step, and number of the save) holds the trained tensors, their moving average
where one is kept, those of the optimizer, the best ones so far, and a JSON file. It is filled under another
name, brought to the disk and renamed, so a folder of that name is complete, and the newest one is where the
run stands. No random state is kept: every step seeds the generators anew from (seed, step).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from training.errors import RunError

FORMAT = 1
PARTIAL = ".part"
KINDS = ("best", "optimizer", "trainables")  # of tensors in every state; a moving average adds "ema"


@dataclass
class Progress:
    """Where a run stands; `step` counts the optimizer steps that are done."""

    step: int = 0
    saves: int = 0  # states written; makes the name of each one new
    validated: int = 0  # step of the last complete validation
    best_step: int | None = None
    best_scores: dict[str, float] | None = None
    scores: dict[str, float] | None = None  # of the last validation
    stale: int = 0  # validations since the best one
    metrics_bytes: int = 0  # length of metrics.jsonl at this step
    finished: bool = False


@dataclass(frozen=True)
class RunState:
    """One complete state: progress, tensors by kind (KINDS), and how it was made."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    about: dict[str, Any]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the run folder and keeps other processes from writing to it; a kill frees it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115, closed below
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is writing to {folder}: wait for it or stop it") from error
        yield


def step_name(step: int) -> str:
    """Folder name of a step; sorts by step."""
    return f"step-{step:08d}"


def write_state(root: Path, state: RunState) -> Path:
    """Writes a new folder that is there completely or not at all, then removes the older ones."""
    target = root / f"{step_name(state.progress.step)}-{state.progress.saves:04d}"
    content = {
        "format": FORMAT,
        "kinds": sorted(state.tensors),
        "progress": asdict(state.progress),
        "about": state.about,
    }
    files = {f"{kind}.safetensors": safetensors.torch.save(_plain(t)) for kind, t in state.tensors.items()}
    files["state.json"] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    partial = root / (target.name + PARTIAL)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, data in files.items():
            write_file(partial / name, data)
        _sync_folder(partial)
        os.rename(partial, target)
        _sync_folder(root)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for other in root.iterdir():
        if other != target:
            remove_folder(other)
    return target


def newest_state(root: Path) -> Path | None:
    """The newest complete state folder, if there is one."""
    complete = [folder for folder in root.glob("step-*") if not folder.name.endswith(PARTIAL)]
    return max(complete, default=None)


def read_state(folder: Path) -> RunState:
    """Reads a state folder."""
    try:
        content = json.loads((folder / "state.json").read_text())
        if content["format"] != FORMAT:
            raise RunError(
                f"{folder} has format {content['format']}, this version reads {FORMAT}; use the newer one"
            )
        tensors = {
            file.stem: safetensors.torch.load(file.read_bytes()) for file in folder.glob("*.safetensors")
        }
        kinds = content.get("kinds", KINDS)
        if sorted(tensors) != sorted(kinds):
            raise ValueError(f"it has {', '.join(sorted(tensors))}, not {', '.join(kinds)}")
        known = {field.name for field in fields(Progress)}
        progress = Progress(**{key: value for key, value in content["progress"].items() if key in known})
        return RunState(progress, tensors, content["about"])
    except RunError:
        raise
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise RunError(f"the run state {folder} cannot be read ({error}): start the run anew") from error


def load_trainables(tensors: Mapping[str, Tensor], trainables: Mapping[str, Tensor], folder: Path) -> None:
    """Puts saved tensors into the trained parameters; names and shapes must be the same."""
    for name in sorted(tensors.keys() ^ trainables.keys()):
        side = "lacks" if name in trainables else "has an unknown"
        raise RunError(
            f"{folder} {side} trained tensor '{name}': the base or the adapter settings have changed"
        )
    with torch.no_grad():
        for name, parameter in trainables.items():
            if tensors[name].shape != parameter.shape:
                raise RunError(
                    f"{folder}: '{name}' is {list(tensors[name].shape)}, here it is {list(parameter.shape)}: "
                    "the base or the adapter has changed"
                )
            parameter.copy_(tensors[name])


def remove_folder(folder: Path) -> None:
    """Removes a folder; one killed half-way does not leave half a folder under the old name."""
    if not folder.name.endswith(PARTIAL):
        folder = folder.rename(folder.with_name(folder.name + PARTIAL))
    shutil.rmtree(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed run left half-written in a folder."""
    for path in [*folder.glob("*" + PARTIAL), *folder.glob(".*.old")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Puts a new file in the place of another; a reader sees the old one or the new one."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        write_file(partial, data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
