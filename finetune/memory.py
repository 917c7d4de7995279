"""What a step would keep and compute, found by running it without memory: no weight, no number, no device.

The model lies on PyTorch's meta device, where a tensor has a shape and a type and nothing else. A whole step
is run there, forward and backward, and every tensor that would exist is counted while it would exist; so
whatever the recipe asks for (kind of adapter, checkpointing, any resolution) is counted as it would be run.

Shapes: N packed tokens, V views, H and W pixels.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from data.packing import PackedBatch
from finetune.recipe import Recipe
from models.build import DTYPES, outline
from models.multimodal import MultimodalLM

SHORT = 2  # blocks of the shorter of two decoders that tell what a deep one needs
META = torch.device("meta")


@dataclass(frozen=True)
class Shape:
    """What a micro-batch holds: tokens, supervised tokens and the picture's size, if any, of each sample."""

    tokens: tuple[int, ...]
    supervised: tuple[int, ...]
    pictures: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Needs:
    """Bytes and products of one micro-batch, beyond the weights."""

    activations: int  # kept from the forward pass for the backward pass
    working: int  # what comes on top at the worst moment
    flops: int  # of products with weights


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that exist, now and at most, and the products' operations."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.flops = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (counts := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += counts(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return out

    def know(self, tensors: Sequence[Tensor]) -> None:
        """These were there before: they do not count."""
        self._sizes |= {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _Flash(Function):
    """What fused attention keeps: its inputs, its output and a number per head and query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Fused attention inside the block: for the meta device PyTorch takes the one that forms every score.

    The function itself is replaced, since a mode does not reach what is computed again in the backward pass.
    """
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda q, k, v, **_: _Flash.apply(q, k, v)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def needs(recipe: Recipe, shape: Shape) -> Needs:
    """What a micro-batch of a recipe needs.

    Blocks are alike, so two short decoders tell what the whole one needs, unless the adapter treats some of
    the blocks in their own way.
    """
    settings, depth = recipe.settings, len(outline(recipe.base).decoder.blocks)
    named = any(".blocks." in word for word in settings.tuned) or getattr(settings, "layers", ())
    if named or depth <= SHORT + 1:
        return traced(_outlined(recipe, depth), shape)
    few, more = (traced(_outlined(recipe, blocks), shape) for blocks in (SHORT, SHORT + 1))
    further = depth - SHORT
    return Needs(
        activations=few.activations + further * (more.activations - few.activations),
        working=more.working,
        flops=few.flops + further * (more.flops - few.flops),
    )


def _outlined(recipe: Recipe, blocks: int) -> MultimodalLM:
    """The system of a recipe without memory, in the types it would compute in."""
    model = outline(recipe.base, blocks)
    model.to(DTYPES[recipe.base.precision])
    with META:
        model.adapters.add_adapter("default", recipe.settings)
    model.checkpointing = recipe.optim.checkpointing
    for name, parameter in model.adapters.trainable_parameters().items():
        if recipe.optim.parts.get(model.part_of(name)) == 0:
            parameter.requires_grad_(False)
        if name.startswith("tuned."):  # autocast computes in the base's type
            parameter.data = parameter.data.to(DTYPES[recipe.base.precision])
    return model


def traced(model: MultimodalLM, shape: Shape) -> Needs:
    """What a micro-batch needs of a model that lies on the meta device, with its adapter."""
    batch = _batch(model, shape)
    model.train()
    living = _Living()
    held = [*model.parameters(), *model.buffers(), *model.adapters.all_parameters()]
    for parameter in list(held):
        if parameter.requires_grad:  # as behind an earlier micro-batch of the step
            parameter.grad = torch.empty_like(parameter)
            held.append(parameter.grad)
    living.know([*held, batch.ids, batch.positions, batch.sources, batch.targets, batch.slots])
    with _fused_attention(), living:
        loss = model.loss(batch)
        activations = living.now
        loss.backward()
    return Needs(activations, living.most - activations, living.flops)


def _batch(model: MultimodalLM, shape: Shape) -> PackedBatch:
    """A packed batch of that shape on the meta device."""
    sizes = tuple(size for size in shape.pictures if size is not None)
    views = sum(model.layout.views(*size) for size in sizes)
    height, width = model.tower.image_size

    def whole(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, device=META)

    return PackedBatch(
        ids=whole(sum(shape.tokens)),
        positions=whole(sum(shape.tokens)),
        lengths=shape.tokens,
        modalities=tuple("text" if size is None else "image" for size in shape.pictures),
        slots=whole(sum(model.slots(*size) for size in sizes)),
        pictures=torch.empty(views, 3, height, width, device=META) if sizes else None,
        sizes=sizes,
        sources=whole(sum(shape.supervised)),
        targets=whole(sum(shape.supervised)),
        sample_ids=tuple(str(index) for index in range(len(shape.tokens))),
    )
