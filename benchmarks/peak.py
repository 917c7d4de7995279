"""Peak memory of one contestant of `train.py`, in a process of its own.

python -m benchmarks.peak CONTESTANT SHAPE FORMAT       prints {"peak_bytes": ...}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.shapes import SHAPES
from benchmarks.train import Case, make_step


def resident(kind: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


if __name__ == "__main__":
    name, shape, form = sys.argv[1:]
    case = Case(SHAPES[shape], form, SHAPES[shape].samples[form])
    before = resident("VmRSS")
    step = make_step(name, case)
    for _ in range(2):
        step()
    if case.shape.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resident("VmHWM") - before
    print(json.dumps({"peak_bytes": peak}))
