"""Blocks whose weights stay in the host's memory, for a GPU that is smaller than the base.

They come to the device block by block, forward and again for the gradient, each while the one before it
computes (arXiv 2104.07857); there is room for two. Behind a pass without a gradient the next one waits for
its first block. The weights are frozen, so nothing goes back. Only those of linear layers are held away:
norms and biases are small.

Shapes: C channels of a layer's input, O of its output, W numbers of a block's weights together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.decoder import Decoder
from models.errors import ModelError

ROOM = 2  # blocks that lie on the device at once: the one that computes, and the next one


def held_away(count: int, blocks: int) -> tuple[int, ...]:
    """Which of a decoder's blocks stay away: spread evenly, so that the others' work hides their way.

    Raises ModelError for more blocks than there are.
    """
    if not 0 <= count <= blocks:
        raise ModelError(f"offload: the decoder has {blocks} blocks, not {count}; lower run.offload")
    return tuple(index * blocks // count for index in range(count))


def is_away(name: str, shape: Sequence[int], away: Sequence[int]) -> bool:
    """Whether a decoder's parameter is a weight of such a block."""
    return len(shape) == 2 and name.startswith(tuple(f"blocks.{index}." for index in away))


def keep_away(decoder: Decoder, away: Sequence[int], device: torch.device) -> Offload:
    """Leaves the weights of these blocks, which lie on the host, there and fetches them when they compute."""
    offload = Offload(device)
    for index in away:
        block = decoder.blocks[index]
        linears = {path: module for path, module in block.named_modules() if isinstance(module, nn.Linear)}
        place, parts = offload.add([linear.weight for linear in linears.values()])
        for (path, linear), part in zip(linears.items(), parts, strict=True):
            linear.weight = nn.Parameter(part, requires_grad=False)
            parent, _, leaf = path.rpartition(".")
            setattr(block.get_submodule(parent), leaf, AwayLinear(linear, offload, place))
    return offload


class Offload:
    """Weights of the blocks that are held away, in the order in which they compute.

    Args:
        device: Where they compute; there is room for two of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.fetched = 0  # blocks that have come so far
        self._held: list[Tensor] = []  # [W] of each block, on the host
        self._rooms: list[Tensor] = []  # [W], on the device
        self._here: list[int | None] = []  # the block in each room
        self._before = -1  # the block that was asked for last
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arrived: list[torch.cuda.Event] = []

    def add(self, weights: Sequence[Tensor]) -> tuple[int, list[Tensor]]:
        """Holds the weights of one more block, in one piece; gives its place, and them where they lie now."""
        sizes = [weight.numel() for weight in weights]
        # From memory that may be swapped out, a copy would wait for the host.
        flat = torch.empty(sum(sizes), dtype=weights[0].dtype, pin_memory=self._side is not None)
        parts = [part.view_as(weight) for part, weight in zip(flat.split(sizes), weights, strict=True)]
        for part, weight in zip(parts, weights, strict=True):
            part.copy_(weight.detach())
        self._held.append(flat)
        if len(self._rooms) < ROOM:
            self._rooms.append(torch.empty_like(flat, device=self.device))
            self._here.append(None)
            if self._side is not None:
                self._arrived.append(torch.cuda.Event())
        return len(self._held) - 1, parts

    def holds(self, place: int, weight: Tensor) -> bool:
        """Whether a weight is one of those that were added as this block."""
        return weight.untyped_storage().data_ptr() == self._held[place].untyped_storage().data_ptr()

    def weight(self, place: int, start: int, shape: torch.Size) -> Tensor:
        """A weight of a block on the device, to be used at once: another block may take its room."""
        if self._side is not None and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("blocks that are fetched cannot be part of a graph")
        room = place % len(self._rooms)
        if self._here[room] != place:
            self._fetch(place)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_event(self._arrived[room])
        if place != self._before:
            following, self._before = self._following(place), place
            if self._here[following % len(self._rooms)] != following:
                self._fetch(following)
        return self._rooms[room][start : start + shape.numel()].view(shape)

    def _following(self, place: int) -> int:
        """The block that computes next; at the first and at the last one the way turns."""
        last = len(self._held) - 1
        if place == 0:
            return min(1, last)
        return place + 1 if self._before < place < last else place - 1

    def _fetch(self, place: int) -> None:
        room = place % len(self._rooms)
        self._here[room] = place
        self.fetched += 1
        if self._side is None:
            self._rooms[room].copy_(self._held[place])
            return
        # Whoever used this room has been launched before.
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            self._rooms[room].copy_(self._held[place], non_blocking=True)
            self._arrived[room].record(self._side)


class AwayLinear(nn.Linear):
    """A linear layer whose weight is held away with those of its block."""

    def __init__(self, linear: nn.Linear, offload: Offload, place: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._offload, self._place, self._start = offload, place, linear.weight.storage_offset()

    def forward(self, x: Tensor) -> Tensor:
        """float[..., C] -> float[..., O]."""
        tuned = self.bias is not None and self.bias.requires_grad
        if tuned or not self._offload.holds(self._place, self.weight):
            raise ModelError(
                "offload: blocks that are held away can be neither tuned in full nor merged nor moved; "
                "set run.offload to 0"
            )
        at = (self._place, self._start, self.weight.shape)
        y: Tensor = _Fetched.apply(x, self.bias, self._offload, at)
        return y

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those on the device, by which an adapter at this layer finds its place."""
        return iter(() if self.bias is None else (self.bias,))


class _Fetched(torch.autograd.Function):
    """The product with a weight that is fetched for it and again for the gradient: nothing of it is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, offload: Offload, at: tuple[int, int, torch.Size]
    ) -> Tensor:
        ctx.offload, ctx.at = offload, at
        return functional.linear(x, offload.weight(*at), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.offload.weight(*ctx.at), None, None, None
