"""Who sees whom: causal attention inside every segment of a packed batch.

Shapes: N packed tokens, S segments, T the longest segment, H query heads, J key-value heads, E head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before PyTorch 2.10
    varlen_attn = None

# The arguments of the flash kernel for segments; none where PyTorch has no such kernel.
VARLEN = frozenset() if varlen_attn is None else frozenset(inspect.signature(varlen_attn).parameters)
HALF, WIDEST = (torch.float16, torch.bfloat16), 256  # the heads that it takes


class PackedAttention:
    """Causal attention inside each segment; tokens of different segments never meet, and none is filler.

    On a GPU from Ampere on, in half precision, by the flash kernel for segments of unlike lengths; elsewhere
    by one fused call per segment, which many short ones make slow on a GPU.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths = tuple(lengths)
        self.device = torch.device(device)
        self.longest = max(self.lengths, default=0)
        self.flash = (
            bool(VARLEN) and self.device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        )
        self.ends = (
            torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `models.decoder.Attend`; the layer makes no difference here."""
        if self.flash and q.dtype in HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST:
            return _by_varlen(q, k, v, self.ends, self.longest)
        kind = q.dtype
        if q.device.type == "cpu":  # the fused kernel's backward in bf16 is three times slower there
            q, k, v = q.float(), k.float(), v.float()
        parts = zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        return torch.cat([_segment(*part) for part in parts]).to(kind)


def _segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one segment: float[T, H, E] with keys and values float[T, J, E]."""
    if len(q) == 1:  # it sees itself alone, whatever its query
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    q, k, v = (rearrange(x, "t h e -> 1 h t e") for x in (q, k, v))
    mixed = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )
    return rearrange(mixed, "1 h t e -> t h e")


def _by_varlen(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    """The flash kernel over all segments at once; PyTorch 2.10 and later name its arguments differently."""
    assert varlen_attn is not None, "it was asked for"
    settings: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in VARLEN else {"is_causal": True}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in VARLEN:
            settings["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    mixed: Tensor = varlen_attn(q, k, v, ends, ends, longest, longest, **settings)
    return mixed
