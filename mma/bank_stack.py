"""The adapters of a bank at one site, stacked slot by slot: one pass answers every token by its own.

A token's bottleneck is computed for everything in use and kept for its own adapter alone; then one product
takes all of them up. So a site costs two matrix products whatever number of adapters a batch mixes, of a
width that grows with it. Slots that no sample asks for cost memory only.

Shapes: N tokens, ... axes between, C channels, S slots, U slots in use, V pairs of slot and modality in use,
M modalities, K routes, r rank.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mma.adapter import TokenRouted
from mma.lowrank import LowRank
from mma.plan import BankPlan

NEVER = -1e4  # router bias of a route that is never taken


class Stack(nn.Module):
    """Stacked tensors of a site; what a batch uses of them is gathered once and kept for the next."""

    def __init__(self) -> None:
        super().__init__()
        self._gathered: tuple[object, tuple[Tensor, ...]] | None = None

    def forward(self, y: Tensor, plan: BankPlan) -> Tensor:
        """float[N, ..., C] -> the same with every token's own adapter added."""
        raise NotImplementedError

    def clear(self, slot: int) -> None:
        """Empties a slot: it adds nothing."""
        with torch.no_grad():
            for tensor in self.buffers():
                tensor[slot].zero_()
        self._gathered = None

    def gathered(self, plan: BankPlan, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The tensors of the slots and pairs in use, laid out for the two products."""
        key = (plan.slots, plan.pairs, dtype, plan.slot_of.device)
        if self._gathered is None or self._gathered[0] != key:
            # What is kept may meet a training step next, so it must not be made as an inference tensor.
            with torch.inference_mode(False), torch.no_grad():
                self._gathered = (key, tuple(t.to(dtype).contiguous() for t in self.gather(plan)))
        return self._gathered[1]

    def gather(self, plan: BankPlan) -> tuple[Tensor, ...]:
        """See `gathered`."""
        raise NotImplementedError


class LowRankStack(Stack):
    """Adapters that are a low-rank map for every modality: decoder sites, and tower rule `modality`."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    bias: Tensor

    def __init__(self, slots: int, r: int, channels: int, modalities: int, like: Tensor) -> None:
        super().__init__()
        for name, shape in (
            ("down", (slots, r, channels)),
            ("down_bias", (slots, r)),
            ("up", (slots, modalities, channels, r)),
            ("bias", (slots, modalities, channels)),
        ):
            self.register_buffer(name, like.new_zeros(shape), persistent=False)

    def fill(self, slot: int, maps: list[LowRank]) -> None:
        """Puts an adapter's map of every modality into a slot; a smaller rank is filled up with zeros."""
        self.clear(slot)
        r = len(maps[0].down)
        with torch.no_grad():
            self.down[slot, :r] = maps[0].down
            self.down_bias[slot, :r] = maps[0].down_bias
            for modality, low in enumerate(maps):
                self.up[slot, modality, :, :r] = low.up
                self.bias[slot, modality] = low.bias

    def gather(self, plan: BankPlan) -> tuple[Tensor, ...]:
        """down float[(V r), C], its bias, and up with its bias as last rows float[(V r) + V, C]."""
        slots = [plan.slots[u] for u, _ in plan.pairs]
        modality = [m for _, m in plan.pairs]
        up = rearrange(self.up[slots, modality], "v c r -> (v r) c")
        return (
            rearrange(self.down[slots], "v r c -> (v r) c"),
            rearrange(self.down_bias[slots], "v r -> (v r)"),
            torch.cat([up, self.bias[slots, modality]]),
        )

    def forward(self, y: Tensor, plan: BankPlan) -> Tensor:
        """float[N, ..., C] -> float[N, ..., C]."""
        down, down_bias, up = self.gathered(plan, y.dtype)
        own = plan.spread(plan.pair_of, y)
        z = rearrange(nn.functional.linear(y, down, down_bias), "... (v r) -> ... v r", v=len(plan.pairs))
        return _taken_up(y, z.masked_fill(~own[..., None], 0.0).flatten(-2), own.to(y.dtype), up)


class TokenRoutedStack(Stack):
    """Adapters that route every token by itself: tower rule `token`, or `modality` as a constant router."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    bias: Tensor
    router: Tensor
    router_bias: Tensor

    def __init__(self, slots: int, r: int, channels: int, routes: int, like: Tensor) -> None:
        super().__init__()
        for name, shape in (
            ("down", (slots, r, channels)),
            ("down_bias", (slots, r)),
            ("up", (slots, routes, channels, r)),
            ("bias", (slots, routes, channels)),
            ("router", (slots, routes, channels)),
            ("router_bias", (slots, routes)),
        ):
            self.register_buffer(name, like.new_zeros(shape), persistent=False)

    def fill(self, slot: int, adapter: TokenRouted | LowRank) -> None:
        """Puts an adapter into a slot; a low-rank map is a mixture whose first route is always taken."""
        self.clear(slot)
        with torch.no_grad():
            self.router_bias[slot] = NEVER
            if isinstance(adapter, LowRank):
                r = len(adapter.down)
                self.down[slot, :r], self.down_bias[slot, :r] = adapter.down, adapter.down_bias
                self.up[slot, 0, :, :r], self.bias[slot, 0] = adapter.up, adapter.bias
                self.router_bias[slot, 0] = 0.0
                return
            routes, _, r = adapter.dense_up().shape
            assert adapter.down.bias is not None and adapter.router.bias is not None
            self.down[slot, :r], self.down_bias[slot, :r] = adapter.down.weight, adapter.down.bias
            self.up[slot, :routes, :, :r] = adapter.scale * adapter.dense_up()
            self.bias[slot, :routes] = adapter.scale * adapter.route_biases()
            self.router[slot, :routes] = adapter.router.weight / adapter.temperature
            self.router_bias[slot, :routes] = adapter.router.bias / adapter.temperature

    def gather(self, plan: BankPlan) -> tuple[Tensor, ...]:
        """down float[(U r), C] and router float[(U K), C] with their biases, up float[(U K r) + (U K), C]."""
        slots = list(plan.slots)
        return (
            rearrange(self.down[slots], "u r c -> (u r) c"),
            rearrange(self.down_bias[slots], "u r -> (u r)"),
            rearrange(self.router[slots], "u k c -> (u k) c"),
            rearrange(self.router_bias[slots], "u k -> (u k)"),
            torch.cat(
                [
                    rearrange(self.up[slots], "u k c r -> (u k r) c"),
                    rearrange(self.bias[slots], "u k c -> (u k) c"),
                ]
            ),
        )

    def forward(self, y: Tensor, plan: BankPlan) -> Tensor:
        """float[N, ..., C] -> float[N, ..., C]."""
        down, down_bias, router, router_bias, up = self.gathered(plan, y.dtype)
        other, used = ~plan.spread(plan.slot_of, y)[..., None], len(plan.slots)
        z = rearrange(nn.functional.linear(y, down, down_bias), "... (u r) -> ... u r", u=used)
        z = z.masked_fill(other, 0.0)
        logits = rearrange(nn.functional.linear(y, router, router_bias), "... (u k) -> ... u k", u=used)
        weights = logits.float().softmax(-1).to(y.dtype).masked_fill(other, 0.0)
        weighted = weights[..., None] * z[..., None, :]
        return _taken_up(y, weighted.flatten(-3), weights.flatten(-2), up)


def _taken_up(y: Tensor, weighted: Tensor, weights: Tensor, up: Tensor) -> Tensor:
    """y plus the bottlenecks and the weights of the biases times `up`: float[N, ..., C]."""
    narrow = torch.cat([weighted, weights], dim=-1).flatten(0, -2)
    return torch.addmm(y.flatten(0, -2), narrow, up).view_as(y)
