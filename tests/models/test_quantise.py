"""Quantised bases compute what their dequantised weights say, never lie whole in memory, and stay frozen."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assets.mini.documents import LETTERS, Writer
from assets.mini.pretrain_decoder import letter_accuracy
from data.packing import collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import AdapterError, LoraConfig, MMAConfig, PartsConfig
from mma.storage import describe
from models import quantise
from models.attention import PackedAttention
from models.build import BaseSettings, System, build_base, build_new, current_digests, load
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.export import write_hf
from models.generate import Sampling, generate
from models.quantise import Int8Linear, quantiser
from models.weights import load_decoder
from tests.conftest import randomise

KINDS = ("int8", "nf4")  # of which the weights alone are quantised
ALL = (*KINDS, "fp8")
ADAPTERS = (
    MMAConfig(dropout=0.0, temperature=1.0, projector_hidden=8),
    LoraConfig(r=4, projector_hidden=8),
)
BIASED = DecoderConfig(
    32, 2, 4, 4, 48, 60, attention_bias=True, mlp_bias=True, head_bias=True, gated=False, norm="layer",
    activation="gelu_tanh", parallel=True, rotary_dim=4, family="phi",
)  # fmt: skip


def batch(with_picture: bool = True):
    """A sample with a picture and one without."""
    seen = Tokens(
        "a", (5, 0, 0, 7, 9, 11), (False,) * 4 + (True,) * 2, (1, 2), "image", (Path("a.png"),), (2,)
    )
    read = Tokens("b", (5, 6, 8), (False, True, True), (), "text")
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = [seen, read] if with_picture else [read]
    return collate(samples, lambda _: Prepared(pixels, (16, 16)))


def weight_of(layer: nn.Module) -> torch.Tensor:
    """What a quantised layer's weight stands for, float32[O, C]."""
    if isinstance(layer, Int8Linear):
        return layer.weight.float() * layer.step[:, None]
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def widened(folder: Path, out: Path, kind: str) -> None:
    """Writes a decoder whose weights are those that the quantised one stands for."""
    quantised = load_decoder(folder, dtype=torch.float32, quantise=quantiser(kind, torch.float32))
    plain = Decoder(quantised.config)
    tensors = {name: x for name, x in quantised.state_dict().items() if name in plain.state_dict()}
    for name, module in quantised.blocks.named_modules():
        if isinstance(module, nn.Linear):
            tensors[f"blocks.{name}.weight"] = weight_of(module)
    plain.load_state_dict(tensors)
    write_hf(plain, out, torch.float32)
    for path in folder.glob("tokenizer.*"):
        (out / path.name).write_bytes(path.read_bytes())


@pytest.fixture(scope="module", params=KINDS)
def bases(request, tiny_base, tmp_path_factory) -> tuple[BaseSettings, BaseSettings]:
    """The tiny base quantised, and the full base that it stands for."""
    folder = tmp_path_factory.mktemp("wide")
    widened(Path(tiny_base.decoder), folder, request.param)
    return replace(tiny_base, quantise=request.param), replace(tiny_base, decoder=str(folder))


