"""Parts of the base that an adapter tunes in full: it brings copies, the base's tensors stay as they are.

While the adapter is active its copies stand in the model in place of the base's parameters; switched off, the
base's own stand there again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import Parameter

from mma.config import brief
from mma.errors import AdapterError


class Tuned(nn.Module):
    """Copies of parameters in fp32, under the base's own dotted names."""

    def __init__(self, chosen: Mapping[str, Parameter]) -> None:
        super().__init__()
        for name, parameter in chosen.items():
            *path, leaf = name.split(".")
            holder: nn.Module = self
            for step in path:
                if step not in dict(holder.named_children()):
                    holder.add_module(step, nn.Module())
                holder = holder.get_submodule(step)
            copy = parameter.detach().to(torch.float32, copy=True)
            holder.register_parameter(leaf, Parameter(copy))


def chosen(base: Mapping[str, Parameter], words: Sequence[str]) -> dict[str, Parameter]:
    """The parameters of a base whose names begin with one of the words, at a dot.

    Raises AdapterError for a word that names nothing, and for parameters that hold no plain numbers.
    """
    found: dict[str, Parameter] = {}
    for word in words:
        named = {name: p for name, p in base.items() if name == word or name.startswith(f"{word}.")}
        if not named:
            parts = ", ".join(sorted({name.partition(".")[0] for name in base}))
            raise AdapterError(
                f"adapter: tuned names {brief(word)}, which is no part of this base; it has {parts}"
            )
        found |= named
    if quantised := [name for name, parameter in found.items() if not parameter.is_floating_point()]:
        raise AdapterError(
            f"adapter: {quantised[0]} is quantised and cannot be tuned in full; "
            "load the base unquantised, or use adapters"
        )
    return {name: base[name] for name in base if name in found}


def tuned_part(
    base: Mapping[str, Parameter], words: Sequence[str], names_of: Callable[[str], Sequence[str]]
) -> dict[str, Tuned]:
    """What an adapter that tunes these words holds beside its other parts."""
    names = [name for word in words for name in names_of(word)]
    return {"tuned": Tuned(chosen(base, names))} if names else {}


class Placed:
    """Which parameters stand in a model: the base's own, or the copies of an adapter."""

    def __init__(self, model: nn.Module, base: Mapping[str, Parameter]) -> None:
        self._base = base
        names = {id(parameter): name for name, parameter in base.items()}
        # Tied weights stand in several modules.
        self._holders: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in base}
        for module in model.modules():
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                self._holders[names[id(parameter)]].append((module, leaf))
        self._standing: list[str] = []

    def put(self, tuned: nn.Module | None) -> None:
        """The copies of one adapter, or none, stand in the model."""
        copies = dict(tuned.named_parameters()) if tuned is not None else {}
        for name in self._standing:
            if name not in copies:
                self._stand(name, self._base[name])
        for name, parameter in copies.items():
            self._stand(name, parameter)
        self._standing = list(copies)

    def keep(self) -> None:
        """What stands in the model now stays there for good."""
        self._standing = []

    def _stand(self, name: str, parameter: Parameter) -> None:
        for module, leaf in self._holders[name]:
            now = getattr(module, leaf)
            if now is not parameter:
                if parameter.device != now.device:  # the model was moved meanwhile
                    parameter.data = parameter.data.to(now.device)
                setattr(module, leaf, parameter)
