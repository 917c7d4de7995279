"""What a run tells while it goes: a progress line, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.step import StepResult

# Fields of metrics.jsonl that differ between two runs of the same recipe.
MEASURED = ("seconds", "tokens_per_second", "peak_memory")
LOG_SECONDS = 10.0


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Monitor:
    """Reports steps and validations of one run folder; a resumed run goes on where its state stands."""

    def __init__(
        self, folder: Path, *, step: int, steps: int, metrics_bytes: int, device: torch.device
    ) -> None:
        self._device = device
        self._file = open(folder / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115, closed by close()
        # What was written after the state was saved is going to be written again.
        self._file.truncate(min(metrics_bytes, self._file.seek(0, os.SEEK_END)))
        self._file.seek(0, os.SEEK_END)
        self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=step, unit="step", dynamic_ncols=True, disable=not self._terminal
        )
        self._first, self._steps = step, steps
        self._began = self._last = self._last_line = time.monotonic()

    def step(self, step: int, epoch: float, rate: float, result: StepResult) -> None:
        """Reports an optimizer step; the time since the last report is the time it took."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        speed, peak = result.tokens / max(seconds, 1e-9), peak_memory(self._device)
        record = {
            "step": step,
            "epoch": round(epoch, 6),
            "loss": result.loss,
            "lr": rate,
            "grad_norm": result.grad_norm,
            "tokens": result.tokens,
            "targets": result.targets,
            "samples": result.sample_ids,
            "seconds": round(seconds, 6),
            "tokens_per_second": round(speed, 1),
            "peak_memory": peak,
        }
        self._write(record)
        for name in ("loss", "lr", "grad_norm", "tokens_per_second", "peak_memory"):
            self._board.add_scalar(f"train/{name}", record[name], step)
        text = f"loss {result.loss:.4f}, lr {rate:.2e}, {speed:,.0f} tokens/s, {peak / 2**30:.2f} GiB"
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif step == self._steps or now - self._last_line >= LOG_SECONDS:
            # A log file gets plain lines and few of them.
            self._last_line = now
            elapsed = now - self._began
            left = elapsed / (step - self._first) * (self._steps - step)
            print(
                f"step {step}/{self._steps}, {tqdm.format_interval(elapsed)} gone, "
                f"{tqdm.format_interval(left)} left: {text}",
                file=sys.stderr,
                flush=True,
            )

    def validation(self, step: int, scores: dict[str, float]) -> None:
        """Reports a validation after optimizer step `step`."""
        self._write({"step": step, "validation": scores})
        for name, score in scores.items():
            self._board.add_scalar(f"validation/{name}", score, step)
        text = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        tqdm.write(f"step {step}: validation {text}", file=sys.stderr)

    def resume(self) -> None:
        """A step begins: the time of validating and saving before it is not counted as its own."""
        self._last = time.monotonic()

    def sync(self) -> int:
        """Brings metrics.jsonl to the disk and returns its length."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes everything."""
        self._bar.close()
        self._file.close()
        self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        if self._file.write(line) < len(line):
            # An unbuffered write that ends early does not raise; half a line must not get another behind it.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Silent:
    """The monitor of a process that is not the first: the first one reports for all."""

    def step(self, step: int, epoch: float, rate: float, result: StepResult) -> None:
        """Reports nothing."""

    def validation(self, step: int, scores: dict[str, float]) -> None:
        """Reports nothing."""

    def resume(self) -> None:
        """Measures nothing."""

    def close(self) -> None:
        """Has nothing to close."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
