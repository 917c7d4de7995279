"""Requests as the programs make them: of all that theirs hold, our models read the arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a model reads of a request."""

    args: tuple[Any, ...]


def requests(*args: tuple[Any, ...]) -> list[Any]:
    """One request of each."""
    return [Request(one) for one in args]
