"""Adapters in towers of either make: at the norms that run, changing nothing before they have learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from data.packing import collate
from data.pictures import Prepared
from data.sample import Tokens
from mma import AdapterError, MMAConfig, PartsConfig
from models.build import BaseSettings, build_new, load, outline
from models.errors import ModelError
from tests.conftest import randomise

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MLP = {"projector": "mlp2x_gelu", "dropout": 0.0, "temperature": 1.0}


@pytest.fixture(scope="module", params=["timm's", "open_clip's"])
def base(request, tiny_base, tmp_path_factory) -> BaseSettings:
    """The tiny decoder, and patches of a random tower of four blocks; of SigLIP for timm's."""
    settings = replace(tiny_base, tower_features="patches")
    if request.param == "open_clip's":
        return settings
    folder = tmp_path_factory.mktemp("siglip")
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SHAPE))
    randomise(model, 3)
    model.save_pretrained(folder)
    return replace(settings, tower=str(folder))


def batch(count: int = 2):
    """Samples that carry a picture of four patches."""
    generator = torch.Generator().manual_seed(0)
    seen = []
    for index in range(count):
        ids = (5, 0, 0, 0, 0, 7 + index, 9, 11)
        supervised = (False,) * 6 + (True,) * 2
        paths = (Path(f"{index}.png"),)
        seen.append(Tokens(str(index), ids, supervised, (1, 2, 3, 4), "image", paths, (4,)))
    return collate(seen, lambda _: Prepared(torch.randn(1, 3, 16, 16, generator=generator), (16, 16)))