def tuned(base: BaseSettings, config) -> System:
    """A base with an adapter of random values."""
    system = build_new(base, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return system


@pytest.mark.parametrize("config", ADAPTERS, ids=["mma", "lora"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_and_gradients_are_those_of_the_dequantised_base(bases, config, training):
    ours, plain = (tuned(base, config).model.train(training) for base in bases)
    torch.testing.assert_close(ours(batch()), plain(batch()), atol=1e-4, rtol=1e-5)
    for model in (ours, plain):
        model.loss(batch()).backward()
    wanted = plain.adapters.trainable_parameters()
    for name, parameter in ours.adapters.trainable_parameters().items():
        assert parameter.grad is not None and parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-4, rtol=1e-4)
    assert all(p.grad is None for p in ours.adapters.base.values())


def test_cached_answers_are_those_of_the_dequantised_base(bases):
    ours, plain = (tuned(base, ADAPTERS[0]) for base in bases)
    sampling = Sampling(max_new_tokens=8)
    assert generate(ours, batch(), sampling) == generate(plain, batch(), sampling)


def test_a_sample_does_not_depend_on_its_batch_mates(bases):
    model = tuned(bases[0], ADAPTERS[0]).model
    with torch.no_grad():
        model.decoder.embed.weight.mul_(40.0)  # far beyond the 6 from where LLM.int8() counts outliers
        together, alone = model(batch()), model(batch(with_picture=False))
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-5)


class Wide(TorchDispatchMode):
    """The largest fp32 tensor that is made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.numbers = max(self.numbers, tensor.numel())
        return out


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_layer_in_bf16_makes_no_fp32_copy_and_keeps_nothing_of_its_input(kind):
    make, kept = quantiser(kind, torch.bfloat16), []
    layer = make(nn.Linear(64, 48, bias=False, device="meta"), torch.randn(48, 64).bfloat16())
    x = torch.randn(100, 64).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), Wide() as wide:
        layer(x).sum().backward()
    assert wide.numbers <= 100  # a scale of each token, or of each row
    assert {t.data_ptr() for t in kept} == {p.data_ptr() for p in layer.parameters()}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_layer_is_one_graph_to_the_compiler(kind):
    layer = quantiser(kind, torch.float32)(nn.Linear(32, 48, bias=False, device="meta"), torch.randn(48, 32))
    found = []
    for form in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        x = torch.linspace(-1, 1, 5 * 32).view(5, 32).requires_grad_()
        y = form(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_of_every_family_is_quantised(kind, tmp_path):
    decoder = Decoder(BIASED)
    randomise(decoder, 3)
    write_hf(decoder, tmp_path / "a", torch.float32)
    found = load_decoder(tmp_path / "a", dtype=torch.float32, quantise=quantiser(kind, torch.float32))
    linears = [module for module in found.blocks.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 * 6
    assert not any(layer.weight.is_floating_point() for layer in linears)
    kept = [name for name, p in decoder.named_parameters() if not name.startswith("blocks.") or p.ndim == 1]
    assert all(torch.equal(found.get_parameter(name), decoder.get_parameter(name)) for name in kept)
    x = torch.randn(3, 32)
    layer = found.blocks[1].mlp.up_proj
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight_of(layer), layer.bias))


def test_the_weights_are_rounded_as_the_papers_say():
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)).half().float()
    weight[5] = 0.0
    linear = nn.Linear(64, 48, bias=False, device="meta")
    eight = quantiser("int8", torch.float32)(linear, weight)
    step = weight.abs().amax(1) / 127
    torch.testing.assert_close(eight.step, step)
    rounded = weight_of(eight) - weight
    assert (rounded.abs() <= 0.501 * step[:, None]).all()
    four = quantiser("nf4", torch.float32)(linear, weight)
    assert four.weight.quant_state.nested and four.weight.numel() == weight.numel() // 2
    largest = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    wrong = (weight_of(four) - weight).reshape(-1, 64).abs() / largest.clamp(min=1e-9)
    assert wrong.max() < 0.1520  # half of NF4's widest gap (0.6962 to 1 below zero)


@pytest.mark.parametrize(("kind", "weights", "logits"), [("int8", 0.01, 0.05), ("nf4", 0.11, 0.5)])
def test_the_error_against_the_full_base(kind, weights, logits, tmp_path):
    config = DecoderConfig(128, 4, 4, 4, 344, 200)
    decoder = Decoder(config)
    randomise(decoder, 4)
    write_hf(decoder, tmp_path / "a", torch.float32)
    found = load_decoder(tmp_path / "a", dtype=torch.float32, quantise=quantiser(kind, torch.float32))
    full, short = decoder.blocks[0].mlp.up_proj.weight, weight_of(found.blocks[0].mlp.up_proj)
    assert 0.3 * weights < _error(short, full) < weights
    x, positions = torch.randn(20, 128), torch.arange(20)
    with torch.no_grad():
        a, b = (d.head(d(x, positions, PackedAttention((20,), x.device))) for d in (found, decoder))
    assert _error(a, b) < logits


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", ALL)
def test_a_base_never_lies_whole_in_its_full_size(kind, tmp_path):
    config = DecoderConfig(64, 4, 4, 4, 96, 16)
    write_hf(Decoder(config), tmp_path / "a", torch.bfloat16)
    largest = 64 * 96
    held: list[int] = []
    calls: list[nn.Linear] = []
    make = quantiser(kind, torch.bfloat16)
    gc.collect()
    # Tensors of other tests may still be there; kept here, so that no new one is taken for one of them.
    others = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    known = set(map(id, others))

    def watched(linear, weight):
        calls.append(linear)
        if len(calls) % 9 == 1:  # looking at every object takes long
            found = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and id(x) not in known)
            # Those of PyTorch's own tracing have no memory.
            tensors = [x for x in found if not x.is_meta and not isinstance(x, FakeTensor)]
            wide = {x.untyped_storage().data_ptr(): x.numel() for x in tensors if x.is_floating_point()}
            held.append(sum(wide.values()))
        return make(linear, weight)

    load_decoder(tmp_path / "a", dtype=torch.bfloat16, quantise=watched)
    beside = (
        2 * 16 * 64 + 17 * 64 + config.n_layers * (4 * 64 + 3 * 96)
    )  # embedding, head, norms, int8's steps
    assert len(calls) == 7 * config.n_layers and len(held) == 4
    assert max(held) - held[0] <= 2 * largest + beside
    assert max(held) - held[0] < 0.2 * 7 * config.n_layers * largest


@pytest.mark.parametrize("kind", ALL)
def test_the_base_stays_the_same_whatever_is_done_with_it(kind, tiny_base):
    base = replace(tiny_base, quantise=kind)
    system = tuned(base, ADAPTERS[0])
    digests = {name: system.digests[name] for name in ("base_digest", "tower_digest")}
    assert digests == current_digests(build_base(base).model)
    assert digests["base_digest"] != build_base(tiny_base).digests["base_digest"]
    generate(system, batch(), Sampling(max_new_tokens=3))
    model = system.model.train()
    optimizer = torch.optim.AdamW(model.adapters.trainable_parameters().values(), lr=1e-2)
    before = model.loss(batch()).item()
    for _ in range(5):
        optimizer.zero_grad()
        model.loss(batch()).backward()
        optimizer.step()
    assert model.loss(batch()).item() < before
    generate(system, batch(), Sampling(max_new_tokens=3))
    assert current_digests(model) == digests


@pytest.mark.parametrize("config", ADAPTERS, ids=["mma", "lora"])
def test_an_adapter_is_saved_and_loaded_on_its_quantised_base_only(bases, config, tiny_base, tmp_path):
    system = tuned(bases[0], config)
    system.model.adapters.save_pretrained(tmp_path / "a")
    assert describe(tmp_path / "a")["base"]["quantise"] == bases[0].quantise
    again = load(tmp_path / "a").model
    assert torch.equal(again(batch()), system.model(batch()))
    with pytest.raises(AdapterError, match="base_digest|another decoder|other base|another base"):
        load(tmp_path / "a", tiny_base)


def test_it_cannot_be_merged_exported_or_tuned_in_full(bases, tmp_path):
    adapters = tuned(bases[0], ADAPTERS[0]).model.adapters
    with pytest.raises(
        AdapterError, match=r"q_proj is quantised .* leave it unmerged, or load the base in fp32 or bf16"
    ):
        adapters.merge_adapter("text")
    with pytest.raises(AdapterError, match="quantised"):
        adapters.export_peft_lora(tmp_path / "peft", "text")
    assert not (tmp_path / "peft").exists()
    with pytest.raises(
        AdapterError, match="is quantised and cannot be tuned in full; load the base unquantised"
    ):
        adapters.add_adapter("full", PartsConfig(projector_hidden=8, tuned=("decoder",)))
    adapters.add_adapter("norms", PartsConfig(projector_hidden=8, tuned=("decoder.norm", "tower")))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_answers_like_fp32(kind, tiny_base, caplog):
    wide, half = (
        tuned(replace(tiny_base, quantise=kind, precision=precision), ADAPTERS[0]).model
        for precision in ("fp32", "bf16")
    )
    assert half.decoder.embed.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert _error(half(batch()), wide(batch())) < 0.1
    half.loss(batch()).backward()
    assert all(p.grad.isfinite().all() for p in half.adapters.trainable_parameters().values())
    assert not caplog.records


def test_another_kind_is_refused(tiny_base):
    with pytest.raises(ModelError, match="base: quantise is 'nf5'; choose none, int8, nf4, fp8"):
        build_base(replace(tiny_base, quantise="nf5"))


def test_without_the_library_it_is_named(tiny_base, monkeypatch):
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="quantise nf4 needs bitsandbytes; pip install bitsandbytes"):
        build_base(replace(tiny_base, quantise="nf4"))
    build_base(tiny_base)


def test_the_embedded_base_still_knows_its_world():
    folder = Path("assets/mini/decoder")
    decoder = load_decoder(folder, dtype=torch.float32, quantise=quantiser("nf4", torch.float32))
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    writer = Writer(tokenizer, random.Random(999))
    letters = [tokenizer.encode(letter)[0] for letter in LETTERS]
    right, chance = letter_accuracy(decoder, lambda: writer.problem("evaluation", "hint"), letters)
    assert right > 0.97 and chance < 0.4  # the full base: 0.99


def test_it_is_not_exported(tiny_base, tmp_path):
    model = build_base(replace(tiny_base, quantise="nf4")).model
    with pytest.raises(ModelError, match="q_proj.weight is quantised; export from the unquantised base"):
        write_hf(model.decoder, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()
