"""LoRA is its formula, starts as nothing, and trains what it declares."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mma import AdapterError, LoraConfig
from mma.lora import Lora
from models.build import build_base
from tests.mma.oracles import close, logits, shake

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CONFIGS = {
    "default": LoraConfig(),
    "attn with biases": LoraConfig(placement="attn", bias=True, r=4, alpha=2.0),
    "rslora": LoraConfig(placement="mlp", rslora=True, layers=(1,), projector_hidden=8),
    "targets": LoraConfig(targets=("v_proj", "down_proj"), layers=(0,), modalities=("image", "text")),
}


@pytest.fixture
def model(tiny_base):
    """A base without an adapter."""
    return build_base(tiny_base).model


def filled(config: LoraConfig, channels: int = 6, out: int = 5) -> Lora:
    """A LoRA with random values everywhere."""
    lora = Lora(channels, out, config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return lora


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"r": 4}, 2.0),  # alpha is 2 r
        ({"r": 4, "alpha": 6.0}, 1.5),
        ({"r": 4, "alpha": 6.0, "rslora": True}, 3.0),
        ({"r": 3, "rslora": True}, 6 / math.sqrt(3)),
        ({"r": 4, "alpha": 1.0, "bias": True, "dropout": 0.5}, 0.25),
    ],
)
def test_it_is_its_formula(settings, scaling):
    lora = filled(LoraConfig(**settings))
    x, y = torch.randn(2, 3, 6), torch.randn(2, 3, 5)
    added = torch.einsum("or,rc,btc->bto", lora.lora_B.weight, lora.lora_A.weight, x)
    if lora.lora_B.bias is not None:
        added = added + lora.lora_B.bias
    assert torch.allclose(lora(x, y, None), y + scaling * added, atol=1e-5)
    assert torch.allclose(lora.fold(0)(x), scaling * added, atol=1e-5)
    assert lora.fold(0).equals(lora.fold(1))


def test_dropout_is_on_the_input_and_only_while_training():
    lora = filled(LoraConfig(dropout=0.5, r=2))
    x, y = torch.ones(64, 6), torch.zeros(64, 5)
    assert len(lora(x, y, None).unique(dim=0)) == 1
    lora.train()
    # Dropped channels of the bottleneck of rank 2 would leave no more than four outcomes.
    assert len(lora(x, y, None).unique(dim=0)) > 4


def test_it_computes_in_the_type_of_the_stream():
    lora = filled(LoraConfig(bias=True))
    x, y = torch.randn(3, 6).bfloat16(), torch.randn(3, 5).bfloat16()
    assert lora(x, y, None).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in lora.parameters())


def test_it_starts_as_peft_does():
    torch.manual_seed(0)
    lora = Lora(100, 50, LoraConfig(bias=True))
    assert not lora.lora_B.weight.any() and not lora.lora_B.bias.any()
    bound = 1 / math.sqrt(100)  # kaiming, a = sqrt(5)
    assert 0.9 * bound < lora.lora_A.weight.abs().max() <= bound


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_identity_at_start_and_when_disabled(model, batch, config):
    adapters = model.adapters
    bare = logits(model, batch)  # no projector: the pictures' embeddings are zeros
    adapters.add_adapter("a", config)
    nn.init.zeros_(adapters.part("projector").up.weight)
    nn.init.zeros_(adapters.part("projector").up.bias)
    assert torch.equal(logits(model, batch), bare)
    shake(adapters)
    assert not close(logits(model, batch), bare, 0.01)
    with adapters.disable_adapter():
        assert torch.equal(logits(model, batch), bare)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_only_declared_tensors_get_gradients(model, batch, config):
    adapters = model.adapters
    adapters.add_adapter("a", config)
    shake(adapters)
    declared = adapters.trainable_parameters()
    names = config.targets or {"attn": ATTENTION, "mlp": MLP, "both": ATTENTION + MLP}[config.placement]
    leaves = ("lora_A.weight", "lora_B.weight", *(["lora_B.bias"] if config.bias else []))
    assert {name for name in declared if "lora" in name} == {
        f"decoder.blocks.{layer}.{'attn' if name in ATTENTION else 'mlp'}.{name}.{leaf}"
        for layer in config.layers or (0, 1)
        for name in names
        for leaf in leaves
    }
    assert "modality.weight" not in declared  # nothing of it is routed
    model.loss(batch).backward()
    wanted = {id(p) for p in declared.values()}
    assert {id(p) for p in adapters.all_parameters() if p.grad is not None} == wanted
    assert all(p.grad.any() for p in declared.values())


def test_layers_that_are_no_sites_are_refused(model):
    """The owner of a model names its linear layers; this one names the decoder's alone."""
    with pytest.raises(
        AdapterError, match="put 'a' at none of the .* sites .* placement, layers and targets"
    ):
        model.adapters.add_adapter("a", LoraConfig(targets=("c_fc",), tower_placement="both"))
    assert model.adapters.names == ()
