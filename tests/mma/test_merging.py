"""What a merge refuses, and that a refused or failed one changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mma import AdapterError, BottleneckConfig, LoraConfig, MMAConfig
from mma import merge as mma_merge
from mma.bank import AdapterBank
from mma.sites import Wrapped
from models.build import build_base, current_digests
from tests.mma.oracles import close, logits, shake

MERGEABLE = {"tower": "modality", "temperature": 1.0, "dropout": 0.0}


@pytest.fixture
def model(tiny_base):
    """A model that holds three adapters, of which the last, `a`, is active and can be merged whole."""
    model = build_base(tiny_base).model
    for seed, (name, config) in enumerate(
        (("mma", MMAConfig()), ("lora", LoraConfig()), ("a", MMAConfig(**MERGEABLE)))
    ):
        model.adapters.add_adapter(name, config)
        shake(model.adapters, seed)
    return model


def everything(model: nn.Module) -> tuple[object, ...]:
    """What must not change when a merge is refused: modules, parameters (the very same), and what is said."""
    adapters = model.adapters
    parameters = {name: (id(p), p.detach().double().sum().item()) for name, p in model.named_parameters()}
    return dict(model.named_modules()), parameters, adapters.active, adapters.merged, adapters.config


def refused(model: nn.Module, match: str, call: Callable[[], object]) -> None:
    """The call is refused with this message, and leaves the model as it was."""
    before = everything(model)
    with pytest.raises(AdapterError, match=match):
        call()
    assert everything(model) == before


def test_the_same_merge_again_does_nothing(model):
    adapters = model.adapters
    adapters.unmerge_adapter()  # nor does unmerging what is not merged
    report = adapters.merge_adapter()
    before = everything(model)
    assert adapters.merge_adapter(["text", "image"], "a", [1]) is report
    assert everything(model) == before
    assert adapters.merge_adapter("image") is not report
    adapters.unmerge_adapter()
    adapters.unmerge_adapter()
    assert adapters.merged is None


def test_unknown_words_are_refused(model):
    adapters = model.adapters
    for match, arguments in (
        ("there is no modality 'audio'; choose text, image", {"modality": "audio"}),
        ("there is none named 'b'; held are", {"adapter_names": ["a", "b"]}),
        ("2 adapters and 1 weights", {"adapter_names": ["a", "mma"], "weights": [1.0]}),
        (r"the weights are \(nan,\); each must be a finite number", {"weights": [float("nan")]}),
        ("2 adapters and 2 weights; name each once", {"adapter_names": ["a", "a"]}),
        ("a, lora do not sit at the same sites, so their sum is no merge", {"adapter_names": ["a", "lora"]}),
        ("none is active; set one first, or name those", {"adapter_names": []}),
    ):
        for merged in (None, "text"):
            if merged is not None:
                adapters.merge_adapter(merged)
            refused(model, match, lambda given=arguments: adapters.merge_adapter(**given))
            adapters.unmerge_adapter()
    with adapters.disable_adapter(), pytest.raises(AdapterError, match="none is active"):
        adapters.merge_adapter()


def test_adapters_that_know_other_modalities_are_no_sum(model):
    model.adapters.add_adapter("b", LoraConfig(modalities=("text",)))
    refused(
        model,
        "lora, b know other modalities; merge them one at a time",
        lambda: model.adapters.merge_adapter(adapter_names=["lora", "b"]),
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BottleneckConfig(activation="relu"), "activation 'relu' is not linear, so it cannot be merged"),
        (BottleneckConfig(activation="gelu", tower_placement="none"), "activation 'gelu' is not linear"),
    ],
)
def test_what_is_not_linear_is_refused(model, config, reason):
    model.adapters.add_adapter("b", config)
    refused(model, reason, model.adapters.merge_adapter)


def test_the_old_tower_adapters_are_left_but_not_unloaded(model):
    adapters = model.adapters
    adapters.add_adapter("old", MMAConfig(tower="legacy_no_residual", dropout=0.0))
    shake(adapters)
    refused(
        model,
        r"replaces its input.*\(at tower\S*\.0\.ln_1; nothing was merged\)",
        lambda: adapters.merge_and_unload("text"),
    )
    report = adapters.merge_adapter("text")
    assert len(report.sites_left) == 4
    assert all("replaces its input" in reason for reason in report.sites_left.values())


def test_a_sum_cannot_leave_a_site_to_one_adapter(model):
    """What goes on unmerged acts once and in full, so no weight could be given to it."""
    adapters = model.adapters
    adapters.add_adapter("b", MMAConfig())
    shake(adapters)
    for arguments in ({"weights": [0.5]}, {"adapter_names": ["b", "mma"]}):
        refused(
            model,
            "routes every picture token by itself",
            lambda given=arguments: adapters.merge_adapter(**given),
        )


def test_an_adapter_with_token_routing_is_not_unloaded(model):
    model.adapters.set_adapter("mma")
    for merged in (False, True):
        if merged:
            model.adapters.merge_adapter("text")
        refused(
            model,
            "routes every picture token by itself, .* nothing was merged",
            lambda: model.adapters.merge_and_unload("text"),
        )


class _Int8Linear(nn.Linear):
    """What quantising libraries put in the place of a linear layer: the same class, other weights."""

    def __init__(self, base: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        self.weight = nn.Parameter((base.weight * 100).to(dtype), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) / 100)


class _Foreign(nn.Module):
    """A layer of another library that is no linear layer of PyTorch."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class _Packed(nn.Parameter):
    """A parameter with a type of its own, as of four bits."""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda linear: _Int8Linear(linear, torch.int8), r"q_proj is quantised \(Parameter of torch.int8\)"),
        (lambda linear: _Int8Linear(linear, torch.float8_e4m3fn), "quantised .*float8_e4m3fn"),
        (_Foreign, r"q_proj is a \S*_Foreign, no torch.nn.Linear, it cannot be merged"),
    ],
)
def test_a_quantised_base_is_refused(model, spoil, reason):
    attention = model.decoder.blocks[1].attn
    wrapper = attention.q_proj
    wrapper.base = spoil(wrapper.base)
    refused(model, reason, model.adapters.merge_adapter)
    refused(model, reason, lambda: model.adapters.merge_and_unload("text"))


