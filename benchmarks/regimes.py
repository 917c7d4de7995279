"""The ways to train that `train.py` compares: each makes a step, with every gradient of its samples.

Shapes: B samples of T tokens, N packed tokens, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.samples import bucketed, packed, picture
from data.packing import PackedBatch
from data.sample import Tokens
from models.multimodal import MultimodalLM, Routes
from training.batches import Pass
from training.step import train_step

Step = Callable[[], object]
PAPER_LENGTH = 512  # what the published code pads to
PAPER_BATCH = 4  # samples of one GPU


def ours(model: MultimodalLM, samples: Sequence[Tokens], budget: int) -> Step:
    """The step of `train.py`."""
    return _step(model, packed(samples, budget, model.tower.image_size))


def length_bucketed(model: MultimodalLM, samples: Sequence[Tokens], budget: int) -> Step:
    """The same, but samples of like length are padded to the longest of their batch."""
    return _step(model, bucketed(samples, budget, model.tower.image_size))


def _step(model: MultimodalLM, batches: Sequence[PackedBatch]) -> Step:
    trained = model.adapters.trainable_parameters()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0)
    own = [Pass(index, batch, index) for index, batch in enumerate(batches)]
    model.train()
    return lambda: train_step(model, trained, optimizer, own, step=1, device=model.device)


def paper_regime(model: MultimodalLM, samples: Sequence[Tokens]) -> Step:
    """The same adapters in padded rows, as the published code ran them."""
    trained = model.adapters.trainable_parameters()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0)
    rows = [
        _rows(samples[start : start + PAPER_BATCH], model) for start in range(0, len(samples), PAPER_BATCH)
    ]
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for ids, labels, pictures, shown in rows:
            _padded_loss(model, ids, labels, pictures, shown).backward()
        optimizer.step()

    return step


def _rows(samples: Sequence[Tokens], model: MultimodalLM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and labels int64[B, T], pictures float[B, 3, H, W] (zeros where there is none), slots int64[M]."""
    ids = torch.zeros(len(samples), PAPER_LENGTH, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    pictures = torch.zeros(len(samples), 3, *model.tower.image_size)
    slots: list[int] = []
    for row, sample in enumerate(samples):
        length = min(len(sample), PAPER_LENGTH)
        ids[row, :length] = torch.tensor(sample.ids[:length])
        supervised = torch.tensor(sample.supervised[:length])
        labels[row, :length] = ids[row, :length].where(supervised, torch.tensor(-100))
        slots += [row * PAPER_LENGTH + slot for slot in sample.slots]
        if sample.images:
            pictures[row] = picture(Path(sample.images[0]), model.tower.image_size)
    device, kind = model.device, model.tower.dtype
    return (
        ids.to(device),
        labels.to(device),
        pictures.to(device, kind),
        torch.tensor(slots, dtype=torch.long, device=device),
    )


def _padded_loss(model: MultimodalLM, ids: Tensor, labels: Tensor, pictures: Tensor, slots: Tensor) -> Tensor:
    """The mean loss of rows, each with its modality token in front."""
    count, length = ids.shape
    x = model.decoder.embed(ids.flatten())
    projected = rearrange(model.project(pictures), "(b t) d -> b t d", b=count)
    seen = slots.div(length, rounding_mode="floor").unique()
    x = x.index_copy(0, slots, projected[seen].flatten(0, 1).to(x.dtype))
    modality = model.adapters.part("modality")
    assert isinstance(modality, nn.Embedding), "the adapter is routed"
    carried = torch.zeros(count, dtype=torch.long, device=ids.device).index_fill(0, seen, 1)
    first = modality(carried).to(x.dtype)[:, None]
    rows = torch.cat([first, rearrange(x, "(b t) d -> b t d", b=count)], dim=1)
    places = torch.arange(length + 1, device=ids.device)
    # Every row routes by its own token, so every row counts as a modality of its own.
    starts = torch.arange(count, device=ids.device)
    routes = Routes(starts.repeat_interleave(length + 1), starts * (length + 1))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(each, "(b t) h e -> b h t e", b=count) for each in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return rearrange(mixed, "b h t e -> (b t) h e")

    with model.adapters.state.use(routes):
        hidden = model.decoder(rows.flatten(0, 1), places.repeat(count), attend)
    logits = model.decoder.head(hidden)
    predicted = rearrange(logits, "(b t) v -> b t v", b=count)[:, 1:-1].flatten(0, 1)
    return functional.cross_entropy(predicted.float(), labels[:, 1:].flatten(), ignore_index=-100)


@dataclass(frozen=True)
class Product:
    """A frozen weight float[out, in], how many rows go through it, and whether a gradient goes back."""

    weight: Tensor
    rows: int
    backward: bool = True


def matmul_bound(model: MultimodalLM, samples: Sequence[Tokens], budget: int) -> Step:
    """The matrix products alone that the frozen parameters ask for, in the batches of `ours`."""
    products = [
        product
        for batch in packed(samples, budget, model.tower.image_size)
        for product in _products(model, batch)
        if product.rows
    ]
    room = max(product.rows * max(product.weight.shape) for product in products)
    source = torch.randn(room, device=model.device, dtype=model.decoder.head.weight.dtype)
    target = torch.empty_like(source)

    @torch.no_grad()
    def step() -> None:
        for product in products:
            out, width = product.weight.shape
            _multiply(source, target, product.rows, width, out, product.weight.t())
            if product.backward:
                _multiply(source, target, product.rows, out, width, product.weight)

    return step


def _multiply(source: Tensor, target: Tensor, rows: int, width: int, out: int, weight: Tensor) -> None:
    x, y = source[: rows * width].view(rows, width), target[: rows * out].view(rows, out)
    torch.mm(x, weight, out=y)


def _products(model: MultimodalLM, batch: PackedBatch) -> Iterator[Product]:
    """Every frozen weight that a batch is multiplied with: real tokens, real pictures, supervised logits."""
    for weight in _weights(model.decoder.blocks):
        yield Product(weight, len(batch.ids))
    yield Product(model.decoder.head.weight, len(batch.targets))
    views = 0 if batch.pictures is None else len(batch.pictures)
    rows, columns = model.tower.visual.grid_size
    for weight in _weights(model.tower.blocks[: model.tower.last_block + 1]):
        yield Product(weight, views * (rows * columns + 1))
    yield Product(model.tower.visual.conv1.weight.flatten(1), views * rows * columns, backward=False)


def _weights(blocks: nn.Module) -> Iterator[Tensor]:
    """The matrices of blocks, without those of adapters."""
    for name, parameter in blocks.named_parameters():
        if parameter.ndim == 2 and ".adapters." not in name:
            yield parameter.detach()
