"""The two functions of `mma/fused.py` as Triton kernels, for CUDA.

Forward: a program takes a block of tokens and walks along their channels, for the statistics, for A n + a
and for the output; what it reads again is still in a cache, so the stream is read once and written once.
Backward: two walks. What the second needs of sums over all channels is put together from sums of the first:

    dx = (d - mean(d) - x' mean(d x')) / sigma   d = dy gain + g A'   A' = A gain   x' = (x - mean) / sigma
    sum(d) = sum(dy gain) + g sum(A')              sum(d x') = sum(dy gain x') + g (A' x')

(without the means for an RMS norm). The gradients of the weights are sums over all tokens: plain products
with few rows, taken slab by slab right behind the kernel, while its tokens are in the cache.

In a tile of H columns, column h < K r belongs to route h / r and bottleneck h % r, the last K to the biases;
products with matrices of zeros and ones (`_route`, `_place`) carry w and z there and back.

Shapes as in `mma/fused.py`; a block has T tokens, D channels, and W and H up to a power of two.
"""

# The kernels are another language: their arguments are pointers and sizes, and all of them stand in one row.
# ruff: noqa: PLR0913, PLR0917
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mma.fused import Cast, Gradients, Kept, Rule, hidden, of_narrow

TOKENS, WARPS = 16, 8
CHANNELS = {2: 128, 4: 64}  # of a tile, by the bytes of a number
SLAB = 2**23  # numbers; in bf16, of x, dy and dx together 48 MB
WIDEST = 64  # columns of a tile: a block must fit into 99 KB in fp32 too
# Triton's interpreter multiplies the bits of bf16 as if they were whole numbers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def forward(x: Tensor, cast: Cast, w: Tensor | None, keep: Tensor | None, rule: Rule) -> tuple[Tensor, Kept]:
    """See `mma.fused.forward`."""
    x, n = x.contiguous(), len(x)
    y, rstd = torch.empty_like(x), x.new_empty(n, 1, dtype=torch.float32)
    mean = None if rule.rms else torch.empty_like(rstd)
    z, routed = x.new_empty(rule.r, n), len(cast.narrow) > rule.r
    if routed:
        w = x.new_empty(len(cast.narrow) - rule.r, n)
    if n:
        sizes = _sizes(x, cast, rule, w, keep)
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(n, TOKENS),)](
                x, *cast, keep, y, mean, rstd, z, w, n, rule.eps, rule.scale, rule.temperature, **sizes
            )  # fmt: skip
    return y, Kept(mean, rstd, z, w, keep)


