"""The lean functions: values and gradients of the usual formulas, and how little they keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from models.attention import PackedAttention
from models.decoder import Decoder, RMSNorm
from models.decoder_config import DecoderConfig
from models.lean import rms_norm, rotate, swiglu
from models.rope import Rotary
from models.tower_lean import LeanQuickGELU, SelfAttention


def formula_norm(x: Tensor, weight: Tensor) -> Tensor:
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    return (x.float() * scale).to(x.dtype) * weight


def formula_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second, still = x.float().tensor_split((cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, still], dim=-1).to(x.dtype)


def both(function, formula, *inputs: Tensor) -> None:
    """Values and gradients agree: exactly in order of magnitude of the type's rounding."""
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[inputs[0].dtype]
    results = []
    for each in (function, formula):
        own = [x.detach().clone().requires_grad_() for x in inputs]
        y = each(*own)
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype))
        results.append([y, *(x.grad for x in own)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=bound, rtol=bound)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_the_formula(kind):
    torch.manual_seed(0)
    weight = torch.randn(24).to(kind)
    both(
        lambda x: rms_norm(x, weight, 1e-6),
        lambda x: formula_norm(x, weight),
        (3 * torch.randn(7, 24)).to(kind),
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_gated_unit_is_that_of_the_formula(kind):
    torch.manual_seed(1)
    gate, up = torch.randn(2, 7, 24).to(kind)
    both(swiglu, lambda g, u: functional.silu(g) * u, gate, up)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turning", [8, 4])
def test_the_turn_is_that_of_the_formula(kind, turning):
    torch.manual_seed(2)
    cos, sin = Rotary(turning, 100.0)(torch.arange(5))
    x = torch.randn(5, 3, 8).to(kind)
    both(lambda x: rotate(x, cos, sin), lambda x: formula_turn(x, cos, sin), x)


def test_the_gradients_are_those_of_finite_differences():
    torch.manual_seed(3)
    gate, up = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_a_trained_gain_gets_its_gradient():
    norm = RMSNorm(8, 1e-6)
    norm(torch.randn(3, 8)).sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0


def kept_bytes(model: torch.nn.Module, run) -> int:
    """Bytes of what autograd keeps, but for parameters; what shares memory is counted once."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        alive = run()
    assert alive is not None
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for where, size in kept.items() if where not in parameters)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_frozen_block_keeps_what_docs_performance_says(kind):
    """6 D + 2 F numbers per token and layer, and a few per head; nothing for a frozen weight."""
    tokens, dim, hidden, heads = 64, 64, 160, 4

    def measured(layers: int) -> int:
        decoder = Decoder(DecoderConfig(dim, layers, heads, heads, hidden, vocab_size=50)).to(kind)
        decoder.requires_grad_(False)
        x = torch.randn(tokens, dim).to(kind).requires_grad_()
        attend = PackedAttention([tokens // 2, tokens // 2])
        return kept_bytes(decoder, lambda: decoder(x, torch.arange(tokens), attend))

    per_layer = (measured(3) - measured(1)) / 2 / tokens
    size = kind.itemsize
    least = size * (6 * dim + 2 * hidden)
    # The attention computes in fp32 on the CPU: q, k, v and what it gives are kept so.
    least += (4 - size) * 4 * dim
    small = 4 * (heads + 2)  # log of the sums per head, and the norms' scales
    assert least < per_layer <= least + small


def test_the_quick_gelu_is_that_of_the_formula():
    x = 3 * torch.randn(5, 8, dtype=torch.float64)
    both(LeanQuickGELU(), lambda x: x * torch.sigmoid(1.702 * x), x)


def test_the_towers_attention_is_pytorchs():
    torch.manual_seed(4)
    original = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    lean = SelfAttention(original)
    assert lean.state_dict().keys() == original.state_dict().keys()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    both(lambda x: lean(x, x, x)[0], lambda x: original(x, x, x, need_weights=False)[0], x)
