"""The joined model: pictures through the tower and projector into a packed batch for the decoder.

One of the two files where models meet adapters: it names the sites and makes the other trained parts.

Shapes: N packed tokens, S segments, M modalities, D decoder width, P pictures, K tokens per picture,
L supervised positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mma import AdapterConfig, AdapterError, Adapters, MMAConfig, Routes, Site
from mma.config import plain
from models.attention import PackedAttention
from models.decoder import Attend, Decoder
from models.errors import ModelError
from models.projector import ClassTokenProjector
from models.tower import Tower
from models.weights import HF_LAYERS, HF_NAMES, name_in_file

MODALITIES = ("text", "image")
# role, norm, and the linear layers of that half of a block
LINEARS = (
    ("attn", "attn_norm", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("mlp", "mlp_norm", ("gate_proj", "up_proj", "down_proj")),
)

TEXT_NOTE = (
    "`[bos] Image: N/A`, the prompt as in training, the answer, `[eos]`. `Image: N/A` and the prompt are put "
    "into tokens one after the other. Positions are relative: they may start anywhere."
)
IMAGE_NOTE = (
    "`[bos] Image: `, {slots} embeddings of the picture, the prompt as in training, the answer, `[eos]`. The "
    "embeddings, called the image prefix, are no tokens: they stand in the place of token embeddings, so the "
    "model takes `inputs_embeds`. They come from the image tower, with the tower adapters and the projector "
    "of the adapter's own folder, once per picture. With `model` as loaded above:"
)
PREFIX_CODE = """\
import torch
from data.pictures import open_picture  # in a checkout of mma
from models.build import load
from models.multimodal import inference

system = load("ADAPTER")  # the folder of the adapter that this was exported from
with inference(system.model):
    picture = system.preprocess(open_picture("picture.png"))
    prefix = system.model.project(picture[None])  # float[1, {slots}, width of the decoder]