def test_weights_of_their_own_type_shape_or_place_are_refused(model):
    linear = model.decoder.blocks[1].attn.q_proj.base
    weight = linear.weight.detach()
    for spoilt, reason in (
        (_Packed(weight, requires_grad=False), "q_proj is quantised \\(_Packed of torch.float32\\)"),
        (nn.Parameter(weight.reshape(-1, 1), requires_grad=False), "q_proj is quantised"),
        (nn.Parameter(weight.to("meta"), requires_grad=False), "q_proj is not in memory \\(offloaded\\)"),
    ):
        linear.weight = spoilt
        with pytest.raises(AdapterError, match=reason):
            model.adapters.merge_adapter()
        assert linear.weight is spoilt
        assert model.adapters.merged is None


@pytest.mark.parametrize("aside", [False, True])
def test_what_is_merged_is_not_changed_under_the_merge(model, tmp_path, aside):
    adapters = model.adapters
    adapters.save_pretrained(tmp_path / "a")
    adapters.merge_adapter()
    for what, call in (
        ("set an adapter", lambda: adapters.set_adapter("mma")),
        ("add an adapter", lambda: adapters.add_adapter("b", MMAConfig())),
        ("add an adapter", lambda: adapters.load_adapter(tmp_path / "a", "b")),
        ("delete an adapter", lambda: adapters.delete_adapter("mma")),
        ("swap an adapter", lambda: adapters.hotswap_adapter(tmp_path / "a", "a")),
        ("train an adapter", adapters.freeze),
    ):
        match = rf"cannot {what} while a is merged; call unmerge_adapter\(\) first"
        if aside:
            with adapters.disable_adapter(), pytest.raises(AdapterError, match=match):
                call()
        else:
            refused(model, match, call)


