"""Mixtures of many sizes through two implementations: how far their results are apart.

TRITON_INTERPRET=1 python tests/mma/fused_cases.py     the Triton kernels, on the CPU, as JSON
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from mma import fused, fused_triton

TOKENS, CHANNELS = 37, 80  # more than one block, slab and tile, and none of them full


@dataclass(frozen=True)
class Case:
    """One norm and mixture: routed by a table, by every token itself, or with one route."""

    rms: bool
    route: str
    r: int
    routes: int
    dtype: torch.dtype = torch.float32
    dropout: float = 0.0
    shift: bool = True

    def outcome(self, kernels: ModuleType, device: str) -> dict[str, Tensor]:
        """The output and all gradients."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        x = 2 * draw(TOKENS, CHANNELS, dtype=self.dtype) + 0.5
        gain, shift = draw(CHANNELS, dtype=self.dtype), draw(CHANNELS, dtype=self.dtype)
        norm = fused.Norm(gain, shift if self.shift and not self.rms else None, self.rms, 1e-5)
        r, k = self.r, self.routes
        shapes = [(r, CHANNELS), (r,), (k, CHANNELS, r), (k, CHANNELS)]
        shapes += [(k, CHANNELS), (k,)] if self.route == "token" else []
        weights = [0.1 * draw(*shape) for shape in shapes]
        table = draw(2, k).softmax(-1) if self.route == "table" else None
        of_token = None if table is None else (torch.arange(TOKENS, device=device) % 3 == 0).long()
        keep = (draw(TOKENS, r) > 0).to(self.dtype) * 2 if self.dropout else None
        learned = [t.requires_grad_() for t in (x, *weights, table) if t is not None]
        with mock.patch.object(fused, "_kernels", return_value=kernels):
            y = fused.mixed(x, norm, fused.Weights(*weights), fused.Routed(table, of_token), keep, 0.5, 2.0)
            towards = draw(TOKENS, CHANNELS, dtype=self.dtype)
            found = torch.autograd.grad(y, learned, towards)
        names = ["x", "down", "down bias", "up", "up bias"]
        names += ["router", "router bias"] if self.route == "token" else []
        return {"y": y, **dict(zip([*names, "table"], found, strict=False))}

    def distance(self, device: str) -> dict[str, float]:
        """Of every result, as a share of its size."""
        twin, triton = (self.outcome(kernels, device) for kernels in (fused, fused_triton))
        return {
            name: ((triton[name] - want).abs().max() / want.abs().max().clamp_min(1.0)).item()
            for name, want in twin.items()
        }


CASES = {
    f"{'rms' if rms else 'layer'} {route} {r}x{routes} {str(dtype).removeprefix('torch.')}": Case(
        rms, route, r, routes, dtype, dropout=0.5 if r > 5 else 0.0, shift=r > 5
    )
    for rms, (route, r, routes), dtype in product(
        (True, False),
        (("token", 8, 2), ("table", 20, 3), ("one", 5, 1)),
        (torch.float32, torch.bfloat16),
    )
}

if __name__ == "__main__":
    with mock.patch.object(fused_triton, "SLAB", 24 * CHANNELS):
        print(json.dumps({name: case.distance("cpu") for name, case in CASES.items()}))
