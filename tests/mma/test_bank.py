"""A bank of adapters: every sample of a batch is answered by its own, as if it were alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.packing import collate
from data.pictures import slot_counter
from data.sample import Sample, Tokens
from data.template import make_template
from mma import AdapterError
from mma.bank import AdapterBank
from models.build import System
from models.generate import Sampling, generate
from tests.mma.banks import (
    ANSWERED_BY,
    LIKE,
    NAMES,
    SAMPLES,
    alone,
    buffers_of,
    mixed,
    with_bank,
    write_adapters,
)
from tests.mma.conftest import picture
from tests.mma.test_adapters import config, logits, shake


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """A folder of every adapter; do not write there."""
    return write_adapters(tiny_base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def system(tiny_system, folders) -> System:
    """The tiny system with all 8 adapters in a bank with a slot to spare."""
    return with_bank(tiny_system(), folders)


def test_a_mixed_batch_equals_single_runs(system, tiny_system, folders):
    together = logits(system.model, mixed(SAMPLES, ANSWERED_BY)).split(3)
    lone = tiny_system().model
    bare = [alone(lone, folders, None, one) for one in SAMPLES]
    assert {name for name, one in zip(ANSWERED_BY, SAMPLES, strict=True) if one.slots} == {*ANSWERED_BY}
    for got, name, one, base in zip(together, ANSWERED_BY, SAMPLES, bare, strict=True):
        want = alone(lone, folders, name, one)
        assert (got - want).abs().max() < 1e-5, (name, one.sample_id)
        assert name is None or (want - base).abs().max() > 0.1, "the adapters differ from the base"


def test_the_order_of_samples_makes_no_difference(system):
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3)).tolist()
    straight = logits(system.model, mixed(SAMPLES, ANSWERED_BY)).unflatten(0, (32, 3))
    names = [ANSWERED_BY[i] for i in order]
    shuffled = logits(system.model, mixed([SAMPLES[i] for i in order], names)).unflatten(0, (32, 3))
    assert (shuffled - straight[order]).abs().max() < 1e-5


def test_a_batch_without_names_is_the_active_adapters(system, tiny_system, batch):
    want = logits(tiny_system().model, batch)
    assert torch.equal(logits(system.model, batch), want)
    bare = replace(batch, adapters=(None, None))
    with system.model.adapters.disable_adapter():
        want = logits(system.model, batch)
    assert torch.equal(logits(system.model, bare), want)


def test_without_an_active_adapter_the_bank_answers(system):
    names = [name if name != "default" else None for name in ANSWERED_BY]
    want = logits(system.model, mixed(SAMPLES, names))
    with system.model.adapters.disable_adapter():
        assert torch.equal(logits(system.model, mixed(SAMPLES, names)), want)
        with pytest.raises(AdapterError, match="none named 'default' in the bank; resident are"):
            logits(system.model, mixed(SAMPLES, ANSWERED_BY))


def prompts(system: System, count: int) -> list[Tokens]:
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    made = [
        Sample(f"p{i}", f"Question: {'how ' * i}warm is {i}?\nResponse:", "", (Path(f"{i}.png"),))
        for i in range(count)
    ]
    made = [one if i % 2 else replace(one, images=()) for i, one in enumerate(made)]
    return [template.tokens(one, response="") for one in made]


def test_generated_answers_equal_single_ones(system, tiny_system, folders):
    asked = prompts(system, 20)
    names = [(*NAMES, "default", None)[(i + i // 10) % 10] for i in range(20)]  # with and without a picture
    sampling = Sampling(max_new_tokens=12, stop=("a",))
    together = generate(system, mixed(asked, names), sampling)
    lone = tiny_system()
    adapters = lone.model.adapters
    singly = []
    for one, name in zip(asked, names, strict=True):
        if name not in (None, "default"):
            adapters.load_adapter(folders[name], name)
        else:
            adapters.set_adapter("default")
        one_batch = collate([one], picture)
        if name is None:
            with adapters.disable_adapter():
                singly += generate(lone, one_batch, sampling)
        else:
            singly += generate(lone, one_batch, sampling)
        if name in adapters.names and name != "default":
            adapters.delete_adapter(name)
    assert together == singly
    assert len({len(answer) for answer in together}) > 5, "rows are dropped at different times"


def test_a_freed_slot_keeps_nothing(system, tiny_system, folders):
    bank = system.model.adapters.bank
    fresh = AdapterBank(tiny_system().model.adapters, 9, LIKE)
    order = NAMES[1:] + NAMES[:1]  # the slot of the widest comes to the narrowest, and so on
    for name in NAMES:
        bank.remove(name)
    assert not bank.names
    assert all(not tensor.any() for tensor in buffers_of(bank).values())
    for name in order:
        bank.load(folders[name], name)
        fresh.load(folders[name], name)
    a, b = buffers_of(bank), buffers_of(fresh)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    names = [name if name != "default" else None for name in ANSWERED_BY]
    first, second = (logits(each.adapters.model, mixed(SAMPLES, names)) for each in (bank, fresh))
    assert torch.equal(first, second)


def test_a_slot_that_changes_hands_answers_by_the_new_adapter(system, tiny_system, folders):
    # The very same slots and modalities are asked for again: what was gathered for the first must not stay.
    bank, one = system.model.adapters.bank, SAMPLES[1]
    slot = bank._slot["token"]
    first = logits(system.model, mixed([one], ["token"]))
    bank.remove("token")
    bank.load(folders["wide"], "token")
    assert bank._slot["token"] == slot
    second = logits(system.model, mixed([one], ["token"]))
    assert (second - alone(tiny_system().model, folders, "wide", one)).abs().max() < 1e-5
    assert (second - first).abs().max() > 0.1


def test_put_replaces_what_is_resident(system):
    adapters, bank, one = system.model.adapters, system.model.adapters.bank, SAMPLES[1]
    adapters.add_adapter("held", config())
    shake(adapters, 20)
    bank.put("held")
    adapters.set_adapter("default")
    first = logits(system.model, mixed([one], ["held"]))
    adapters.set_adapter("held")
    shake(adapters, 21)
    live = logits(system.model, mixed([one], ["held"]))
    adapters.set_adapter("default")
    assert torch.equal(logits(system.model, mixed([one], ["held"])), first), "until it is put again"
    bank.put("held")
    assert len(bank.names) == 9
    assert (logits(system.model, mixed([one], ["held"])) - live).abs().max() < 1e-5


def test_an_adapter_that_overflows_spoils_its_own_samples_only(system):
    adapters, bank = system.model.adapters, system.model.adapters.bank
    names = [name if name != "default" else None for name in ANSWERED_BY]
    want = logits(system.model, mixed(SAMPLES, names)).unflatten(0, (32, 3))
    bank.remove("wide")
    adapters.add_adapter("wide", LIKE)
    with torch.no_grad():
        for key, parameter in adapters.trainable_parameters().items():
            if key.startswith("tower."):
                parameter.fill_(3e38)
    bank.put("wide")
    adapters.set_adapter("default")
    adapters.delete_adapter("wide")
    got = logits(system.model, mixed(SAMPLES, names)).unflatten(0, (32, 3))
    others = torch.tensor([name != "wide" for name in names])
    seen = torch.tensor([bool(one.slots) for one in SAMPLES])
    assert torch.equal(got[others], want[others])
    assert not got[~others & seen].isfinite().any()


def test_close_gives_the_model_back(tiny_system, folders, batch):
    model = tiny_system(tower="none").model
    adapters = model.adapters
    modules, parameters = list(model.named_modules()), dict(model.named_parameters())
    state, want = list(model.state_dict()), logits(model, batch)
    bank = AdapterBank(adapters, 9, LIKE)
    for name in NAMES:
        bank.load(folders[name], name)
    assert not [key for key in model.state_dict() if "stack" in key], "what is resident is not the model's"
    logits(model, replace(batch, adapters=("token", "wide")))
    bank.close()
    bank.close()
    assert list(model.named_modules()) == modules
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in after)
    assert torch.equal(logits(model, batch), want)
    assert list(model.state_dict()) == state
    assert adapters.bank is None and not bank.names
    with pytest.raises(AdapterError, match="no bank is open"):
        logits(model, replace(batch, adapters=("token", None)))
    for ask in (lambda: bank.put("default"), lambda: bank.load(folders["token"], "token")):
        with pytest.raises(AdapterError, match="this bank is closed; open a new one"):
            ask()
    again = AdapterBank(adapters, 1)
    bank.close()
    assert adapters.bank is again


def test_close_without_adapters_leaves_the_bare_base(tiny_system):
    model = tiny_system().model
    model.adapters.delete_adapter("default")
    modules = list(model.named_modules())
    bank = AdapterBank(model.adapters, 2, LIKE)
    assert list(model.named_modules()) != modules
    bank.close()
    assert list(model.named_modules()) == modules


def test_the_status_tells_of_the_bank(system):
    status = system.model.adapters.get_model_status()
    assert (status.bank_slots, status.bank_free) == (9, 1)
    assert [line.name for line in status.adapters if line.state == "in the bank"] == [*NAMES]
    assert "bank: 8 of 9 slots taken" in str(status)
    resident = {line.name: line for line in status.adapters}
    assert resident["blind"].parameters < resident["wide"].parameters
    assert resident["blind"].bytes < resident["large"].bytes, "a slot is a slot, projectors differ"
