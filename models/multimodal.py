"""The joined model: pictures through the tower and projector into a packed batch for the decoder.

One of the two files where models meet adapters: it names the sites and makes the other trained parts.

Shapes: N packed tokens, S segments, M modalities, D decoder width, P pictures, K tokens per picture,
L supervised positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mma import Adapters, MMAConfig, Site
from models.attention import PackedAttention
from models.decoder import Attend, Decoder
from models.errors import ModelError
from models.projector import ClassTokenProjector
from models.tower import Tower

MODALITIES = ("text", "image")


class Packed(Protocol):
    """What the model needs of a packed batch (see docs/architecture.md)."""

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    modalities: tuple[str, ...]
    slots: Tensor
    pictures: Tensor | None
    sources: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Stream:
    """What enters the decoder: embeddings and where each one stands."""

    x: Tensor  # float[N, D]
    positions: Tensor  # int64[N]
    lengths: tuple[int, ...]
    token_modality: Tensor  # int64[N]


class MultimodalLM(nn.Module):
    """A frozen decoder and a frozen tower joined by adapters (LaVIN, arXiv 2305.15023)."""

    def __init__(self, decoder: Decoder, tower: Tower) -> None:
        super().__init__()
        self.decoder = decoder
        self.tower = tower
        sites = [*self._decoder_sites(), *self._tower_sites()]
        self.adapters = Adapters(self, sites, self._make_parts, self._router_pass)

    @property
    def device(self) -> torch.device:
        """Where the decoder lies."""
        return self.decoder.embed.weight.device

    def forward(self, batch: Packed) -> Tensor:
        """Logits float32[L, V] at the batch's supervised positions."""
        hidden = self.hidden(batch)
        logits: Tensor = self.decoder.head(hidden.index_select(0, batch.sources))
        return logits.float()

    def loss(self, batch: Packed) -> Tensor:
        """The sum of the cross-entropy over the batch's targets, in fp32."""
        return functional.cross_entropy(self(batch), batch.targets, reduction="sum")

    def hidden(self, batch: Packed) -> Tensor:
        """Normed final hidden states float[N, D] of the packed tokens."""
        stream = self.embed(batch)
        if self._routes_by_table():
            return self.decode(stream, PackedAttention(stream.lengths, self.device))
        count = len(self.adapters.config.modalities)
        routed = self._with_modality_tokens(stream)
        attend = PackedAttention(routed.lengths, self.device)
        rows = torch.arange(count, device=self.device)
        with self.adapters.state.use(routed.token_modality, rows):
            hidden: Tensor = self.decoder(routed.x, routed.positions, attend)
        return hidden[count:]

    def decode(self, stream: Stream, attend: Attend) -> Tensor:
        """Hidden states float[N, D] with route weights from the table: nothing is trained here."""
        if self.adapters.active is not None:
            self.adapters.refresh_table()
        with self.adapters.state.use(stream.token_modality, None):
            hidden: Tensor = self.decoder(stream.x, stream.positions, attend)
        return hidden

    def embed(self, batch: Packed) -> Stream:
        """Embeds the ids and puts projected pictures into their slots; the tower sees real pictures only."""
        x = self.decoder.embed(batch.ids)
        if batch.pictures is not None:
            x = x.index_copy(0, batch.slots, self.project(batch.pictures).flatten(0, 1).to(x.dtype))
        known = self.adapters.config.modalities if self.adapters.active is not None else MODALITIES
        per_segment = torch.tensor([known.index(name) for name in batch.modalities], device=self.device)
        lengths = torch.tensor(batch.lengths, device=self.device)
        token_modality = per_segment.repeat_interleave(lengths)
        return Stream(x, batch.positions, batch.lengths, token_modality)

    def project(self, pictures: Tensor) -> Tensor:
        """float[P, 3, H, W] -> float[P, K, D]; zeros from the bare base, which has no projector."""
        projector = self.adapters.part("projector")
        if projector is None:
            dim = self.decoder.config.dim
            return torch.zeros(len(pictures), self.tower.tokens, dim, device=self.device)
        features = self.tower(pictures.to(self.tower.visual.conv1.weight.dtype))
        projected: Tensor = projector(features.float())
        return projected

    def _routes_by_table(self) -> bool:
        """Whether route weights may come from the table: always, unless a gradient must reach the router."""
        return self.adapters.active is None or not (self.training or torch.is_grad_enabled())

    def _with_modality_tokens(self, stream: Stream) -> Stream:
        """Puts every modality's token in front as a segment of its own, at position 0."""
        modality = self.adapters.part("modality")
        assert isinstance(modality, nn.Embedding), "every adapter has modality tokens"
        count = modality.num_embeddings
        index = torch.arange(count, device=self.device)
        return Stream(
            x=torch.cat([modality.weight.to(stream.x.dtype), stream.x]),
            positions=torch.cat([torch.zeros_like(index), stream.positions]),
            lengths=(*[1] * count, *stream.lengths),
            token_modality=torch.cat([index, stream.token_modality]),
        )

    def _router_pass(self) -> None:
        """Runs the modality tokens alone through the decoder: each is a sequence of length one."""
        empty = Stream(
            x=torch.empty(
                0, self.decoder.config.dim, device=self.device, dtype=self.decoder.embed.weight.dtype
            ),
            positions=torch.empty(0, dtype=torch.long, device=self.device),
            lengths=(),
            token_modality=torch.empty(0, dtype=torch.long, device=self.device),
        )
        tokens = self._with_modality_tokens(empty)
        with self.adapters.state.use(tokens.token_modality, tokens.token_modality):
            self.decoder(tokens.x, tokens.positions, PackedAttention(tokens.lengths, self.device))

    def _make_parts(self, config: MMAConfig) -> Mapping[str, nn.Module]:
        dim = self.decoder.config.dim
        if unknown := [name for name in MODALITIES if name not in config.modalities]:
            raise ModelError(
                f"adapter: modalities are {', '.join(config.modalities)}; this model also has {unknown[0]} "
                "in its samples, name it too"
            )
        parts = {
            "projector": ClassTokenProjector(self.tower.width, config.projector_hidden, dim),
            "modality": nn.Embedding(len(config.modalities), dim),
        }
        return {name: part.to(self.device, torch.float32) for name, part in parts.items()}

    def _decoder_sites(self) -> Iterator[Site]:
        for index in range(self.decoder.config.n_layers):
            for role in ("attn", "mlp"):
                path = f"decoder.blocks.{index}.{role}_norm"
                yield Site(path, self.decoder.config.dim, "decoder", role)

    def _tower_sites(self) -> Iterator[Site]:
        for index in range(len(self.tower.blocks)):
            for role, norm in (("attn", "ln_1"), ("mlp", "ln_2")):
                path = f"tower.visual.transformer.resblocks.{index}.{norm}"
                yield Site(path, self.tower.width, "tower", role)


@contextmanager
def inference(model: MultimodalLM) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode it was in afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