head = [system.tokenizer.bos_id, *system.tokenizer.encode("Image: ")]
prompt = system.tokenizer.encode("PROMPT")
embed = model.get_input_embeddings()
before, after = embed(torch.tensor([head])), embed(torch.tensor([prompt]))
inputs_embeds = torch.cat([before, prefix.to(before.dtype), after], dim=1)
answer = model.generate(inputs_embeds=inputs_embeds)
print(system.tokenizer.decode(answer[0].tolist()))"""


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

    def __init__(self, decoder: Decoder, tower: Tower) -> None:
        super().__init__()
        self.decoder = decoder
        self.tower = tower
        sites = [*self._decoder_sites(), *self._tower_sites()]
        self.adapters = Adapters(
            self,
            sites,
            self._make_parts,
            self._router_pass,
            exported_name=exported_name,
            prompt_notes=prompt_notes(tower.tokens),
        )

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
        with self.adapters.turns.computing():
            stream = self.embed(batch)
            if not (self.adapters.routed and (self.training or torch.is_grad_enabled())):
                return self.decode(stream, PackedAttention(stream.lengths, self.device))
            count = len(self.adapters.config.modalities)
            routed = self._with_modality_tokens(stream)
            attend = PackedAttention(routed.lengths, self.device)
            with self.adapters.state.use(routed.routes):
                hidden: Tensor = self.decoder(routed.x, routed.positions, attend)
            return hidden[count:]

    def decode(self, stream: Stream, attend: Attend) -> Tensor:
        """Hidden states float[N, D] with route weights from the table, which no gradient reaches."""
        if self.adapters.active is not None:
            self.adapters.refresh_table()
        with self.adapters.state.use(stream.routes):
            hidden: Tensor = self.decoder(stream.x, stream.positions, attend)
        return hidden

    def embed(self, batch: Packed) -> Stream:
        """Embeds the ids and puts projected pictures into their slots; the tower sees real pictures only."""
        x = self.decoder.embed(batch.ids)
        routes, names = self._routes(batch)
        if batch.pictures is not None:
            seen = None if names is None else self._names_of_pictures(batch, names)
            projected = self.project(batch.pictures, seen)
            x = x.index_copy(0, batch.slots, projected.flatten(0, 1).to(x.dtype))
        return Stream(x, batch.positions, batch.lengths, routes)

    def project(self, pictures: Tensor, names: Sequence[str | None] | None = None) -> Tensor:
        """float[P, 3, H, W] -> float[P, K, D]; zeros from the bare base, which has no projector.

        With names, every picture goes through tower adapters and projector of its own adapter of the bank.
        """
        pictures = pictures.to(self.tower.visual.conv1.weight.dtype)
        count = len(pictures)
        zeros = torch.zeros(count, self.tower.tokens, self.decoder.config.dim, device=self.device)
        with self.adapters.turns.computing():
            if names is None:
                projector = self.adapters.part("projector")
                return zeros if projector is None else projector(self.tower(pictures).float())
            bank = self.adapters.open_bank
            plan = bank.plan(names, [0] * count, [1] * count, self.device)  # no tower site asks for modality
            unasked = torch.zeros(count, dtype=torch.long, device=self.device)
            with self.adapters.state.use(Routes(unasked, plan=plan)):
                features = self.tower(pictures)
            return bank.by_part("projector", features.float(), names, zeros)

    def _routes(self, batch: Packed) -> tuple[Routes, tuple[str | None, ...] | None]:
        """Who answers every token of a batch, and the adapters of its segments where it names them."""
        adapters, names, plan = self.adapters, batch.adapters, None
        if names is not None:
            known = adapters.open_bank.modalities
        else:
            known = adapters.config.modalities if adapters.active is not None else MODALITIES
        if adapters.merged is not None:
            adapters.merged.check(batch.modalities)
        if unknown := [name for name in batch.modalities if name not in known]:
            raise ModelError(
                f"adapter: {adapters.active!r} knows {', '.join(known)}, but a sample carries {unknown[0]}; "
                "use an adapter that was tuned with it"
            )
        of_segment = [known.index(name) for name in batch.modalities]
        if names is not None:
            plan = adapters.open_bank.plan(names, of_segment, batch.lengths, self.device)
        lengths = torch.tensor(batch.lengths, device=self.device)
        token_modality = torch.tensor(of_segment, device=self.device).repeat_interleave(lengths)
        return Routes(token_modality, plan=plan), names

    def _names_of_pictures(self, batch: Packed, names: tuple[str | None, ...]) -> list[str | None]:
        """The adapter of the segment that each picture stands in."""
        ends = torch.tensor(batch.lengths).cumsum(0)
        first_slots = batch.slots.cpu().reshape(-1, self.tower.tokens)[:, 0].contiguous()
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
        if routed and (unknown := [name for name in MODALITIES if name not in config.modalities]):
            named = plain(", ".join(config.modalities))
            raise AdapterError(
                f"adapter: modalities are {named}; this model also has {unknown[0]} "
                "in its samples, name it too"
            )
        parts: dict[str, nn.Module] = {}
        if "image" in config.modalities:
            parts["projector"] = ClassTokenProjector(self.tower.width, config.projector_hidden, dim)
        if routed:
            parts["modality"] = nn.Embedding(len(config.modalities), dim)
        return {name: part.to(self.device, torch.float32) for name, part in parts.items()}

    def _decoder_sites(self) -> Iterator[Site]:
        for index in range(self.decoder.config.n_layers):
            for role, norm, names in LINEARS:
                path = f"decoder.blocks.{index}"
                readers = [name for name in names if name not in ("o_proj", "down_proj")]
                yield Site(
                    f"{path}.{norm}",
                    self.decoder.config.dim,
                    "decoder",
                    role,
                    index,
                    tuple(f"{path}.{role}.{name}" for name in readers),
                )
        for index, block in enumerate(self.decoder.blocks):
            for role, _, names in LINEARS:
                for name in names:
                    path = f"{role}.{name}"
                    linear = block.get_submodule(path)
                    yield Site(
                        f"decoder.blocks.{index}.{path}",
                        linear.in_features,
                        "decoder",
                        role,
                        index,
                        out=linear.out_features,
                    )

    def _tower_sites(self) -> Iterator[Site]:
        for index in range(len(self.tower.blocks)):
            for role, norm, reader in (("attn", "ln_1", "attn"), ("mlp", "ln_2", "mlp.c_fc")):
                path = f"tower.visual.transformer.resblocks.{index}"
                yield Site(f"{path}.{norm}", self.tower.width, "tower", role, index, (f"{path}.{reader}",))


def exported_name(path: str) -> str:
    """What Hugging Face LLaMA models call a module of the decoder; other paths stay as they are."""
    if not path.startswith("decoder."):
        return path
    return name_in_file(f"{path.removeprefix('decoder.')}.weight", HF_NAMES, HF_LAYERS).removesuffix(
        ".weight"
    )


def prompt_notes(slots: int) -> dict[str, str]:
    """How a sample of each modality is laid out, for folders made for other software."""
    return {"text": TEXT_NOTE, "image": f"{IMAGE_NOTE}\n\n```python\n{PREFIX_CODE}\n```".format(slots=slots)}


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
