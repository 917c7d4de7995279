"""What a norm with an adapter behind it costs in one step (`mma/fused.py`), and one by one, the plain path.

Forward and backward, for a decoder site (RMS norm, routed by modality) and a tower site (layer norm, every
token routed by itself), on CUDA if there is a card (Triton kernels, bf16), else on the CPU (PyTorch, fp32).
The bound is what memory takes in the same run: forward one read and one write of the stream, backward two
reads and one write; `kept` stays for the backward pass beside the input. Goal on CUDA: within 1.3 of the
bound.

    python -m benchmarks.adapter_kernel [--json FILE]          under a minute
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import against, main, milliseconds, ratio, table, take_turns
from mma import MMAConfig, Site
from mma.routing import Routes, RouteState
from mma.sites import Wrapped, make_module
from models.decoder import RMSNorm

Shape = tuple[str, int, int]  # part, tokens, channels
CPU: tuple[Shape, ...] = (("decoder", 1024, 512), ("tower", 1600, 768))
CUDA: tuple[Shape, ...] = (("decoder", 4096, 4096), ("decoder", 16384, 4096), ("tower", 16448, 1024))
QUICK: tuple[Shape, ...] = (("decoder", 64, 32), ("tower", 48, 32))


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Times of both ways and of the bound, shape by shape."""
    card = torch.cuda.is_available()
    shapes = QUICK if quick else CUDA if card else CPU
    rows, numbers = [], {}
    for part, tokens, channels in shapes:
        case = Case(part, tokens, channels, "cuda" if card else "cpu")
        times = take_turns(case.runs(), 3 if quick else 40, on_card if card else process_time)
        spent, name = milliseconds(times), f"{part} {tokens} x {channels}"
        plain, bound = ratio(times, "one step", "one by one"), ratio(times, "one step", "bound")
        kept = {way: case.kept(run) for way, run in case.ways().items()}
        numbers[name] = {"milliseconds": spent, "over_plain": plain, "over_bound": bound, "kept": kept}
        rows.append(
            (
                name,
                *spent.values(),
                against(plain),
                against(bound),
                *(f"{each:.3f}" for each in kept.values()),
            )
        )
    head = ("site", "one step ms", "one by one", "bound", "over plain", "over bound", "kept", "kept, plain")
    where = torch.cuda.get_device_name() if card else "cpu"
    text = f"{where}; kept: over the size of the stream, without the input\n{table(head, rows)}"
    return text, {"where": where, "sites": numbers}


def on_card() -> float:
    """The time when the card has done its work."""
    torch.cuda.synchronize()
    return perf_counter()


class Case:
    """One site with an adapter that learns, and its input."""

    def __init__(self, part: str, tokens: int, channels: int, device: str) -> None:
        torch.manual_seed(0)
        kind = torch.float32 if device == "cpu" else torch.bfloat16
        norm = RMSNorm(channels, 1e-5) if part == "decoder" else nn.LayerNorm(channels)
        self.state = RouteState()
        self.site = Wrapped(norm.requires_grad_(False).to(device, kind), self.state)
        module = make_module(Site("norm", channels, part, "attn"), MMAConfig(), self.state)
        assert module is not None, "an adapter sits in both parts"
        self.adapter = module.to(device)
        self.site.adapters["a"], self.site.active = self.adapter, "a"
        self.x = torch.randn(tokens, channels, device=device, dtype=kind).requires_grad_()
        self.towards = torch.randn_like(self.x)
        modality = torch.arange(tokens, device=device) % 2
        self.routes = Routes(modality, modality[:2]) if part == "decoder" else None

    def one_step(self) -> Tensor:
        """As a site computes."""
        if self.routes is None:
            return self.site(self.x)
        with self.state.use(self.routes):
            return self.site(self.x)

    def one_by_one(self) -> Tensor:
        """The norm, then the adapter's formula."""
        return self.adapter(self.x, self.site.base(self.x), self.routes)

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """The forward passes that are compared."""
        return {"one step": self.one_step, "one by one": self.one_by_one}

    def runs(self) -> dict[str, Callable[[], object]]:
        """Forward and backward of both ways, and the bound."""
        learned = [self.x, *self.adapter.parameters()]
        out, source = torch.empty_like(self.x), self.x.detach()

        def both(forward: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(forward(), learned, self.towards)

        def bound() -> None:
            out.copy_(source)
            torch.add(source, self.towards, out=out)

        return {**{name: both(forward) for name, forward in self.ways().items()}, "bound": bound}

    def kept(self, forward: Callable[[], Tensor]) -> float:
        """Bytes that a forward keeps beside its input and the weights, over those of the input."""
        given = {t.untyped_storage().data_ptr() for t in (self.x, *self.site.parameters())}
        found: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward()
        return sum(found.values()) / self.x.untyped_storage().nbytes()


if __name__ == "__main__":
    main("adapter_kernel", __doc__, measure)