def filled(system):
    """The system with random values in all that is trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return system


def tower_sites(model) -> list[str]:
    return [site.path for site in model.adapters.sites if site.part == "tower"]


@pytest.mark.parametrize("layer", [-1, -2, -4])
def test_there_are_sites_where_blocks_run(base, layer):
    model = build_new(replace(base, tower_layer=layer), MMAConfig(**MLP, tower_placement="both")).model
    prefix = f"tower.{model.tower.block_prefix}"
    expected = [
        f"{prefix}.{block}.{norm}" for block in range(4 + layer + 1) for _, norm, _ in model.tower.norms
    ]
    assert tower_sites(model) == expected
    model.train()
    model.loss(batch()).backward()
    for name, parameter in model.adapters.trainable_parameters().items():
        assert parameter.grad is not None, name


def test_lavin_adapts_every_block():
    """Its last class token is that of the last block."""
    settings = BaseSettings(decoder="none", architecture="llama-7b", tower="ViT-L-14")
    sites = tower_sites(outline(settings))
    assert len(sites) == 2 * 24
    assert len(tower_sites(outline(replace(settings, tower_every=7)))) == 2 * 21


@pytest.mark.parametrize("rule", ["token", "modality", "none"])
def test_a_fresh_adapter_changes_nothing(base, rule):
    """Bit for bit."""
    model = build_new(base, MMAConfig(**MLP, tower=rule, tower_placement="both")).model
    pictures = batch().pictures
    with torch.no_grad():
        fresh = model.tower(pictures)
        with model.adapters.disable_adapter():
            assert torch.equal(model.tower(pictures), fresh)


@pytest.mark.parametrize("rule", ["token", "modality"])
def test_adapters_act_and_learn(base, rule):
    model = filled(build_new(base, MMAConfig(**MLP, tower=rule, tower_placement="both"))).model
    pictures, wanted = batch().pictures, torch.randn(2, 4, 32)
    with torch.no_grad():
        adapted = model.tower(pictures)
        with model.adapters.disable_adapter():
            assert not torch.allclose(model.tower(pictures), adapted)
    inside = {n: p for n, p in model.adapters.trainable_parameters().items() if "tower" in n}
    losses = []
    for _ in range(2):
        loss = (model.tower(pictures) - wanted).square().mean()
        losses.append(loss.item())
        for parameter, gradient in zip(
            inside.values(), torch.autograd.grad(loss, list(inside.values())), strict=True
        ):
            assert gradient.abs().max() > 0
            parameter.data -= 0.05 * gradient
    assert losses[1] < losses[0]


def test_a_picture_does_not_depend_on_its_company(base):
    tower = filled(build_new(base, MMAConfig(**MLP))).model.tower
    pictures = batch(4).pictures
    with torch.no_grad():
        alone = torch.cat([tower(picture[None]) for picture in pictures])
        torch.testing.assert_close(tower(pictures), alone, atol=1e-5, rtol=1e-5)


def test_one_vector_per_site_can_be_merged(base):
    model = filled(build_new(base, MMAConfig(**MLP, tower="modality", tower_placement="both"))).model
    packed = batch()
    with torch.no_grad():
        before, features = model(packed), model.tower(packed.pictures)
        model.adapters.merge_adapter("image")
        assert all("adapter" not in name for name, _ in model.tower.named_modules())
        torch.testing.assert_close(model.tower(packed.pictures), features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(packed), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tower_of_half_precision(base, dtype):
    """Its features are those of full precision, as far as the type goes; adapters stay in fp32."""
    model = filled(build_new(base, MMAConfig(**MLP))).model
    pictures = batch().pictures
    with torch.no_grad(), model.adapters.disable_adapter():
        full = model.tower(pictures)
        model.tower.to(dtype)
        half = model.tower(pictures.to(dtype))
    assert (half.dtype, model.tower.dtype) == (dtype, dtype)
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.05)


def test_all_in_bf16(base):
    model = filled(build_new(replace(base, precision="bf16"), MMAConfig(**MLP))).model
    assert model.tower.dtype == torch.bfloat16
    model.train()
    loss = model.loss(batch())
    loss.backward()
    assert loss.isfinite()
    trained = model.adapters.trainable_parameters().values()
    assert all(p.grad is not None and p.grad.dtype == p.dtype == torch.float32 for p in trained)


def test_a_tower_moves_to_a_device(base):
    tower = build_new(base, PartsConfig(projector="linear")).model.tower.to("meta")
    assert {p.device.type for p in (*tower.parameters(), *tower.buffers())} == {"meta"}
    assert tower(torch.empty(3, 3, 16, 16, device="meta")).shape == (3, 4, 32)


@pytest.mark.parametrize(("layer", "count", "blocks"), [(-1, 2, {2, 3}), (-2, 2, {2}), (-2, 4, {0, 1, 2})])
def test_the_last_blocks_are_tuned_as_far_as_they_run(base, layer, count, blocks):
    config = PartsConfig(projector="linear", tuned=(f"tower.last{count}",))
    model = build_new(replace(base, tower_layer=layer), config).model
    model.train()
    model.loss(batch()).backward()
    trained = model.adapters.trainable_parameters()
    assert all(parameter.grad is not None for parameter in trained.values())
    prefix = f"tower.{model.tower.block_prefix}."
    names = [name.split(prefix)[1] for name in trained if prefix in name]
    assert {int(name.split(".")[0]) for name in names} == blocks


def test_a_block_that_never_runs_is_not_tuned(base):
    config = PartsConfig(projector="linear", tuned=("tower.last1",))
    with pytest.raises(
        AdapterError, match=r"nothing is read behind block 2 of 4; name at least tower\.last2"
    ):
        build_new(base, config)


def test_an_adapter_knows_the_layer_and_the_gelu_it_saw(base, tmp_path):
    system = build_new(replace(base, tower_gelu="tanh"), PartsConfig(projector="linear"))
    system.model.adapters.save_pretrained(tmp_path / "adapter")
    again = load(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again.model(batch()), system.model(batch()))
    for name, value in (("tower_gelu", "exact"), ("tower_layer", -1), ("pictures", "pad")):
        with pytest.raises(ModelError, match=rf"was trained with {name} .*; set base\.{name} to"):
            load(tmp_path / "adapter", replace(system.settings, **{name: value}))
