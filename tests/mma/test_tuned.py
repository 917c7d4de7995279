"""Parts of a base tuned in full: the base's own tensors stay as they are, and come back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from mma import AdapterError, Adapters, LoraConfig, MMAConfig, PartsConfig, attach
from mma.bank import AdapterBank
from tests.mma.foreign import GROUPED, SHAPE

IDS = torch.tensor([[3, 7, 11, 2, 9]])
TEXT = ("text",)


@pytest.fixture
def model() -> hf.LlamaForCausalLM:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True)).eval()


def logits(model: torch.nn.Module, adapters: Adapters) -> torch.Tensor:
    with torch.no_grad(), adapters.carrying("text"):
        return model(IDS).logits


def train(model: torch.nn.Module, adapters: Adapters, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(adapters.trainable_parameters().values(), lr=0.5)
    for _ in range(steps):
        with adapters.carrying("text"):
            loss = model(IDS, labels=IDS).loss
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()


def test_training_moves_copies_and_leaves_the_base(model, tmp_path: Path) -> None:
    adapters = attach(decoder=model)
    base = {name: p.detach().clone() for name, p in adapters.base.items()}
    bare = model(IDS).logits
    adapters.add_adapter("full", PartsConfig(modalities=TEXT, tuned=("decoder.model",)))
    assert torch.equal(logits(model, adapters), bare)
    train(model, adapters)
    tuned = logits(model, adapters)
    assert (tuned - bare).abs().max() > 1e-2
    assert all(torch.equal(p, base[name]) for name, p in adapters.base.items())
    with adapters.disable_adapter():
        assert torch.equal(model(IDS).logits, bare)
    assert torch.equal(logits(model, adapters), tuned)
    adapters.save_pretrained(tmp_path / "full")
    adapters.delete_adapter("full")
    assert torch.equal(model(IDS).logits, bare)
    adapters.load_adapter(tmp_path / "full", "again")
    assert torch.equal(logits(model, adapters), tuned)


def test_the_gradient_is_that_of_the_bare_model(model) -> None:
    model.requires_grad_(True)
    model(IDS, labels=IDS).loss.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    adapters = attach(decoder=model)
    adapters.add_adapter("full", PartsConfig(modalities=TEXT, tuned=("decoder",)))
    model(IDS, labels=IDS).loss.backward()
    got = {name.removeprefix("tuned.decoder."): p.grad for name, p in adapters.trainable_parameters().items()}
    assert got.keys() == want.keys()
    assert all(torch.allclose(got[name], want[name], atol=1e-7) for name in want)


def test_tied_weights_are_tuned_together(model) -> None:
    adapters = attach(decoder=model)
    adapters.add_adapter("full", PartsConfig(modalities=TEXT, tuned=("decoder.model.embed_tokens",)))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert list(adapters.trainable_parameters()) == ["tuned.decoder.model.embed_tokens.weight"]


def test_two_adapters_bring_their_own_copies(model) -> None:
    adapters = attach(decoder=model)
    bare = model(IDS).logits
    adapters.add_adapter("norm", PartsConfig(modalities=TEXT, tuned=("decoder.model.norm",)))
    train(model, adapters)
    first = logits(model, adapters)
    adapters.add_adapter("lora", LoraConfig(modalities=TEXT, tuned=("decoder.model.layers.0",)))
    assert torch.equal(logits(model, adapters), bare)
    train(model, adapters)
    second = logits(model, adapters)
    adapters.set_adapter("norm")
    assert torch.equal(logits(model, adapters), first)
    adapters.set_adapter("lora")
    assert torch.equal(logits(model, adapters), second)


def test_a_merge_starts_from_the_copies(model) -> None:
    adapters = attach(decoder=model)
    bare = model(IDS).logits
    words = ("decoder.model.layers.0", "decoder.model.norm")
    adapters.add_adapter("lora", LoraConfig(modalities=TEXT, tuned=words))
    train(model, adapters)
    want = logits(model, adapters)
    adapters.merge_adapter()
    assert torch.allclose(logits(model, adapters), want, atol=1e-5)
    with adapters.disable_adapter():
        assert torch.equal(model(IDS).logits, bare)
    adapters.unmerge_adapter()
    assert torch.equal(logits(model, adapters), want)
    adapters.merge_and_unload()
    assert torch.allclose(model(IDS).logits, want, atol=1e-5)


def test_what_cannot_be(model, tmp_path: Path) -> None:
    adapters = attach(decoder=model)
    with pytest.raises(
        AdapterError, match=r"tuned names 'decoder.modle', which is no part of this base; it has"
    ):
        adapters.add_adapter("x", PartsConfig(tuned=("decoder.modle",)))
    assert adapters.names == ()
    adapters.add_adapter("parts", PartsConfig(modalities=TEXT, tuned=("decoder.model.norm",)))
    with pytest.raises(AdapterError, match="parts has no site, so there is nothing to merge"):
        adapters.merge_adapter()
    with pytest.raises(AdapterError, match="'parts' tunes parts of the base in full, which no LoRA can hold"):
        adapters.export_peft_lora(tmp_path / "lora")
    adapters.add_adapter("one", LoraConfig(modalities=TEXT, tuned=("decoder.model.norm",)))
    adapters.add_adapter("two", LoraConfig(modalities=TEXT))
    with pytest.raises(
        AdapterError, match="one, two tune parts of the base in full; set one active and merge"
    ):
        adapters.merge_adapter(adapter_names=["one", "two"])


def test_a_quantised_part_is_refused(model) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match=r"up_proj.weight is quantised and cannot be tuned in full"):
        attach(decoder=model, sites=[]).add_adapter("q", PartsConfig(tuned=("decoder.model",)))


def test_a_bank_shares_one_base(model) -> None:
    adapters = attach(decoder=model)
    adapters.add_adapter("tuned", MMAConfig(tuned=("decoder.model.norm",)))
    bank = AdapterBank(adapters, 2, like=MMAConfig())
    with pytest.raises(AdapterError, match="'tuned' tunes parts of the base in full; a bank shares one base"):
        bank.put("tuned")


def test_families_with_other_names(model) -> None:
    neox = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SHAPE)).eval()
    adapters = attach(decoder=neox)
    adapters.add_adapter("last", PartsConfig(modalities=TEXT, tuned=("decoder.gpt_neox.layers.1",)))
    names = [name for name, _ in neox.gpt_neox.layers[1].named_parameters()]
    want = {f"tuned.decoder.gpt_neox.layers.1.{name}" for name in names}
    assert adapters.trainable_parameters().keys() == want
