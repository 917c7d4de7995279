"""What a forward pass keeps for the backward pass (arXiv 1604.06174): less memory for more time.

none        everything that a block's functions ask for
selective   the stream and the attention; norm, gate and up of the MLP are computed again
full        the stream at the beginning of each block; the whole block is computed again
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.decoder import Kept

Checkpointing = Literal["none", "selective", "full"]


def kept(kind: Checkpointing, meanwhile: Callable[[], AbstractContextManager[Any]]) -> Kept:
    """What the decoder keeps.

    `meanwhile` is asked before a part computes, for the context that it is computed again in.
    """
    if kind == "none":
        return Kept()
    again = partial(_again, meanwhile)
    return Kept(block=again) if kind == "full" else Kept(half=again)


def _again(
    meanwhile: Callable[[], AbstractContextManager[Any]], function: Callable[..., Tensor], *arguments: Any
) -> Tensor:
    result: Tensor = checkpoint(
        function, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), meanwhile())
    )
    return result
