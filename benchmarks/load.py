"""Loading the decoder of a folder: time against reading its files, memory against their size, and the peer.

A random decoder of 2 GB in half precision is written to a temporary folder. Every case is a process of its
own. Before it loads, the folder's pages are dropped from the cache with `posix_fadvise(DONTNEED)`: that needs
no rights, but what lies below the kernel (the cache of a virtual disk's host) stays warm, so the times are a
lower bound. Every page of the weights is touched within the time: what is mapped is read when it is used.

The peak is that of resident memory above what the process had before; pages of the mapped file count. What
the disk gave is what the kernel accounts to the process. The digest of the base is computed afterwards: it
must find every byte in memory. A quick run measures in one process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.measure import against, main, ratio, table
from mma.digest import digest
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.export import write_hf
from models.weights import load_decoder

SHAPE = DecoderConfig(2048, 18, 16, 16, 5504, vocab_size=32_000)
QUICK = DecoderConfig(64, 2, 4, 4, 128, vocab_size=500)
ROUNDS, CHUNK, PAGE = 5, 4 * 2**20, 4096
SHOWN = ("seconds", "peak_over_size", "disk_over_size")
PLAIN, PEER = "plain read", "transformers"


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Seconds, peak memory and bytes read of all cases."""
    cases: dict[str, Callable[[Path], nn.Module | None]] = {
        PLAIN: _read,
        "ours, fp16 as bf16": partial(_ours, torch.bfloat16),
        "ours, fp16 as it is": partial(_ours, torch.float16),
        PEER + ", fp16 as bf16": partial(_peer, torch.bfloat16),
        PEER + ", fp16 as it is": partial(_peer, torch.float16),
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, QUICK if quick else SHAPE)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        runs: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(2 if quick else ROUNDS):
            for case, load in cases.items():
                runs[case].append(_measured(load, folder) if quick else _apart(load, folder))
    seconds = {case: [run["seconds"] for run in each] for case, each in runs.items()}
    over_read = {case: ratio(seconds, case, PLAIN) for case in cases}
    found = {
        case: {
            "seconds": round(median(seconds[case]), 3),
            "peak_over_size": round(median(run["peak"] for run in each) / size, 3),
            "disk_over_size": round(median(run["disk"] for run in each) / size, 3),
            "digest_seconds": round(median(run["digest_seconds"] for run in each), 3),
            "digest_disk_over_size": round(median(run["digest_disk"] for run in each) / size, 3),
        }
        for case, each in runs.items()
    }
    rows = [
        (
            case,
            *(f"{told[key]:.2f}" for key in ("seconds", "peak_over_size", "disk_over_size")),
            against(over_read[case]),
        )
        for case, told in found.items()
    ]
    head = ("", "seconds", "peak / size", "disk / size", "over a plain read")
    ours = found["ours, fp16 as bf16"]
    text = "\n".join(
        [
            f"{size / 1e9:.2f} GB",
            table(head, rows),
            "goal of the peak: at most 1.2",
            f"the digest takes {ours['digest_seconds']:.2f} s, "
            f"{ours['digest_disk_over_size']:.3f} of the size comes from the disk",
        ]
    )
    return text, {"bytes": size, "cases": found, "over_plain_read": over_read}


def _write(folder: Path, shape: DecoderConfig) -> None:
    torch.manual_seed(0)
    write_hf(Decoder(shape), folder, torch.float16)
    for path in folder.iterdir():  # pages that wait to be written cannot be dropped
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _read(folder: Path) -> None:
    buffer = bytearray(CHUNK)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _ours(dtype: torch.dtype, folder: Path) -> nn.Module:
    return load_decoder(folder, dtype=dtype)


def _peer(dtype: torch.dtype, folder: Path) -> nn.Module:
    logging.disable_progress_bar()
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


def _apart(load: Callable[[Path], nn.Module | None], folder: Path) -> dict[str, float]:
    """A case in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, load, folder).result()


def _measured(load: Callable[[Path], nn.Module | None], folder: Path) -> dict[str, float]:
    """One case: its time, the memory and the bytes of the disk that it took, and the same of the digest."""
    with TemporaryDirectory() as name:  # what a first load brings into memory beside the weights
        _write(Path(name), QUICK)
        load(Path(name))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    memory, disk, start = _memory("VmRSS"), _disk(), perf_counter()
    model = load(folder)
    for parameter in () if model is None else model.parameters():
        parameter.detach().view(torch.uint8).flatten()[::PAGE].sum()
    found = {"seconds": perf_counter() - start, "disk": _disk() - disk}
    disk, start = _disk(), perf_counter()
    if model is not None:
        digest(model.named_parameters())
    found |= {"digest_seconds": perf_counter() - start, "digest_disk": _disk() - disk}
    return {**found, "peak": _memory("VmHWM") - memory}


def _memory(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


def _disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    main("load", __doc__, measure)
