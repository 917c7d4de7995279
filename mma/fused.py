"""A norm of the base and the mixture behind it in one step, which keeps the stream and little else.

    n = norm(x)     z = keep * (A n + a)     y = n + s * sum_k w_k (B_k z + b_k)

For the backward pass it keeps x, which the residual holds anyway, the norm's statistics, z, w and what is
dropped: nothing else of width C. What needs n is computed from x:

    dA = g n^T = gain * ((g / sigma) (x - mean)^T) + (sum g) shift        with g the gradient of A n + a

Two implementations have the same two functions, `forward` and `backward`: this file's in PyTorch is the
reference and runs everywhere, that in Triton (`mma/fused_triton.py`) is for CUDA. Compiled code takes the
first, since the compiler fuses it by itself. The plain path is the norm, then `Mixture.forward`.

Shapes: N tokens, C channels, r bottleneck, K routes, M modalities; W rows of what is multiplied with n: r, or
r + K where the tokens route themselves; H = K r + K rows of all up-projections and their biases. What is
narrow has the tokens last: a product with few rows is twice as fast so.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Subclasses may compute otherwise; these are known to be the usual layer norm.
LAYER_NORMS = ("torch.nn.modules.normalization.LayerNorm", "open_clip.transformer.LayerNorm")
TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Norm(NamedTuple):
    """A frozen norm of the base: in fp32; an RMS norm is cast back before its gain is applied."""

    gain: Tensor  # float[C]
    shift: Tensor | None  # float[C], of a layer norm
    rms: bool
    eps: float


class Weights(NamedTuple):
    """Of a mixture, as they are trained; a router where the tokens route themselves."""

    down: Tensor  # float[r, C]
    down_bias: Tensor  # float[r]
    up: Tensor  # float[K, C, r]
    up_bias: Tensor  # float[K, C]
    router: Tensor | None = None  # float[K, C]
    router_bias: Tensor | None = None  # float[K]


class Routed(NamedTuple):
    """The route weights where they come from outside; without them and without a router: one route."""

    table: Tensor | None = None  # float[M, K]
    of_token: Tensor | None = None  # int64[N]: each token's row of the table


class Rule(NamedTuple):
    """What is no tensor."""

    rms: bool
    eps: float
    scale: float
    temperature: float
    r: int


class Cast(NamedTuple):
    """The tensors of norm and mixture as they are multiplied, in the type of the stream."""

    gain: Tensor  # float[C]
    shift: Tensor | None  # float[C]
    narrow: Tensor  # float[W, C]: down, and the router
    narrow_bias: Tensor  # float[W]
    wide: Tensor  # float[H, C]: the routes' up-projections, and their biases


class Kept(NamedTuple):
    """What the backward pass reads beside x and the weights."""

    mean: Tensor | None  # float[N, 1], of a layer norm
    rstd: Tensor  # float[N, 1]
    z: Tensor  # float[r, N], after dropout
    w: Tensor | None  # float[K, N]
    keep: Tensor | None  # float[N, r]: 0 where dropped, else 1 / (1 - p)


class Gradients(NamedTuple):
    """What the backward pass gives."""

    x: Tensor | None  # float[N, C]
    wide: Tensor  # float[H, C]
    narrow: Tensor  # float[W, C]
    narrow_bias: Tensor  # float[W]
    w: Tensor | None  # float[K, N]


def norm_of(module: nn.Module, x: Tensor) -> Norm | None:
    """How a norm computes on float[..., C] if it is known here, frozen and in the type of x; else None."""
    rms = getattr(module, "norm_kind", None) == "rms"
    if not rms and f"{type(module).__module__}.{type(module).__qualname__}" not in LAYER_NORMS:
        return None
    gain, shift = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(gain, Tensor) or gain.shape != x.shape[-1:] or x.dtype not in TYPES:
        return None
    if any(t.requires_grad or t.dtype != x.dtype for t in (gain, shift) if t is not None):
        return None
    # Somebody looks at the norm itself, or types are chosen elsewhere.
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    if any(hooks) or module._backward_pre_hooks:
        return None
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return None
    return Norm(gain, shift, rms, float(module.eps))  # type: ignore[arg-type]


def mixed(
    x: Tensor,
    norm: Norm,
    weights: Weights,
    routed: Routed,
    keep: Tensor | None,
    scale: float,
    temperature: float = 1.0,
) -> Tensor:
    """The mixture behind the norm of x: float[..., C] -> float[..., C]; `keep` float[N, r] as in `Kept`."""
    rule = Rule(norm.rms, norm.eps, scale, temperature, len(weights.down))
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = _Mixed.apply(rule, flat, norm.gain, norm.shift, *weights, *routed, keep)
    return y.view(x.shape)


def normed(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor | None, Tensor]:
    """The norm of float[N, C], and its statistics as in `Kept`; autograd may look on."""
    if not norm.rms:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[1:], norm.gain, norm.shift, norm.eps)
        return y, mean, rstd
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return (wide * rstd).to(x.dtype) * norm.gain, None, rstd


def fronted(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """float[N, C] for `mixed` alone, and rows of it float[M, C], whose gradient joins in place."""
    if torch.compiler.is_compiling():
        return x, x.index_select(0, rows)
    both: tuple[Tensor, Tensor] = _Fronted.apply(x, rows)
    return both


class _Fronted(Function):
    """Writes to the gradient of x: only `_Mixed` has it, which has just made it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return x.view_as(x), x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, front: Tensor) -> tuple[Tensor, None]:
        return grad.index_add_(0, ctx.saved_tensors[0], front), None


