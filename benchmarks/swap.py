"""How long it takes until another adapter of the size of a 7B base's answers: `Adapters.hotswap_adapter`.

From the folder on disk to tensors and routing table in place, on a skeleton: all norms of LLaMA-7B and
ViT-L/14 where an adapter sits (32 x 4096 and 24 x 1024), projector and modality tokens, 3,781,296 trained
parameters, but none of the base's large layers. So the swap itself is measured: with the base, the pass of
the two modality tokens through its decoder comes on top. The bound is reading the file with safetensors
and copying its tensors, without a check; the peer is deleting the adapter and loading the other one.

    python -m benchmarks.swap [--json FILE]          half a minute
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.measure import add_random, against, main, milliseconds, ratio, table, take_turns
from mma import Adapters, MMAConfig, Routes, Site
from mma.storage import read
from models.decoder import RMSNorm
from models.named import NAMED
from models.projector import ClassTokenProjector

ROUNDS = 31
DECODER, TOWER_BLOCKS, TOWER_WIDTH = NAMED["llama-7b"], 24, 1024
TENSORS = "adapter_model.safetensors"


class Skeleton(nn.Module):
    """The norms of a 7B base that carry adapters, and nothing behind them."""

    def __init__(self, quick: bool) -> None:
        super().__init__()
        layers, blocks = (2, 2) if quick else (DECODER.n_layers, TOWER_BLOCKS)
        self.decoder = nn.ModuleList(RMSNorm(DECODER.dim, DECODER.norm_eps) for _ in range(layers))
        self.tower = nn.ModuleList(nn.LayerNorm(TOWER_WIDTH) for _ in range(blocks))
        sites = [
            Site(f"{part}.{index}", width, part, "attn", index)
            for part, norms, width in (
                ("decoder", self.decoder, DECODER.dim),
                ("tower", self.tower, TOWER_WIDTH),
            )
            for index in range(len(norms))
        ]
        self.adapters = Adapters(self, sites, self._make_parts, self._router_pass)

    @staticmethod
    def _make_parts(config: Any) -> dict[str, nn.Module]:
        projector = ClassTokenProjector(TOWER_WIDTH, config.projector_hidden, DECODER.dim)
        return {"projector": projector, "modality": nn.Embedding(len(config.modalities), DECODER.dim)}

    def _router_pass(self) -> None:
        modality = self.adapters.part("modality")
        assert isinstance(modality, nn.Embedding), "it was made so"
        rows = torch.arange(modality.num_embeddings)
        with self.adapters.state.use(Routes(rows, rows)):
            x = modality.weight
            for norm in self.decoder:
                x = x + norm(x)


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Times of a swap between two folders, in fp32 and in fp16."""
    model = Skeleton(quick).eval()
    adapters, rounds = model.adapters, 3 if quick else ROUNDS
    lines, numbers = [], {}
    with TemporaryDirectory() as root:
        folders = _folders(adapters, Path(root))
        parameters = sum(p.numel() for p in adapters.trainable_parameters().values())
        for kind, pair in folders.items():
            times = take_turns(_cases(adapters, pair), rounds, perf_counter)
            spent = milliseconds(times)
            size = sum(file.stat().st_size for file in pair[0].iterdir())
            over = {peer: ratio(times, "swap", peer) for peer in ("read and copy, unchecked", "load anew")}
            rest = spent["swap"] - spent["of which reading"] - spent["of which the routing table"]
            spent["of which checking and copying"] = round(rest, 3)
            lines += [(f"{kind}: {name}", f"{value:.2f}") for name, value in spent.items()]
            lines += [(f"{kind}: swap over {peer}", against(value)) for peer, value in over.items()]
            numbers[kind] = {"bytes": size, "milliseconds": spent, "swap_over": over}
    text = f"{parameters:,} parameters; a folder has " + " and ".join(
        f"{numbers[kind]['bytes']:,} bytes in {kind}" for kind in folders
    )
    return f"{text}\n{table(('', 'ms'), lines)}", {"parameters": parameters, "rounds": rounds, **numbers}


def _folders(adapters: Adapters, root: Path) -> dict[str, tuple[Path, Path]]:
    """Two folders of every type; the adapter that is held ends as the second."""
    add_random(adapters, "default", MMAConfig(), seed=0)
    found: dict[str, tuple[Path, Path]] = {}
    for index in range(2):
        with torch.no_grad():
            for parameter in adapters.trainable_parameters().values():
                parameter.mul_(1.1)
        adapters.save_pretrained(root / f"fp32-{index}")
        half = root / f"fp16-{index}"
        adapters.save_pretrained(half)
        tensors = load_file(half / TENSORS)
        save_file({name: x.half() for name, x in tensors.items()}, half / TENSORS, {"format": "pt"})
    for kind in ("fp32", "fp16"):
        found[kind] = (root / f"{kind}-0", root / f"{kind}-1")
    return found


def _cases(adapters: Adapters, pair: tuple[Path, Path]) -> dict[str, Callable[[], object]]:
    """What is timed; every case goes to and fro between the two folders."""
    parameters = adapters.trainable_parameters()

    def copy(path: Path) -> None:
        tensors = load_file(path / TENSORS)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])

    def swap_unread(path: Path) -> None:
        _forget(path / TENSORS)
        adapters.hotswap_adapter(path)

    def table_again(_: Path) -> None:
        with torch.no_grad():
            parameters["modality.weight"].mul_(1.0)  # a write, as a swap is
        adapters.refresh_table()

    def load_anew(path: Path) -> None:
        adapters.load_adapter(path, "other")
        adapters.refresh_table()
        adapters.delete_adapter("other")
        adapters.set_adapter("default")

    cases: dict[str, Callable[[Path], object]] = {
        "swap": adapters.hotswap_adapter,
        "of which reading": lambda path: read(adapters, path),
        "of which the routing table": table_again,
        "swap, file not in memory": swap_unread,
        "read and copy, unchecked": copy,
        "load anew": load_anew,
    }
    return {name: _to_and_fro(run, pair) for name, run in cases.items()}


def _to_and_fro(run: Callable[[Path], object], pair: tuple[Path, Path]) -> Callable[[], object]:
    turns = iter(range(2**31))
    return lambda: run(pair[next(turns) % 2])


def _forget(path: Path) -> None:
    """Asks the system to drop a file from its memory, so that it is read from the disk again."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


if __name__ == "__main__":
    main("swap", __doc__, measure)
