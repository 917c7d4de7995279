"""Puts adapters on models made elsewhere: Hugging Face, open_clip and timm, or anybody's.

    adapters = attach(decoder=llama, tower=clip)        # frozen, sites found
    adapters.add_adapter("default", MMAConfig())
    with adapters.carrying(["image", "text"]):          # what each row of the batch carries
        llama(inputs_embeds=...)

A decoder is run through its own `inputs_embeds`, also for the router pass: every modality's token is a row of
length one. Imports none of these libraries; it looks at what the models have.

Shapes: B rows of T tokens, M modalities, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mma.adapters import Adapters, MakeParts
from mma.config import AdapterConfig, MMAConfig
from mma.digest import digest
from mma.errors import AdapterError
from mma.find import HOW_TO_NAME, find_sites
from mma.routing import Routes
from mma.routing_table import evaluating
from mma.sites import Site, Wrapped, device_of


def attach(
    *,
    decoder: nn.Module | None = None,
    tower: nn.Module | None = None,
    parts: MakeParts | None = None,
    sites: Sequence[Site] | None = None,
    picture: Tensor | None = None,
) -> Adapters:
    """Freezes the models and finds where adapters can sit.

    Args:
        decoder: A causal language model that can be called with `inputs_embeds=float[B, T, D]`.
        tower: An image encoder that can be called with pictures float[B, 3, H, W].
        parts: Makes what else is trained and stored with an adapter (a projector) from its settings.
        sites: The sites, where they cannot be found; paths begin with "decoder." or "tower.".
        picture: float[1, 3, H, W], for a tower that does not tell its size.

    Raises AdapterError when a model cannot be run so, or has no sites.
    """
    models = {name: model for name, model in (("decoder", decoder), ("tower", tower)) if model is not None}
    if not models:
        raise AdapterError("adapter: there is nothing to attach to; pass decoder=, tower= or both")
    holder = nn.ModuleDict(models)
    if any(isinstance(module, Wrapped) for module in holder.modules()):
        raise AdapterError(
            "adapter: this model has adapters already; go on with the Adapters it has, or delete them first"
        )
    if sites is None:
        sites = []
        if decoder is not None:
            sites += _find(decoder, "decoder", lambda: _run_decoder(decoder, _one_token(decoder)))
        if tower is not None:
            pixels = _one_picture(tower) if picture is None else picture
            sites += _find(tower, "tower", lambda: tower(pixels))
    _check_sites(holder, sites)
    foreign = _Foreign(holder, sites, parts)
    adapters = Adapters(
        holder,
        sites,
        foreign.make_parts,
        foreign.router_pass,
        exported_name=lambda path: path.removeprefix("decoder."),
    )
    foreign.adapters = adapters
    adapters.identity = _Identity(adapters, models)
    return adapters


class _Foreign:
    """What an owner of a model does for its adapters, done for models of others."""

    def __init__(self, holder: nn.ModuleDict, sites: Sequence[Site], parts: MakeParts | None) -> None:
        self.holder, self.parts = holder, parts
        self.width = next((site.channels for site in sites if site.part == "decoder"), None)
        self.adapters: Adapters | None = None

    def make_parts(self, config: AdapterConfig) -> Mapping[str, nn.Module]:
        """The modality tokens of a routed adapter, and the user's own parts."""
        made = dict(self.parts(config)) if self.parts is not None else {}
        if isinstance(config, MMAConfig) and self.width is not None:
            made["modality"] = nn.Embedding(len(config.modalities), self.width)
        device = device_of(self.holder, torch.device("cpu"))
        return {name: part.to(device, torch.float32) for name, part in made.items()}

    def router_pass(self) -> None:
        """Runs every modality's token as a row of its own through the decoder."""
        assert self.adapters is not None, "it is set when the adapters are made"
        modality = self.adapters.part("modality")
        assert isinstance(modality, nn.Embedding), "only routed adapters have a router pass"
        rows = torch.arange(modality.num_embeddings, device=modality.weight.device)
        tokens = modality.weight[:, None]
        self.adapters.state.watch(tokens)
        with self.adapters.state.use(Routes(rows[:, None], rows)):
            _run_decoder(self.holder["decoder"], tokens)


class _Identity(Mapping[str, Any]):
    """Names and digests of the base, computed when they are first asked for: a large base takes seconds."""

    def __init__(self, adapters: Adapters, models: Mapping[str, nn.Module]) -> None:
        self._base, self._models = adapters.base, models

    @cached_property
    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"base": {name: _name(model) for name, model in self._models.items()}}
        for key, part in (("base_digest", "decoder"), ("tower_digest", "tower")):
            if part in self._models:
                inside = ((path.partition("."), p) for path, p in self._base.items())
                content[key] = digest((name, p) for (owner, _, name), p in inside if owner == part)
        return content

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def _find(model: nn.Module, part: str, run: Callable[[], Any]) -> list[Site]:
    try:
        with evaluating(model):
            return find_sites(model, part, run, f"{part}.")
    except AdapterError:
        raise
    except Exception as error:  # whatever a model of others raises when it is called in this way
        how = "inputs_embeds=float[1, 1, D]" if part == "decoder" else "one picture"
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise AdapterError(
            f"adapter: {type(model).__name__} cannot be run with {how} ({type(error).__name__}: {reason}), "
            f"so its sites are not found; {HOW_TO_NAME}"
        ) from error


def _run_decoder(decoder: nn.Module, embeddings: Tensor) -> None:
    """Runs embeddings float[B, T, D] through the decoder, without its output layer where it has a body."""
    body = getattr(decoder, "base_model", decoder)
    assert isinstance(body, nn.Module), "a model's body is a model"
    kind = next(body.parameters()).dtype
    body(inputs_embeds=embeddings.to(kind if kind.is_floating_point else embeddings.dtype), use_cache=False)


def _one_token(decoder: nn.Module) -> Tensor:
    """An embedding float[1, 1, D] of the width that the decoder's own embeddings have."""
    embeddings = getattr(decoder, "get_input_embeddings", None)
    weight = getattr(embeddings(), "weight", None) if callable(embeddings) else None
    if not isinstance(weight, Tensor):
        kind = type(decoder).__name__
        raise AdapterError(f"adapter: {kind} does not show its input embeddings; {HOW_TO_NAME}")
    return torch.zeros(1, 1, weight.shape[1], device=weight.device)


def _one_picture(tower: nn.Module) -> Tensor:
    """A picture float[1, 3, H, W] of the size that the tower says it takes."""
    config = getattr(tower, "config", None)
    timm = getattr(tower, "pretrained_cfg", None) or getattr(tower, "default_cfg", None) or {}
    size = getattr(config, "image_size", None) or getattr(tower, "image_size", None) or timm.get("input_size")
    if size is None:
        raise AdapterError(
            f"adapter: {type(tower).__name__} does not tell the size of its pictures; "
            "pass picture=float[1, 3, H, W]"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    first = next(tower.parameters())
    return torch.zeros(1, 3, height, width, device=first.device, dtype=first.dtype)


def _check_sites(holder: nn.Module, sites: Sequence[Site]) -> None:
    for site in sites:
        for path in (site.path, *site.readers):
            try:
                holder.get_submodule(path)
            except AttributeError as error:
                parts = " or ".join(name for name, _ in holder.named_children())
                raise AdapterError(f"adapter: there is no module {path}; paths begin with {parts}") from error


def _name(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    return str(getattr(config, "_name_or_path", "") or type(model).__name__)