class _Mixed(Function):
    """See the head of this file."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, x: Tensor, *tensors: Tensor | None) -> Tensor:
        gain, shift, *rest = tensors
        weights, (table, of_token, keep) = Weights(*rest[:-3]), rest[-3:]  # type: ignore[arg-type]
        assert gain is not None, "a norm that is known has a gain"
        w = None
        if table is not None and of_token is not None:
            w = table.t().to(x.dtype).index_select(1, of_token)
        y, kept = _kernels(x, weights.up).forward(x, _cast(x.dtype, gain, shift, weights), w, keep, rule)
        ctx.save_for_backward(x, gain, shift, *weights, of_token, *kept)
        ctx.rule, ctx.table = rule, None if table is None else table.shape
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, *rest = ctx.saved_tensors
        weights, of_token, kept = Weights(*rest[:6]), rest[6], Kept(*rest[7:])
        cast = _cast(x.dtype, gain, shift, weights)
        found = _kernels(x, weights.up).backward(dy, x, cast, kept, ctx.rule, ctx.needs_input_grad[1])
        of_table = None
        if ctx.table is not None and found.w is not None:
            modality = torch.arange(ctx.table[0], device=x.device)
            of_table = (found.w.float() @ (of_token[:, None] == modality).float()).t()
        return (None, found.x, None, None, *_apart(found, weights), of_table, None, None)


def forward(x: Tensor, cast: Cast, w: Tensor | None, keep: Tensor | None, rule: Rule) -> tuple[Tensor, Kept]:
    """float[N, C] and route weights float[K, N], unless the tokens route themselves -> float[N, C]."""
    y, mean, rstd = normed(x, Norm(cast.gain, cast.shift, rule.rms, rule.eps))
    inner = torch.addmm(cast.narrow_bias[:, None], cast.narrow, y.t())
    r = rule.r
    z = inner[:r] if keep is None else inner[:r] * keep.t()
    if len(inner) > r:
        w = torch.softmax(inner[r:].float() / rule.temperature, dim=0).to(x.dtype)
    return y.addmm_(hidden(z, w).t(), cast.wide, alpha=rule.scale), Kept(mean, rstd, z, w, keep)


def backward(dy: Tensor, x: Tensor, cast: Cast, kept: Kept, rule: Rule, through: bool) -> Gradients:
    """Gradients from that of y, float[N, C]; that of x only where it is to go `through`."""
    g, of_w = of_hidden(cast.wide @ dy.t(), cast, kept, rule)
    of_wide = hidden(kept.z, kept.w) @ dy
    narrow, bias = of_narrow(g, x, cast, kept)
    of_x = _of_x(dy, g, x, cast, kept, rule) if through else None
    return Gradients(of_x, of_wide * rule.scale, narrow, bias, of_w)


def hidden(z: Tensor, w: Tensor | None) -> Tensor:
    """What all up-projections are multiplied with, float[H, N]: w_k z for every route, then the weights."""
    if w is None:
        return torch.cat([z, torch.ones_like(z[:1])])
    return torch.cat([(w[:, None] * z).flatten(0, 1), w])


def of_hidden(grad: Tensor, cast: Cast, kept: Kept, rule: Rule) -> tuple[Tensor, Tensor | None]:
    """Gradient of `hidden` before the scale, float[H, N] -> that of A n + a, float[W, N], and of w."""
    z, w, of_w = kept.z, kept.w, None
    grad = grad * rule.scale
    if w is None:
        of_z = grad[: len(z)]
    else:
        routes = grad[: len(w) * len(z)].view(len(w), *z.shape)
        of_z, of_w = (w[:, None] * routes).sum(0), (z * routes).sum(1) + grad[len(w) * len(z) :]
    if kept.keep is not None:
        of_z = of_z * kept.keep.t()
    if len(cast.narrow) == len(z):
        return of_z, of_w
    assert w is not None and of_w is not None, "tokens that route themselves have weights"
    # By their sum, which rounding moves away from 1: what all routes have in common must not count.
    share, w = w.float() * of_w.float(), w.float()
    logits = (share - w * (share.sum(0) / w.sum(0))) / rule.temperature
    return torch.cat([of_z, logits.to(of_z.dtype)]), None


def of_narrow(g: Tensor, x: Tensor, cast: Cast, kept: Kept) -> tuple[Tensor, Tensor]:
    """Gradients of the narrow weights float[W, C] and biases float[W] from that of A n + a, float[W, N]."""
    # Centred first: a large mean would leave nothing of small differences.
    centred = x if kept.mean is None else x - kept.mean.to(x.dtype)
    weight = ((g * kept.rstd.t()).to(x.dtype) @ centred) * cast.gain
    bias = g.sum(1)
    return weight if cast.shift is None else torch.addr(weight, bias, cast.shift), bias


def _cast(dtype: torch.dtype, gain: Tensor, shift: Tensor | None, weights: Weights) -> Cast:
    narrow, bias = weights.down, weights.down_bias
    if weights.router is not None and weights.router_bias is not None:
        narrow, bias = torch.cat([narrow, weights.router]), torch.cat([bias, weights.router_bias])
    wide = torch.cat([weights.up.transpose(1, 2).flatten(0, 1), weights.up_bias])
    return Cast(gain, shift, narrow.to(dtype), bias.to(dtype), wide.to(dtype))


def _apart(found: Gradients, weights: Weights) -> Weights:
    """Gradients of what was put together by `_cast`, one by one."""
    r, routes, channels = len(weights.down), len(weights.up), weights.up.shape[1]
    up = found.wide[: routes * r].view(routes, r, channels).transpose(1, 2)
    of_router = (None, None) if weights.router is None else (found.narrow[r:], found.narrow_bias[r:])
    made = (found.narrow[:r], found.narrow_bias[:r], up, found.wide[routes * r :], *of_router)
    like = zip(made, weights, strict=True)
    return Weights(*(g if g is None or w is None else g.to(w.dtype) for g, w in like))


def _kernels(x: Tensor, up: Tensor) -> ModuleType:
    """Who computes with these up-projections, float[K, C, r]."""
    plain = sys.modules[__name__]
    # A tensor of another type computes no values: shapes alone, or a part of them.
    real = x.is_cuda and type(x) is Tensor and not torch.compiler.is_compiling()
    if not real or find_spec("triton") is None:
        return plain
    from mma import fused_triton  # noqa: PLC0415, only CUDA needs it, and not every system has it

    return fused_triton if fused_triton.fits(x, up.shape[2], len(up)) else plain


def _of_x(dy: Tensor, g: Tensor, x: Tensor, cast: Cast, kept: Kept, rule: Rule) -> Tensor:
    """Gradient of x, float[N, C]: what goes through n, and from there through the norm."""
    if not rule.rms:
        of_n = torch.addmm(dy, g.t(), cast.narrow)
        grad: Tensor = torch.ops.aten.native_layer_norm_backward(
            of_n, x, x.shape[1:], kept.mean, kept.rstd, cast.gain, cast.shift, [True, False, False]
        )[0]
        return grad
    grad = (dy * cast.gain).addmm_(g.t(), cast.narrow * cast.gain).float()
    wide = x.float()
    along = (grad * wide).sum(-1, keepdim=True) * (kept.rstd**3 / x.shape[1])
    return grad.mul_(kept.rstd).addcmul_(wide, along, value=-1).to(x.dtype)
