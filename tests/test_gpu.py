"""What must hold on a CUDA device (`pytest -m gpu`): the same numbers as on the CPU, and bf16 that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.quantised import measure
from data.packing import collate
from data.pictures import Prepared, slot_counter
from data.sample import Sample
from data.template import make_template
from mma import MMAConfig
from models.build import BaseSettings, System, build_new, current_digests
from models.generate import Sampling, generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]


def system_on(base: BaseSettings, device: str, precision: str = "fp32") -> System:
    system = build_new(replace(base, precision=precision), MMAConfig(dropout=0.0, projector_hidden=8), device)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return system


def batch_for(system: System, response: str | None = None):
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    samples = [
        Sample(f"s{i}", f"Question: {i}?\nResponse:", "The answer is A.", images)
        for i, images in enumerate(((Path("a.png"),), (), (Path("b.png"),)))
    ]
    tokens = [template.tokens(sample, response=response) for sample in samples]
    picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return collate(tokens, lambda _: Prepared(picture, (16, 16))).to(system.model.device)


def test_logits_and_gradients_equal_the_cpu(tiny_base):
    here, there = system_on(tiny_base, "cpu"), system_on(tiny_base, "cuda")
    for system in (here, there):
        system.model.loss(batch_for(system)).backward()
    torch.testing.assert_close(
        there.model(batch_for(there)).cpu(), here.model(batch_for(here)), atol=1e-4, rtol=1e-4
    )
    pairs = zip(
        here.model.adapters.trainable_parameters().values(),
        there.model.adapters.trainable_parameters().values(),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(b.grad.cpu(), a.grad, atol=1e-3, rtol=1e-3)


def test_greedy_answers_equal_the_cpu(tiny_base):
    texts = []
    for device in ("cpu", "cuda"):
        system = system_on(tiny_base, device)
        texts.append(generate(system, batch_for(system, response=""), Sampling(max_new_tokens=6)))
    assert texts[0] == texts[1]


def test_a_bf16_base_trains(tiny_base):
    system = system_on(tiny_base, "cuda", "bf16")
    trained = system.model.adapters.trainable_parameters().values()
    optimizer = torch.optim.AdamW(trained, lr=3e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = system.model.loss(batch_for(system))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_a_quantised_base_equals_the_cpu(tiny_base, kind):
    pytest.importorskip("bitsandbytes")
    base = replace(tiny_base, quantise=kind)
    here, there = system_on(base, "cpu"), system_on(base, "cuda")
    logits = [system.model(batch_for(system)).detach().cpu() for system in (here, there)]
    # A weight that lies between two steps may be rounded to either.
    assert ((logits[1] - logits[0]).norm() / logits[0].norm()) < 0.02
    assert current_digests(there.model) == {
        name: there.digests[name] for name in current_digests(there.model)
    }


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_a_quantised_base_trains_and_stays_as_it_is(tiny_base, kind):
    pytest.importorskip("bitsandbytes")
    system = system_on(replace(tiny_base, quantise=kind), "cuda", "bf16")
    before = current_digests(system.model)
    optimizer = torch.optim.AdamW(system.model.adapters.trainable_parameters().values(), lr=3e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = system.model.loss(batch_for(system))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert current_digests(system.model) == before
    assert len(generate(system, batch_for(system, response=""), Sampling(max_new_tokens=4))) == 3


@pytest.mark.parametrize("shape", ["llama-7b", "qwen1.5-7b"])
def test_seven_billion_parameters_train_in_four_bits(shape):
    pytest.importorskip("bitsandbytes")
    found = measure(False, shape, "nf4")[1]["kinds"]["nf4"]
    assert found["last_loss"] < found["first_loss"]
    assert found["decoder_mib"] < 0.5 * 13_000 and found["peak_mib"] < 13_000
