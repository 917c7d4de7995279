"""A base in 8-bit floating point: its rounding, both forms of the product, and what holds of the system."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from data.packing import collate
from data.sample import Tokens
from mma import AdapterError, LoraConfig, MMAConfig, PartsConfig
from models.attention import PackedAttention
from models.build import build_base, build_new, current_digests, load
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.export import write_hf
from models.fp8 import FP8, Fp8Linear, _anywhere, _on_tensor_cores, to_fp8
from models.generate import Sampling, generate
from models.quantise import quantiser, weight_bytes
from models.weights import load_decoder
from tests.conftest import randomise

ADAPTERS = (MMAConfig(dropout=0.0, temperature=1.0, projector_hidden=8), LoraConfig(r=4, projector_hidden=8))


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def linear_of(weight: torch.Tensor, bias: bool = False) -> Fp8Linear:
    return Fp8Linear(nn.Linear(*weight.shape[::-1], bias=bias, device="meta"), weight)


def stands_for(layer: Fp8Linear) -> torch.Tensor:
    """The weight that a layer's bytes mean, float32[O, C]."""
    return layer.weight.view(FP8).float() * layer.scale[:, None]


def batch(*ids: tuple[int, ...]):
    samples = [Tokens(str(i), x, (False,) + (True,) * (len(x) - 1), (), "text") for i, x in enumerate(ids)]
    return collate(samples, lambda path: None)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_numbers_are_rounded_to_four_digits_and_scaled_by_powers_of_two():
    x = seeded(64, 48) * torch.logspace(-30, 30, 64)[:, None]
    rounded, scale = to_fp8(x)
    assert rounded.dtype == FP8 and scale.shape == (64, 1)
    assert torch.equal(scale.log2(), scale.log2().round())
    short = rounded.float() * scale
    # Half of the last of four binary digits, or half of the smallest step below the largest numbers.
    bound = torch.maximum(x.abs() * 2**-4, x.abs().amax(1, keepdim=True) * 2**-16)
    assert ((short - x).abs() <= bound).all()
    assert rounded.float().abs().amax(1).min() >= 128 and rounded.float().abs().max() <= 256
    half, same = to_fp8(x.bfloat16())
    assert torch.equal(half, to_fp8(x.bfloat16().float())[0]) and same.dtype == torch.float32


def test_zeros_and_the_smallest_numbers_are_rounded_too():
    rounded, scale = to_fp8(torch.stack([torch.zeros(4), torch.full((4,), 1e-44), torch.full((4,), 3e38)]))
    assert scale.isfinite().all() and rounded.float().isfinite().all()
    assert not rounded[:2].float().any()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(value):
    x = seeded(3, 16)
    x[1, 5] = value
    y = linear_of(seeded(32, 16))(x)
    assert y[[0, 2]].isfinite().all() and not y[1].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_its_rounded_numbers(dtype, bias):
    layer = linear_of(seeded(48, 32), bias)
    if bias:
        layer.bias = nn.Parameter(seeded(48))
    x = seeded(2, 5, 32).to(dtype).requires_grad_()
    rounded, scale = to_fp8(x.detach())
    wanted = functional.linear((rounded.float() * scale).double(), stands_for(layer).double(), None)
    y = layer(x)
    wanted = wanted if layer.bias is None else wanted + layer.bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(y.double(), wanted, atol=tolerance * 10, rtol=tolerance)
    assert y.dtype == dtype
    grad = seeded(2, 5, 48).to(dtype)
    y.backward(grad)
    # Rounded with the weight's scales in it, which are powers of two: along each token.
    short, own = to_fp8(grad * layer.scale)
    wanted = (short.float() * own).double() @ layer.weight.view(FP8).double()
    torch.testing.assert_close(x.grad.double(), wanted, atol=tolerance * 10, rtol=tolerance)
    assert error(x.grad.float(), grad.float() @ stands_for(layer)) < 0.04


