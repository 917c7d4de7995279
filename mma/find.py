"""Finds the sites of a model it knows nothing of, by watching one forward.

A norm whose output a linear layer takes as its input is a site, and all the layers that take it are its
readers. So the sites come from what the model does, not from what its parts are called; names only tell
attention (a path with "att" in it) from the rest of a block.

Shapes: C channels of a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mma.errors import AdapterError
from mma.sites import Site

HOW_TO_NAME = (
    "name them yourself: attach(..., sites=[Site(path of a norm, its channels, 'decoder' or 'tower', "
    "'attn' or 'mlp', index of its block, (paths of the linear layers that read it,))])"
)


@dataclass
class _Seen:
    """What one forward showed: outputs of norms by their memory, and who took them."""

    outputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)  # held, so that no memory is reused
    readers: dict[str, list[str]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    linears: dict[str, nn.Linear] = field(default_factory=dict)


def find_sites(model: nn.Module, part: str, run: Callable[[], Any], prefix: str) -> list[Site]:
    """The norms in the blocks of a model with their readers, then its linear layers, in the order they run.

    Raises AdapterError when the model has no block with a norm that linear layers read.
    """
    seen = _Seen()
    with _watched(model, seen), torch.no_grad():
        run()
    blocks: dict[str, int] = {}
    norms = []
    for path, readers in seen.readers.items():
        block = _block_of(path)
        if block is not None:
            layer = blocks.setdefault(block, len(blocks))
            roles = {_role(reader, block) for reader in readers}
            role = roles.pop() if len(roles) == 1 else "both"
            named = tuple(prefix + reader for reader in readers)
            norms.append(Site(prefix + path, seen.channels[path], part, role, layer, named))
    if not norms:
        raise AdapterError(
            f"adapter: {type(model).__name__} has no repeated block with a norm that linear layers read; "
            f"{HOW_TO_NAME}"
        )
    linears = [
        Site(
            prefix + path, layer.in_features, part, _role(path, block), blocks[block], out=layer.out_features
        )
        for path, layer in seen.linears.items()
        if (block := _block_of(path)) in blocks
    ]
    return [*norms, *linears]


def site_table(sites: Sequence[Site]) -> str:
    """The norms that can carry an adapter, one line per kind of block half, for a terminal."""
    groups: dict[tuple[Any, ...], list[Site]] = {}
    for site in sites:
        if site.kind == "norm":
            leaf = site.path.rpartition(".")[2]
            readers = tuple(reader.rpartition(".")[2] for reader in site.readers)
            groups.setdefault((site.part, site.role, leaf, site.channels, readers), []).append(site)
    lines = [f"{'part':<8} {'role':<5} {'blocks':<9} {'width':>5}  norm, and what reads it"]
    for (part, role, leaf, channels, readers), members in groups.items():
        layers = [site.layer for site in members if site.layer is not None]
        blocks = f"{min(layers)} to {max(layers)}" if layers else str(len(members))
        lines.append(f"{part:<8} {role:<5} {blocks:<9} {channels:>5}  {leaf} -> {', '.join(readers)}")
    return "\n".join(lines)


@contextmanager
def _watched(model: nn.Module, seen: _Seen) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.MultiheadAttention):
            hook = _reading(path, module, seen)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        elif _is_norm(module):
            handles.append(module.register_forward_hook(_giving(path, seen)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    """A module without parts whose only weight is a vector, or that calls itself a norm."""
    if any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    return (isinstance(weight, Tensor) and weight.ndim == 1) or "norm" in type(module).__name__.lower()


def _giving(path: str, seen: _Seen) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and args and args[0].shape == output.shape:
            seen.outputs[output.untyped_storage().data_ptr()] = (path, output)
            seen.channels[path] = output.shape[-1]

    return hook


def _reading(path: str, module: nn.Module, seen: _Seen) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module, nn.Linear):
            seen.linears[path] = module
        given = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(given, Tensor):
            return
        norm, output = seen.outputs.get(given.untyped_storage().data_ptr(), (None, given))
        if norm is not None and output.numel() == given.numel():
            readers = seen.readers.setdefault(norm, [])
            if path not in readers:
                readers.append(path)

    return hook


def _block_of(path: str) -> str | None:
    """The path of the block a module is in: up to its last index; None outside of blocks."""
    steps = path.split(".")
    indices = [place for place, step in enumerate(steps) if step.isdecimal()]
    return ".".join(steps[: indices[-1] + 1]) if indices and indices[-1] < len(steps) - 1 else None


def _role(path: str, block: str) -> str:
    return "attn" if "att" in path.removeprefix(block).lower() else "mlp"
