"""Adapters on models made elsewhere: every family that is promised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mma import AdapterError, BottleneckConfig, LoraConfig, MMAConfig, Site, attach
from mma.bank import AdapterBank
from tests.mma.foreign import DECODERS, TOWERS, build, features, logits

CONFIG = MMAConfig(dropout=0.0, temperature=1.0, placement="both")
IDS = torch.randint(0, 100, (2, 5), generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ROWS = ["text", "image"]


def shake(adapters, seed: int = 1) -> None:
    """Random values in every trained tensor of the active adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def answers(adapters, decoder, rows=ROWS, ids=IDS, **named):
    with adapters.carrying(rows, **named), torch.no_grad():
        return logits(decoder, ids)


@pytest.fixture(params=DECODERS)
def decoder(request):
    return build(DECODERS[request.param])


@pytest.fixture(params=TOWERS)
def tower(request):
    return build(TOWERS[request.param])


@pytest.mark.parametrize("config", [CONFIG, BottleneckConfig(placement="both"), LoraConfig()])
def test_identity_at_start_and_when_disabled(decoder, config):
    with torch.no_grad():
        bare = logits(decoder, IDS)
    names = set(decoder.state_dict())
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", config)
    assert torch.equal(answers(adapters, decoder), bare)
    shake(adapters)
    assert not torch.allclose(answers(adapters, decoder), bare)
    with adapters.disable_adapter(), torch.no_grad():
        assert torch.equal(logits(decoder, IDS), bare)
    adapters.delete_adapter("default")
    assert set(decoder.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(logits(decoder, IDS), bare)


@pytest.mark.parametrize("config", [CONFIG, LoraConfig(dropout=0.0)])
def test_only_declared_tensors_get_gradients(decoder, config):
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", config)
    shake(adapters)
    answers(adapters, decoder)  # what an evaluation keeps must not stand in the way
    decoder.train()
    with adapters.carrying(ROWS):
        logits(decoder, IDS).square().sum().backward()
    trained = adapters.trainable_parameters()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    declared = {id(parameter) for parameter in trained.values()}
    assert all(p.grad is None for p in adapters.model.parameters() if id(p) not in declared)


def test_routes_are_independent_of_the_text(decoder):
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", CONFIG)
    shake(adapters)
    routes = adapters.routes()
    assert set(routes) == {site.path for site in adapters.sites if site.kind == "norm"}
    seen = []
    for ids in (IDS, IDS.flip(1), IDS[:, :2]):
        with adapters.carrying(ROWS):
            logits(decoder, ids)
            seen.append([module.seen.clone() for module in adapters.places.routed("default")])
    for one in seen:
        for weights, by_modality in zip(one, routes.values(), strict=True):
            torch.testing.assert_close(weights, torch.tensor(list(by_modality.values())))


def test_a_row_does_not_depend_on_its_company(decoder):
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", CONFIG)
    shake(adapters)
    both = answers(adapters, decoder)
    with adapters.carrying(ROWS):
        trained = logits(decoder, IDS)
    torch.testing.assert_close(trained.detach(), both, atol=1e-5, rtol=1e-5)
    for row, modality in enumerate(ROWS):
        alone = answers(adapters, decoder, modality, IDS[row : row + 1])
        torch.testing.assert_close(alone[0], both[row], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answers(adapters, decoder, "image"), answers(adapters, decoder, "text"))


@pytest.mark.parametrize("config", [CONFIG, BottleneckConfig(placement="mlp"), LoraConfig(placement="attn")])
def test_save_and_load(decoder, config, tmp_path):
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", config)
    shake(adapters)
    wanted = answers(adapters, decoder)
    adapters.save_pretrained(tmp_path / "adapter")
    adapters.load_adapter(tmp_path / "adapter", "again")
    assert torch.equal(answers(adapters, decoder), wanted)
    with pytest.raises(AdapterError, match="has adapters already; go on with the Adapters it has"):
        attach(decoder=decoder)
    for name in adapters.names:
        adapters.delete_adapter(name)
    with torch.no_grad():
        next(iter(adapters.base.values()))[0] += 1
    other = attach(decoder=decoder)  # the base has changed
    with pytest.raises(AdapterError, match="was made for another decoder"):
        other.load_adapter(tmp_path / "adapter")


def test_merged_equals_unmerged(decoder):
    with torch.no_grad():
        bare = logits(decoder, IDS)
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", CONFIG)
    shake(adapters)
    wanted = answers(adapters, decoder)
    adapters.merge_adapter()
    torch.testing.assert_close(answers(adapters, decoder), wanted, atol=1e-5, rtol=1e-5)
    for row, modality in enumerate(ROWS):
        adapters.merge_adapter(modality)
        with torch.no_grad():  # plain: nobody needs to be told anything
            torch.testing.assert_close(logits(decoder, IDS)[row], wanted[row], atol=1e-5, rtol=1e-5)
    adapters.unmerge_adapter()
    assert torch.equal(answers(adapters, decoder), wanted)
    with adapters.disable_adapter(), torch.no_grad():
        assert torch.equal(logits(decoder, IDS), bare)
    assert adapters.merge_and_unload("image")["decoder"] is decoder
    with torch.no_grad():
        torch.testing.assert_close(logits(decoder, IDS)[1], wanted[1], atol=1e-5, rtol=1e-5)


def test_a_bank_answers_every_row_by_its_own(decoder):
    adapters = attach(decoder=decoder)
    ids = IDS.repeat(2, 1)
    rows, wanted = [*ROWS, *ROWS], []
    for seed, name in enumerate(("a", "b")):
        adapters.add_adapter(name, CONFIG)
        shake(adapters, seed)
        wanted.append(answers(adapters, decoder, rows, ids))
    with adapters.disable_adapter(), torch.no_grad():
        bare = logits(decoder, ids)
    bank = AdapterBank(adapters, slots=2)
    bank.put("a")
    got = answers(adapters, decoder, rows, ids, answered_by=["a", "b", None, "a"])
    torch.testing.assert_close(got[0], wanted[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], wanted[1][1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[2], bare[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[3], wanted[0][3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["token", "modality"])
@pytest.mark.parametrize("placement", ["attn", "both"])
def test_towers(tower, rule, placement, tmp_path):
    with torch.no_grad():
        bare = features(tower, PICTURES)
    adapters = attach(tower=tower, picture=PICTURES[:1])
    adapters.add_adapter("default", MMAConfig(dropout=0.0, tower=rule, tower_placement=placement))
    with torch.no_grad():
        assert torch.equal(features(tower, PICTURES), bare)
    shake(adapters)
    features(tower, PICTURES).square().sum().backward()
    for name, parameter in adapters.trainable_parameters().items():
        assert parameter.grad is not None, name
    with torch.no_grad():
        both = features(tower, PICTURES)
        assert not torch.allclose(both, bare)
        for row in range(2):
            alone = features(tower, PICTURES[row : row + 1])
            torch.testing.assert_close(alone[0], both[row], atol=1e-5, rtol=1e-5)
    adapters.save_pretrained(tmp_path / "adapter")
    adapters.load_adapter(tmp_path / "adapter", "again")
    with torch.no_grad():
        assert torch.equal(features(tower, PICTURES), both)
    report = adapters.merge_adapter()
    assert bool(report.sites_left) == (rule == "token")
    with torch.no_grad():
        torch.testing.assert_close(features(tower, PICTURES), both, atol=1e-5, rtol=1e-4)


def test_decoder_and_tower_together_with_a_projector(tmp_path):
    """One adapter over both, stored in one folder with the user's own part."""
    llama, clip = build(DECODERS["LLaMA"]), build(TOWERS["CLIP"])
    adapters = attach(decoder=llama, tower=clip, parts=lambda config: {"projector": nn.Linear(32, 32)})
    adapters.add_adapter("default", CONFIG)
    shake(adapters)

    def run():
        with torch.no_grad():
            prefix = adapters.part("projector")(clip(PICTURES).last_hidden_state)
            embeddings = torch.cat([prefix, llama.get_input_embeddings()(IDS)], dim=1)
            with adapters.carrying("image"):
                return llama(inputs_embeds=embeddings).logits

    wanted = run()
    adapters.save_pretrained(tmp_path / "adapter")
    adapters.load_adapter(tmp_path / "adapter", "again")
    assert torch.equal(run(), wanted)
    assert {"projector.weight", "modality.weight"} <= adapters.trainable_parameters().keys()


def test_what_generate_of_transformers_says_is_what_a_loop_says():
    decoder = build(DECODERS["LLaMA"])
    adapters = attach(decoder=decoder)
    adapters.add_adapter("default", CONFIG)
    shake(adapters)
    ids = IDS
    for _ in range(4):
        ids = torch.cat([ids, answers(adapters, decoder, ROWS, ids)[:, -1:].argmax(-1)], dim=1)
    with adapters.carrying(ROWS), torch.no_grad():
        got = decoder.generate(IDS, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(got, ids)


def test_the_mode_of_a_model_is_left_alone():
    """Also where parts of it are in another mode than the whole."""
    decoder = build(DECODERS["OPT"])
    decoder.train()
    decoder.model.decoder.layers[0].eval()
    modes = [module.training for module in decoder.modules()]
    adapters = attach(decoder=decoder)
    assert [module.training for module in decoder.modules()] == modes
    adapters.add_adapter("default", CONFIG)
    adapters.routes()
    assert decoder.training
    assert not decoder.model.decoder.layers[0].training
    wrapper = decoder.model.decoder.layers[0].self_attn_layer_norm
    assert not wrapper.adapters["default"].training


def test_sites_can_be_named():
    block = nn.ModuleDict({"norm": nn.LayerNorm(8), "out": nn.Linear(8, 8)})
    site = Site("tower.norm", 8, "tower", "mlp", 0, ("tower.out",))
    adapters = attach(tower=block, sites=[site])
    adapters.add_adapter("default", MMAConfig(tower="modality", tower_placement="mlp"))
    assert [line.name for line in adapters.report()] == ["tower.norm"]


def test_what_cannot_be_attached_to_is_said():
    with pytest.raises(AdapterError, match="nothing to attach to; pass decoder=, tower= or both"):
        attach()
    with pytest.raises(AdapterError, match="Linear does not show its input embeddings; name them yourself"):
        attach(decoder=nn.Linear(2, 2))
    with pytest.raises(AdapterError, match="Conv2d does not tell the size of its pictures; pass picture="):
        attach(tower=nn.Conv2d(3, 3, 1))
    with pytest.raises(AdapterError, match=r"Linear cannot be run with one picture \(RuntimeError: .*attach"):
        attach(tower=nn.Linear(2, 2), picture=PICTURES)
    with pytest.raises(AdapterError, match="Conv2d has no repeated block with a norm .*name them yourself"):
        attach(tower=nn.Conv2d(3, 3, 1), picture=PICTURES)
    with pytest.raises(AdapterError, match=r"no module tower\.norm; paths begin with tower"):
        attach(tower=nn.Conv2d(3, 3, 1), sites=[Site("tower.norm", 8, "tower", "attn")])


def test_rows_must_carry_what_the_adapter_knows():
    adapters = attach(decoder=build(DECODERS["LLaMA"]))
    adapters.add_adapter("default", CONFIG)
    with (
        pytest.raises(AdapterError, match="no modality 'video'; choose text, image"),
        adapters.carrying("video"),
    ):
        pass
    with (
        pytest.raises(AdapterError, match="no bank is open on this model"),
        adapters.carrying("text", answered_by=["a"]),
    ):
        pass
    AdapterBank(adapters, slots=1)
    with (
        pytest.raises(AdapterError, match="2 rows carry something, but 1 adapters are named"),
        adapters.carrying(ROWS, answered_by=["default"]),
    ):
        pass
    with pytest.raises(RuntimeError, match="without saying what its tokens carry"):
        logits(adapters.model["decoder"], IDS)


def test_the_users_own_parts_are_frozen_and_counted_with_their_adapter():
    adapters = attach(decoder=build(DECODERS["LLaMA"]), parts=lambda config: {"projector": nn.Linear(3, 32)})
    adapters.add_adapter("a", CONFIG)
    adapters.add_adapter("b", CONFIG)
    assert all(p.requires_grad for p in adapters.trainable_parameters("b").values())
    assert not any(p.requires_grad for p in adapters.trainable_parameters("a").values())
    status = adapters.get_model_status()
    assert status.trainable_params == sum(p.numel() for p in adapters.trainable_parameters("b").values())
    assert status.total_params == sum(p.numel() for p in adapters.base.values()) + 2 * status.trainable_params