def backward(dy: Tensor, x: Tensor, cast: Cast, kept: Kept, rule: Rule, through: bool) -> Gradients:
    """See `mma.fused.backward`; the gradient of x is made in any case."""
    x, dy = x.contiguous(), dy.contiguous()
    n, width = len(x), len(cast.narrow)
    dx, g = torch.empty_like(x), x.new_empty(width, n)
    of_w = None if kept.w is None or width > rule.r else torch.empty_like(kept.w)
    wide = torch.zeros_like(cast.wide, dtype=torch.float32)
    narrow, bias = torch.zeros_like(cast.narrow, dtype=torch.float32), wide.new_zeros(width)
    sizes = _sizes(x, cast, rule, kept.w, kept.keep)
    slab = max(SLAB // x.shape[1], TOKENS)
    for first in range(0, n, slab):
        rows = slice(first, min(first + slab, n))
        part = _part(kept, rows)
        of_part = None if of_w is None else of_w[:, rows]
        with torch.cuda.device_of(x):
            _backward[(triton.cdiv(rows.stop - first, TOKENS),)](
                dy[rows], x[rows], cast.gain, cast.narrow, cast.wide, part.keep, part.mean, part.rstd, part.z,
                part.w, dx[rows], g[:, rows], of_part, rows.stop - first, n, rule.scale, rule.temperature,
                **sizes,
            )  # fmt: skip
        wide += hidden(part.z, part.w) @ dy[rows]
        of_weight, of_bias = of_narrow(g[:, rows], x[rows], cast, part)
        narrow += of_weight
        bias += of_bias
    return Gradients(dx, wide * rule.scale, narrow, bias, of_w)


def fits(x: Tensor, r: int, routes: int) -> bool:
    """Whether the kernels take a mixture of this size, on this card (from Ampere on)."""
    small = x.shape[1] <= 8192 and routes * (r + 1) <= WIDEST and r + routes <= WIDEST // 2
    return small and torch.cuda.get_device_capability(x.device) >= (8, 0)


def _part(kept: Kept, rows: slice) -> Kept:
    mean = None if kept.mean is None else kept.mean[rows]
    w = None if kept.w is None else kept.w[:, rows]
    keep = None if kept.keep is None else kept.keep[rows]
    return Kept(mean, kept.rstd[rows], kept.z[:, rows], w, keep)


def _sizes(x: Tensor, cast: Cast, rule: Rule, w: Tensor | None, keep: Tensor | None) -> dict[str, Any]:
    routes, width = len(cast.wide) // (rule.r + 1), len(cast.narrow)
    return {
        "C": x.shape[1],
        "R": rule.r,
        "K": routes,
        "RMS": rule.rms,
        "ROUTED": width > rule.r,
        "WEIGHTED": w is not None,
        "KEEP": keep is not None,
        "T": TOKENS,
        "D": CHANNELS[x.element_size()],
        "W": triton.next_power_of_2(max(16, width, routes)),
        "H": triton.next_power_of_2(max(16, len(cast.wide))),
        "num_warps": WARPS,
    }


@triton.jit
def _dot(a, b):
    """A product that is summed up in fp32, of fp32 without TF32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _place(R: tl.constexpr, K: tl.constexpr, W: tl.constexpr, H: tl.constexpr):
    """[W, H]: which column of a tile of H holds which part of the bottleneck."""
    h = tl.arange(0, H)[None, :]
    return ((h < K * R) & (h % R == tl.arange(0, W)[:, None])).to(tl.float32)


@triton.jit
def _route(R: tl.constexpr, K: tl.constexpr, W: tl.constexpr, H: tl.constexpr, ROUTED: tl.constexpr):
    """[W, H]: which column belongs to which route; behind A n + a where the tokens route themselves."""
    h, k = tl.arange(0, H)[None, :], tl.arange(0, W)[:, None]
    if ROUTED:
        k = k - R
    return (tl.where(h < K * R, h // R, h - K * R) == k).to(tl.float32)


@triton.jit
def _tile(ptr, rows, live, c, C: tl.constexpr, D: tl.constexpr):
    """Some channels of some rows in fp32; zeros outside."""
    cols = c + tl.arange(0, D)
    inside = live[:, None] & (cols < C)[None, :]
    return tl.load(ptr + rows[:, None] * C + cols[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def _statistics(x_ptr, rows, live, eps, C: tl.constexpr, RMS: tl.constexpr, T: tl.constexpr, D: tl.constexpr):
    """Mean and 1 / sigma of every row, [T]."""
    mean = tl.zeros([T], tl.float32)
    if not RMS:
        for c in range(0, C, D):
            mean += tl.sum(_tile(x_ptr, rows, live, c, C, D), 1)
        mean = mean / C
    square = tl.zeros([T], tl.float32)
    for c in range(0, C, D):
        inside = (c + tl.arange(0, D) < C)[None, :]
        centred = tl.where(inside, _tile(x_ptr, rows, live, c, C, D) - mean[:, None], 0.0)
        square += tl.sum(centred * centred, 1)
    return mean, tl.rsqrt(square / C + eps)


@triton.jit
def _normed(
    x_ptr, gain_ptr, shift_ptr, rows, live, mean, rstd, c, C: tl.constexpr, RMS: tl.constexpr, D: tl.constexpr
):
    """The norm's output, [T, D], rounded as the norm rounds it."""
    kind = x_ptr.dtype.element_ty
    cols = c + tl.arange(0, D)
    gain = tl.load(gain_ptr + cols, cols < C, 0.0).to(tl.float32)[None, :]
    hat = (_tile(x_ptr, rows, live, c, C, D) - mean[:, None]) * rstd[:, None]
    if RMS:
        return (hat.to(kind).to(tl.float32) * gain).to(kind)
    out = hat * gain
    if shift_ptr is not None:
        out += tl.load(shift_ptr + cols, cols < C, 0.0).to(tl.float32)[None, :]
    return out.to(kind)


@triton.jit
def _weights(w_ptr, rows, live, n, K: tl.constexpr, WEIGHTED: tl.constexpr, ROUTED: tl.constexpr,
             R: tl.constexpr, T: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """Route weights from outside, [T, W]: in the first columns, or behind A n + a."""
    col = tl.arange(0, W)[None, :]
    if ROUTED:
        col = col - R
    if WEIGHTED:
        inside = (col >= 0) & (col < K) & live[:, None]
        return tl.load(w_ptr + col * n + rows[:, None], inside, 0.0).to(tl.float32)
    return tl.zeros([T, W], tl.float32) + (col == 0)


@triton.jit
def _forward(
    x_ptr, gain_ptr, shift_ptr, narrow_ptr, bias_ptr, wide_ptr, keep_ptr, y_ptr, mean_ptr, rstd_ptr, z_ptr,
    w_ptr, n, eps, scale, temperature,
    C: tl.constexpr, R: tl.constexpr, K: tl.constexpr, RMS: tl.constexpr, ROUTED: tl.constexpr,
    WEIGHTED: tl.constexpr, KEEP: tl.constexpr, T: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """One block of tokens: statistics, bottleneck, weights, output."""
    kind = x_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    live, col, height = rows < n, tl.arange(0, W), tl.arange(0, H)
    width: tl.constexpr = R + K if ROUTED else R
    mean, rstd = _statistics(x_ptr, rows, live, eps, C, RMS, T, D)
    tl.store(rstd_ptr + rows, rstd, live)
    if not RMS:
        tl.store(mean_ptr + rows, mean, live)
    inner = tl.zeros([T, W], tl.float32) + tl.load(bias_ptr + col, col < width, 0.0).to(tl.float32)[None, :]
    for c in range(0, C, D):
        y = _normed(x_ptr, gain_ptr, shift_ptr, rows, live, mean, rstd, c, C, RMS, D)
        narrow = _tile(narrow_ptr, col.to(tl.int64), col < width, c, C, D).to(kind)
        inner += _dot(y, tl.trans(narrow))
    inner = inner.to(kind).to(tl.float32)
    inside = live[:, None] & (col < R)[None, :]
    z = tl.where((col < R)[None, :], inner, 0.0)
    if KEEP:
        z = z * tl.load(keep_ptr + rows[:, None] * R + col[None, :], inside, 0.0).to(tl.float32)
    z = z.to(kind).to(tl.float32)
    tl.store(z_ptr + col[None, :] * n + rows[:, None], z.to(kind), inside)
    if ROUTED:
        chosen = ((col >= R) & (col < width))[None, :]
        logits = tl.where(chosen, inner / temperature, float("-inf"))
        w = tl.exp(logits - tl.max(logits, 1)[:, None])
        w = (w / tl.sum(w, 1)[:, None]).to(kind).to(tl.float32)
        tl.store(w_ptr + (col - R)[None, :] * n + rows[:, None], w.to(kind), chosen & live[:, None])
    else:
        w = _weights(w_ptr, rows, live, n, K, WEIGHTED, ROUTED, R, T, W)
    spread = _dot(z, _place(R, K, W, H)) + (height >= K * R)[None, :]
    all_routes = (_dot(w, _route(R, K, W, H, ROUTED)) * spread).to(kind)
    for c in range(0, C, D):
        y = _normed(x_ptr, gain_ptr, shift_ptr, rows, live, mean, rstd, c, C, RMS, D).to(tl.float32)
        wide = _tile(wide_ptr, height.to(tl.int64), height < K * R + K, c, C, D).to(kind)
        y += scale * _dot(all_routes, wide)
        cols = c + tl.arange(0, D)
        tl.store(y_ptr + rows[:, None] * C + cols[None, :], y.to(kind), live[:, None] & (cols < C)[None, :])


@triton.jit
def _of_hidden(
    grad, keep_ptr, z_ptr, w_ptr, of_w_ptr, rows, live, stride, temperature,
    R: tl.constexpr, K: tl.constexpr, ROUTED: tl.constexpr, WEIGHTED: tl.constexpr, KEEP: tl.constexpr,
    T: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """The gradient of A n + a, [T, W], from that of all routes, [T, H]; that of given weights is stored."""
    col, height = tl.arange(0, W), tl.arange(0, H)
    inside = live[:, None] & (col < R)[None, :]
    z = tl.load(z_ptr + col[None, :] * stride + rows[:, None], inside, 0.0).to(tl.float32)
    w = _weights(w_ptr, rows, live, stride, K, WEIGHTED, ROUTED, R, T, W)
    place, route = _place(R, K, W, H), _route(R, K, W, H, ROUTED)
    g = _dot(grad * _dot(w, route), tl.trans(place))
    if KEEP:
        g = g * tl.load(keep_ptr + rows[:, None] * R + col[None, :], inside, 0.0).to(tl.float32)
    spread = _dot(z, place) + (height >= K * R)[None, :]
    of_w = _dot(grad * spread, tl.trans(route))
    if ROUTED:
        share = w * of_w
        mean = tl.sum(share, 1) / tl.where(live, tl.sum(w, 1), 1.0)
        g += (share - w * mean[:, None]) / temperature
    elif WEIGHTED:
        kind = of_w_ptr.dtype.element_ty
        at = of_w_ptr + col[None, :] * stride + rows[:, None]
        tl.store(at, of_w.to(kind), live[:, None] & (col < K)[None, :])
    return g


@triton.jit
def _backward(
    dy_ptr, x_ptr, gain_ptr, narrow_ptr, wide_ptr, keep_ptr, mean_ptr, rstd_ptr, z_ptr, w_ptr, dx_ptr, g_ptr,
    of_w_ptr, n, stride, scale, temperature,
    C: tl.constexpr, R: tl.constexpr, K: tl.constexpr, RMS: tl.constexpr, ROUTED: tl.constexpr,
    WEIGHTED: tl.constexpr, KEEP: tl.constexpr, T: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """One block of tokens: the sums over the channels and the gradient of A n + a, then that of x."""
    kind = x_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    live, col, height = rows < n, tl.arange(0, W), tl.arange(0, H)
    width: tl.constexpr = R + K if ROUTED else R
    rstd, mean = tl.load(rstd_ptr + rows, live, 0.0).to(tl.float32), tl.zeros([T], tl.float32)
    if not RMS:
        mean = tl.load(mean_ptr + rows, live, 0.0).to(tl.float32)
    of_routes, along = tl.zeros([T, H], tl.float32), tl.zeros([T, W], tl.float32)
    total, sum_d, sum_dx = tl.zeros([W], tl.float32), tl.zeros([T], tl.float32), tl.zeros([T], tl.float32)
    for c in range(0, C, D):
        dy, hat, gain = _walk(dy_ptr, x_ptr, gain_ptr, rows, live, mean, rstd, c, C, D)
        wide = _tile(wide_ptr, height.to(tl.int64), height < K * R + K, c, C, D).to(kind)
        narrow = _tile(narrow_ptr, col.to(tl.int64), col < width, c, C, D) * gain
        of_routes += _dot(dy.to(kind), tl.trans(wide))
        along += _dot(hat.to(kind), tl.trans(narrow.to(kind)))
        total += tl.sum(narrow, 1)
        sum_d += tl.sum(dy * gain, 1)
        sum_dx += tl.sum(dy * gain * hat, 1)
    g = _of_hidden(scale * of_routes, keep_ptr, z_ptr, w_ptr, of_w_ptr, rows, live, stride, temperature,
                   R, K, ROUTED, WEIGHTED, KEEP, T, W, H)  # fmt: skip
    at = g_ptr + col[None, :] * stride + rows[:, None]
    tl.store(at, g.to(kind), live[:, None] & (col < width)[None, :])
    mean_d, mean_dx = (sum_d + tl.sum(g * total[None, :], 1)) / C, (sum_dx + tl.sum(g * along, 1)) / C
    if RMS:
        mean_d = tl.zeros([T], tl.float32)
    for c in range(0, C, D):
        dy, hat, gain = _walk(dy_ptr, x_ptr, gain_ptr, rows, live, mean, rstd, c, C, D)
        narrow = (_tile(narrow_ptr, col.to(tl.int64), col < width, c, C, D) * gain).to(kind)
        d = dy * gain + _dot(g.to(kind), narrow)
        dx = rstd[:, None] * (d - mean_d[:, None] - hat * mean_dx[:, None])
        cols = c + tl.arange(0, D)
        tl.store(dx_ptr + rows[:, None] * C + cols[None, :], dx.to(kind), live[:, None] & (cols < C)[None, :])


@triton.jit
def _walk(dy_ptr, x_ptr, gain_ptr, rows, live, mean, rstd, c, C: tl.constexpr, D: tl.constexpr):
    """dy and x' of some channels, [T, D], and their gain, [1, D]; outside, what x' meets is 0."""
    cols = c + tl.arange(0, D)
    gain = tl.load(gain_ptr + cols, cols < C, 0.0).to(tl.float32)[None, :]
    hat = (_tile(x_ptr, rows, live, c, C, D) - mean[:, None]) * rstd[:, None]
    return _tile(dy_ptr, rows, live, c, C, D), hat, gain