def test_the_product_of_the_cores_is_that_of_the_plain_form():
    weight, scale = to_fp8(seeded(48, 32))
    rounded, own = to_fp8(seeded(16, 32).bfloat16())
    for of_weight, of_scale in ((weight, scale.squeeze(-1)), (weight, None)):
        ours = _on_tensor_cores(rounded, own, of_weight, of_scale, torch.bfloat16)
        twin = _anywhere(rounded, own, of_weight, of_scale, torch.bfloat16)
        torch.testing.assert_close(ours, twin, atol=1e-2, rtol=8e-3)
    grad, own = to_fp8(seeded(16, 48).bfloat16())  # for the gradient the weight comes turned
    ours = _on_tensor_cores(grad, own, weight.t(), None, torch.bfloat16)
    torch.testing.assert_close(
        ours, _anywhere(grad, own, weight.t(), None, torch.bfloat16), atol=1e-2, rtol=8e-3
    )


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_a_gpu_gives_what_the_cpu_gives(tokens):
    layer = linear_of(seeded(64, 128).bfloat16())
    x, grad = seeded(tokens, 128).bfloat16(), seeded(tokens, 64).bfloat16()
    found = []
    for device in ("cpu", "cuda"):
        held = x.to(device).requires_grad_()
        y = layer.to(device)(held)
        y.backward(grad.to(device))
        found.append((y.detach().cpu().float(), held.grad.cpu().float()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=1.6e-2)


def test_the_error_against_the_full_base(tmp_path):
    decoder = Decoder(DecoderConfig(128, 4, 4, 4, 344, 200))
    randomise(decoder, 4)
    write_hf(decoder, tmp_path / "a", torch.float32)
    found = load_decoder(tmp_path / "a", dtype=torch.float32, quantise=quantiser("fp8", torch.float32))
    linears = [module for module in found.blocks.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 4 * 7 and all(type(layer) is Fp8Linear for layer in linears)
    full, layer = decoder.blocks[0].mlp.up_proj.weight, found.blocks[0].mlp.up_proj
    assert 0.01 < error(stands_for(layer), full) < 0.03
    held = layer.weight.nbytes + layer.scale.nbytes
    assert held == weight_bytes("fp8", full.shape, 2)
    x, positions = seeded(20, 128), torch.arange(20)
    with torch.no_grad():
        a, b = (d.head(d(x, positions, PackedAttention((20,), x.device))) for d in (found, decoder))
    assert error(a, b) < 0.2


@pytest.mark.parametrize("config", ADAPTERS, ids=["mma", "lora"])
def test_gradients_are_near_those_of_the_full_base(config, tiny_base):
    found = []
    for kind in ("fp8", "none"):
        model = build_new(replace(tiny_base, quantise=kind), config).model.train()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.adapters.trainable_parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.loss(batch((5, 6, 8, 9), (5, 11, 7))).backward()
        trained = model.adapters.trainable_parameters().values()
        found.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
        assert all(p.grad is None for p in model.adapters.base.values())
    assert found[0].any() and error(*found) < 0.2


def test_a_sample_does_not_depend_on_its_batch_mates(tiny_base):
    model = build_new(replace(tiny_base, quantise="fp8"), ADAPTERS[0]).model
    with torch.no_grad():
        model.decoder.embed.weight[11].mul_(1e4)  # would take all digits from the others
        together, alone = model(batch((5, 6, 8, 9), (5, 11, 7))), model(batch((5, 6, 8, 9)))
    torch.testing.assert_close(together[:3], alone, atol=1e-5, rtol=1e-5)


def test_an_adapter_is_saved_and_loaded_on_its_own_base_only(tiny_base, tmp_path):
    base = replace(tiny_base, quantise="fp8")
    system = build_new(base, ADAPTERS[0])
    model = system.model
    digests = {name: system.digests[name] for name in ("base_digest", "tower_digest")}
    assert digests == current_digests(build_base(base).model)
    model.adapters.save_pretrained(tmp_path / "a")
    answers = generate(system, batch((5, 6, 8)), Sampling(max_new_tokens=4))
    again = load(tmp_path / "a")
    assert generate(again, batch((5, 6, 8)), Sampling(max_new_tokens=4)) == answers
    assert current_digests(again.model) == digests
    with pytest.raises(AdapterError, match="base_digest|another decoder|other base|another base"):
        load(tmp_path / "a", tiny_base)


def test_it_cannot_be_merged_exported_or_tuned_in_full(tiny_base, tmp_path):
    model = build_new(replace(tiny_base, quantise="fp8"), ADAPTERS[0]).model
    with pytest.raises(AdapterError, match=r"q_proj is quantised .* leave it unmerged"):
        model.adapters.merge_adapter("text")
    with pytest.raises(AdapterError, match="is quantised and cannot be tuned in full"):
        model.adapters.add_adapter("full", PartsConfig(projector_hidden=8, tuned=("decoder",)))
    with pytest.raises(ModelError, match="q_proj.weight is quantised; export from the unquantised base"):
        write_hf(model.decoder, tmp_path / "out", torch.float32)