def test_what_is_switched_off_is_not_merged_or_unmerged(model):
    adapters = model.adapters
    report = adapters.merge_adapter()
    with adapters.disable_adapter():
        for call in (
            lambda: adapters.merge_adapter("text", "a"),
            adapters.unmerge_adapter,
        ):
            with pytest.raises(
                AdapterError, match="what is merged is switched off; leave the disable_adapter"
            ):
                call()
    assert adapters.merged.report is report


def test_no_merge_under_an_open_bank(model):
    bank = AdapterBank(model.adapters, 2)
    refused(model, "a bank is open on this model, .* close it first", model.adapters.merge_adapter)
    bank.close()
    model.adapters.merge_adapter()
    refused(model, "an adapter is merged on this model already", lambda: AdapterBank(model.adapters, 2))


@pytest.mark.parametrize("merged", [None, "image"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_merge_that_fails_half_way_is_undone(model, batch, monkeypatch, merged, step):
    adapters = model.adapters
    with adapters.disable_adapter():
        bare = logits(model, batch)
    wanted = logits(model, batch)
    if merged is not None:
        adapters.merge_adapter(merged)
    before = everything(model)
    steps = []

    def failing(model, path, module):
        steps.append(path)
        if len(steps) == unmerging + step + 1:
            raise MemoryError("no more")
        replace(model, path, module)

    unmerging = 0 if merged is None else len(adapters.merged.modules)
    replace = mma_merge.replace
    monkeypatch.setattr(mma_merge, "replace", failing)
    with pytest.raises(MemoryError, match="no more"):
        adapters.merge_adapter()
    assert len(steps) > unmerging + step
    monkeypatch.undo()
    assert everything(model) == before
    adapters.unmerge_adapter()
    assert torch.equal(logits(model, batch), wanted)
    with adapters.disable_adapter():
        assert torch.equal(logits(model, batch), bare)


def test_unmerging_follows_the_model_where_it_went(model, batch):
    """The mode and the type are those the model has now, not those it had when it was merged."""
    adapters = model.adapters
    wanted = logits(model, batch)
    adapters.merge_adapter()
    model.double().train()
    adapters.unmerge_adapter()
    assert all(p.dtype == torch.float64 for p in adapters.base.values())
    assert all(module.training for module in model.modules())
    model.float().eval()
    assert torch.equal(logits(model, batch), wanted)


@pytest.mark.parametrize("merged", [None, "image"])
def test_merged_for_good(model, batch, tiny_base, merged):
    """The plain model computes the same, holds no adapter, and says that it is another base."""
    adapters = model.adapters
    adapters.merge_adapter("text")
    wanted = {name: p.detach().clone() for name, p in model.decoder.named_parameters()}
    adapters.unmerge_adapter()
    if merged is not None:
        adapters.merge_adapter(merged)
    digests = dict(adapters.identity)
    assert adapters.merge_and_unload("text") is model
    found = dict(model.decoder.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not any(isinstance(module, Wrapped) for module in model.modules())
    assert (adapters.names, adapters.active, adapters.merged) == ((), None, None)
    assert adapters.base.keys() == dict(model.named_parameters()).keys()
    for name, there in current_digests(model).items():
        assert adapters.identity[name] == there != digests[name]
    assert adapters.identity["tokenizer_digest"] == digests["tokenizer_digest"]
    assert adapters.identity["base"] == f"{tiny_base.decoder} with a merged for text"
    adapters.add_adapter("new", LoraConfig())
    before = logits(model, batch)
    shake(adapters)
    assert not close(logits(model, batch), before, 0.01)


def test_a_modality_must_be_named_where_they_differ(model):
    refused(model, "name the one modality; choose text or image", model.adapters.merge_and_unload)
    refused(
        model,
        "there is no modality 'audio'; choose text or image",
        lambda: model.adapters.merge_and_unload("audio"),
    )
    model.adapters.set_adapter("lora")
    model.adapters.merge_and_unload()
    with pytest.raises(AdapterError, match="none is active"):
        model.adapters.merge_and_unload()
