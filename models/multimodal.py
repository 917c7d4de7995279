"""The joined model: pictures through the tower and projector into a packed batch for the decoder.

One of the two files where models meet adapters: it names the sites and makes the other trained parts.

Shapes: N packed tokens, S segments, D decoder width, P pictures, V views of them, K tokens per view, M image
slots, L supervised positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mma import AdapterConfig, AdapterError, Adapters, MMAConfig, Routes, Site
from mma.config import plain
from models.attention import PackedAttention
from models.checkpointing import Checkpointing, kept
from models.decoder import Attend, Decoder, Kept
from models.errors import ModelError
from models.loss import cross_entropy
from models.projector import keeps_tokens, make_projector, projector_tokens
from models.prompt_notes import prompt_notes
from models.tower import Tower
from models.views import Layout
from models.weight_names import hf_name

MODALITIES = ("text", "image", "images", "video")
# the linear layers of each half of a block that read its norm, and the one that does not
LINEARS = {"attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
WRITERS = ("o_proj", "down_proj")


class Packed(Protocol):
    """What the model needs of a packed batch (see docs/architecture.md)."""

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    modalities: tuple[str, ...]
    slots: Tensor
    pictures: Tensor | None
    sizes: tuple[tuple[int, int], ...]
    sources: Tensor
    targets: Tensor
    adapters: tuple[str | None, ...] | None


@dataclass(frozen=True)
class Stream:
    """What enters the decoder: embeddings, where each one stands, and who answers it."""

    x: Tensor  # float[N, D]
    positions: Tensor  # int64[N]
    lengths: tuple[int, ...]
    routes: Routes


class MultimodalLM(nn.Module):
    """A frozen decoder and a frozen tower joined by adapters (LaVIN, arXiv 2305.15023)."""

    def __init__(self, decoder: Decoder, tower: Tower, layout: Layout) -> None:
        super().__init__()
        self.decoder = decoder
        self.tower = tower
        self.layout = layout
        self._checkpointing: Checkpointing = "none"
        sites = [*self._decoder_sites(), *self._tower_sites()]
        self.adapters = Adapters(
            self,
            sites,
            self._make_parts,
            self._router_pass,
            tuned_words=self._tuned_names,
            exported_name=self._exported_name,
            prompt_notes=prompt_notes(layout.fixed(tower.tokens)),
        )

    @property
    def device(self) -> torch.device:
        """Where the decoder lies."""
        return self.decoder.embed.weight.device

    @property
    def checkpointing(self) -> Checkpointing:
        """What is kept for the backward pass (models/checkpointing.py); `full` also of the tower's blocks."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, kind: Checkpointing) -> None:
        self._checkpointing = kind
        self.tower.visual.set_grad_checkpointing(kind == "full")

    @property
    def view_tokens(self) -> int:
        """How many tokens a view gives, by the projector of the active adapter."""
        config = self.adapters.config if self.adapters.active is not None else AdapterConfig()
        return projector_tokens(config.projector, self.tower.grid)

    def slots(self, width: int, height: int) -> int:
        """How many positions a picture of this size takes in the sequence."""
        return self.layout.slots(width, height, self.view_tokens)

    def part_of(self, name: str) -> str:
        """Which part a trained tensor belongs to: projector, decoder, tower (tuned in full) or adapters."""
        first, second = (*name.split("."), "")[:2]
        return {"projector": "projector", "newline": "projector", "tuned": second}.get(first, "adapters")

    def forward(self, batch: Packed) -> Tensor:
        """Logits float32[L, V] at the batch's supervised positions."""
        return self.logits(self.hidden(batch, batch.sources))

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states float[L, D] -> logits float32[L, V]."""
        with self._mixed_precision():
            logits: Tensor = self.decoder.head(hidden)
        return logits.float()

    def loss(self, batch: Packed) -> Tensor:
        """The sum of the cross-entropy over the batch's targets, in fp32."""
        hidden = self.hidden(batch, batch.sources)
        with self._mixed_precision():
            return cross_entropy(hidden, self.decoder.head, batch.targets)

    def hidden(self, batch: Packed, tokens: Tensor | None = None) -> Tensor:
        """Normed final hidden states float[N, D] of all packed tokens, or of those named, int64[L]."""
        with self.adapters.turns.computing(), self._mixed_precision():
            stream = self.embed(batch)
            if not (self.adapters.routed and (self.training or torch.is_grad_enabled())):
                return self.decode(stream, PackedAttention(stream.lengths, self.device), tokens)
            count = len(self.adapters.config.modalities)
            routed = self._with_modality_tokens(stream)
            self.adapters.state.watch(routed.x)
            if tokens is not None:  # the modality tokens go on too: the last sites read them
                tokens = torch.cat([torch.arange(count, device=self.device), tokens + count])
            return self.through(routed, PackedAttention(routed.lengths, self.device), tokens)[count:]

    def decode(self, stream: Stream, attend: Attend, tokens: Tensor | None = None) -> Tensor:
        """Hidden states float[N, D] with route weights from the table, which no gradient reaches."""
        if self.adapters.active is not None:
            self.adapters.refresh_table()
        return self.through(stream, attend, tokens)

    def through(self, stream: Stream, attend: Attend, tokens: Tensor | None = None) -> Tensor:
        """The stream through the decoder; where tokens are named, no other leaves the last block."""
        state, keeps = self.adapters.state, Kept()
        if torch.is_grad_enabled():
            keeps = kept(self.checkpointing, lambda: state.use(state.current or stream.routes))

        def narrow(rows: Tensor) -> Tensor:
            state.current = chosen
            return rows.index_select(0, tokens)

        chosen = None if tokens is None else stream.routes.of_tokens(tokens)
        with state.use(stream.routes), self._mixed_precision():
            hidden: Tensor = self.decoder(
                stream.x, stream.positions, attend, None if tokens is None else narrow, keeps
            )
        return hidden

    def embed(self, batch: Packed) -> Stream:
        """Embeds the ids and puts projected pictures into their slots; the tower sees real pictures only."""
        x = self.decoder.embed(batch.ids)
        names = batch.adapters
        routes = self.routes(batch.modalities, batch.lengths, names)
        if batch.pictures is not None:
            seen = None if names is None else self._names_of_pictures(batch, names)
            if names is None and self.adapters.part("projector") is None:  # the bare base sees nothing
                x = x.index_fill(0, batch.slots, 0.0)
            else:
                projected = self.project(batch.pictures, batch.sizes, seen)
                if len(projected) != len(batch.slots):
                    raise ModelError(
                        f"pictures: they give {len(projected)} tokens, but {len(batch.slots)} slots were "
                        "left; count slots by the model's own layout"
                    )
                x = x.index_copy(0, batch.slots, projected.to(x.dtype))
        return Stream(x, batch.positions, batch.lengths, routes)

    def project(
        self,
        pictures: Tensor,
        sizes: Sequence[tuple[int, int]] = (),
        names: Sequence[str | None] | None = None,
    ) -> Tensor:
        """Views float[V, 3, H, W] of pictures -> float[M, D], what stands in their slots.

        What a frozen tower has made of views, float[V, K, C], does as well; a bank is given views.
        Sizes are those of the pictures' files; without them every view is a picture of its own. With names,
        every picture goes through tower adapters and projector of its own adapter of the bank.
        """
        pictures = pictures.to(self.tower.dtype)
        sizes = sizes or [(1, 1)] * len(pictures)
        with self.adapters.turns.computing(), self._mixed_precision():
            if names is None:
                projector = self.adapters.part("projector")
                assert projector is not None, "the bare base shows no pictures"
                newline = self.adapters.part("newline")
                newlines = None if newline is None else [newline.weight[0]] * len(sizes)
                features = pictures if pictures.ndim == 3 else self.tower(pictures)
                return self.layout.arrange(projector(features.float()), sizes, newlines)
            return self._project_by_name(pictures, sizes, names)

    def _project_by_name(
        self, pictures: Tensor, sizes: Sequence[tuple[int, int]], names: Sequence[str | None]
    ) -> Tensor:
        """Every picture through its own adapter of the bank; zeros where nobody answers."""
        bank, dim = self.adapters.open_bank, self.decoder.config.dim
        if self.layout.newline:
            raise ModelError(
                "pictures: a bank holds no newlines, which any resolution needs; load one adapter"
            )
        of_view = [
            name for name, size in zip(names, sizes, strict=True) for _ in range(self.layout.views(*size))
        ]
        plan = bank.plan(of_view, [0] * len(of_view), [1] * len(of_view), self.device)  # no tower site asks
        unasked = torch.zeros(len(of_view), dtype=torch.long, device=self.device)
        with self.adapters.state.use(Routes(unasked, plan=plan)):
            features = self.tower(pictures)
        tokens = projector_tokens(bank.like.projector, self.tower.grid)
        zeros = torch.zeros(len(of_view), tokens, dim, device=self.device)
        return self.layout.arrange(bank.by_part("projector", features.float(), of_view, zeros), sizes, None)

    def _mixed_precision(self) -> AbstractContextManager[None]:
        """Parts tuned in full are kept in fp32; on a base of half precision they compute in its type."""
        half = self.adapters.base["decoder.norm.weight"].dtype
        described = self.device.type == "meta"  # nothing is computed, and autocast knows no such device
        if half == torch.float32 or described or self.adapters.part("tuned") is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=half)

    def routes(
        self, modalities: Sequence[str], lengths: Sequence[int], names: Sequence[str | None] | None
    ) -> Routes:
        """Who answers every token of packed segments, by what each carries and the adapter it names."""
        adapters, plan = self.adapters, None
        routed = adapters.active is not None and isinstance(adapters.config, MMAConfig)
        if names is not None:
            known = adapters.open_bank.modalities
        else:
            known = adapters.config.modalities if routed else MODALITIES
        if adapters.merged is not None and routed:
            adapters.merged.check(modalities)
        if unknown := [name for name in modalities if name not in known]:
            raise ModelError(
                f"adapter: {adapters.active!r} knows {', '.join(known)}, but a sample carries {unknown[0]}; "
                "use an adapter that was tuned with it"
            )
        of_segment = [known.index(name) for name in modalities]
        if names is not None:
            plan = adapters.open_bank.plan(names, of_segment, lengths, self.device)
        repeats = torch.tensor(lengths, device=self.device)
        of_token = torch.tensor(of_segment, device=self.device)
        of_token = of_token.repeat_interleave(repeats, output_size=sum(lengths))
        return Routes(of_token, plan=plan)

    def _names_of_pictures(self, batch: Packed, names: tuple[str | None, ...]) -> list[str | None]:
        """The adapter of the segment that each picture stands in."""
        tokens = projector_tokens(self.adapters.open_bank.like.projector, self.tower.grid)
        counts = torch.tensor([self.layout.slots(*size, tokens) for size in batch.sizes])
        first_slots = batch.slots.cpu()[counts.cumsum(0) - counts]
        ends = torch.tensor(batch.lengths).cumsum(0)
        return [names[index] for index in torch.searchsorted(ends, first_slots, right=True).tolist()]

    def _with_modality_tokens(self, stream: Stream) -> Stream:
        """Puts every modality's token in front as a segment of its own, at position 0."""
        modality = self.adapters.part("modality")
        assert isinstance(modality, nn.Embedding), "every routed adapter has modality tokens"
        count = modality.num_embeddings
        index = torch.arange(count, device=self.device)
        return Stream(
            x=torch.cat([modality.weight.to(stream.x.dtype), stream.x]),
            positions=torch.cat([torch.zeros_like(index), stream.positions]),
            lengths=(*[1] * count, *stream.lengths),
            routes=stream.routes.behind(index),
        )

    def _router_pass(self) -> None:
        """Runs the modality tokens alone through the decoder: each is a sequence of length one."""
        nothing = torch.empty(0, dtype=torch.long, device=self.device)
        x = torch.empty(0, self.decoder.config.dim, device=self.device, dtype=self.decoder.embed.weight.dtype)
        tokens = self._with_modality_tokens(Stream(x, nothing, (), Routes(nothing)))
        with self.adapters.state.use(tokens.routes):
            self.decoder(tokens.x, tokens.positions, PackedAttention(tokens.lengths, self.device))

    def _make_parts(self, config: AdapterConfig) -> Mapping[str, nn.Module]:
        dim = self.decoder.config.dim
        routed = isinstance(config, MMAConfig)
        if routed and (missing := [name for name in ("text", "image") if name not in config.modalities]):
            named = plain(", ".join(config.modalities))
            raise AdapterError(
                f"adapter: modalities are {named}; this model also has {missing[0]} "
                "in its samples, name it too"
            )
        parts: dict[str, nn.Module] = {}
        if config.modalities != ("text",):
            tower = self.tower
            parts["projector"] = make_projector(
                config.projector, tower.width, dim, tower.grid, config.projector_hidden
            )
            if self.layout.newline:
                if not keeps_tokens(config.projector):
                    raise ModelError(
                        f"projector: {config.projector} mixes the patches of a view, but anyres lays them "
                        "out anew; choose linear or mlp2x_gelu"
                    )
                parts["newline"] = nn.Embedding(1, dim)
                nn.init.normal_(parts["newline"].weight, std=dim**-0.5)
        if routed:
            parts["modality"] = nn.Embedding(len(config.modalities), dim)
        return {name: part.to(self.device, torch.float32) for name, part in parts.items()}

    def _tuned_names(self, word: str) -> Sequence[str]:
        """`tower.last12` stands for those of the tower's last 12 blocks that run."""
        found = re.fullmatch(r"tower\.last(\d+)", word)
        if found is None:
            return (word,)
        blocks, prefix = len(self.tower.blocks), f"tower.{self.tower.block_prefix}"
        if not 0 < (count := int(found[1])) <= blocks:
            raise AdapterError(f"adapter: tuned names {word}, but the tower has {blocks} blocks")
        first, last = blocks - count, self.tower.last_block
        if first > last:
            raise AdapterError(
                f"adapter: tuned names {word}, but nothing is read behind block {last} of {blocks}; "
                f"name at least tower.last{blocks - last}"
            )
        return [f"{prefix}.{index}" for index in range(first, last + 1)]

    def _exported_name(self, path: str) -> str:
        """What Hugging Face models call a module of the decoder; other paths stay as they are."""
        if not path.startswith("decoder."):
            return path
        name = hf_name(self.decoder.config, f"{path.removeprefix('decoder.')}.weight")
        return name.removesuffix(".weight")

    def _decoder_sites(self) -> Iterator[Site]:
        shared = self.decoder.config.parallel
        for index, block in enumerate(self.decoder.blocks):
            path = f"decoder.blocks.{index}"
            linears = {
                role: [f"{path}.{role}.{name}" for name in names if hasattr(block.get_submodule(role), name)]
                for role, names in LINEARS.items()
            }
            readers = {
                role: tuple(name for name in names if not name.endswith(WRITERS))
                for role, names in linears.items()
            }
            if shared:
                readers = {"both": readers["attn"] + readers["mlp"]}
            for role, names in readers.items():
                norm = "mlp_norm" if role == "mlp" else "attn_norm"
                dim = self.decoder.config.dim
                yield Site(f"{path}.{norm}", dim, "decoder", role, index, names)
        for index in range(len(self.decoder.blocks)):
            for role, names_of_half in LINEARS.items():
                for name in names_of_half:
                    linear = getattr(self.decoder.blocks[index].get_submodule(role), name, None)
                    if linear is not None:
                        width, out = linear.in_features, linear.out_features
                        where = f"decoder.blocks.{index}.{role}.{name}"
                        yield Site(where, width, "decoder", role, index, out=out)

    def _tower_sites(self) -> Iterator[Site]:
        for index in range(self.tower.last_block + 1):
            for role, norm, reader in self.tower.norms:
                path = f"tower.{self.tower.block_prefix}.{index}"
                yield Site(f"{path}.{norm}", self.tower.width, "tower", role, index, (f"{path}.{reader}",))


@contextmanager
def inference(model: MultimodalLM) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode it was in afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()
