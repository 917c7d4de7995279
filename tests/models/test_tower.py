"""The tower: what is read of it, and the refusal of everything that does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.build import build_base
from models.errors import ModelError
from models.tower import Features, Tower, load_tower_weights
from models.tower_files import CONFIG_FILE, WEIGHTS_FILE, find_tower_weights, read_spec
from models.tower_spec import TowerSpec, preprocess_settings

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.fixture
def folder(tiny_base, tmp_path) -> Path:
    """A copy of the tiny tower's folder, to be damaged."""
    shutil.copytree(tiny_base.tower, tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def spec(tiny_base) -> TowerSpec:
    return read_spec(tiny_base.tower)


def edit(folder: Path, change) -> None:
    """Changes the folder's configuration."""
    content = json.loads((folder / CONFIG_FILE).read_text())
    change(content)
    (folder / CONFIG_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_class_tokens_are_those_behind_every_nth_block(tiny_base, spec, every):
    tower = Tower(spec, Features(every=every)).eval()
    load_tower_weights(tower, Path(tiny_base.tower) / WEIGHTS_FILE)
    seen: dict[int, torch.Tensor] = {}
    for index, block in enumerate(tower.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out[:, 0]}))
    with torch.no_grad():
        features = tower(torch.randn(3, 3, 16, 16))
        kept = range(every - 1, 4, every)
        assert features.shape == (3, tower.tokens, tower.width) == (3, len(kept), 32)
        tower.visual(torch.randn(1, 3, 16, 16))  # the hooks see blocks wherever they are called from
        assert len(seen) == 4
        pictures = torch.randn(2, 3, 16, 16)
        features = tower(pictures)
    assert torch.equal(features, torch.stack([seen[index] for index in kept], dim=1))


@pytest.mark.parametrize("rule", ["token", "modality", "none", "legacy_no_residual"])
def test_features_do_not_depend_on_batch_mates(tiny_system, rule):
    """The public code routes all pictures of a batch by the first."""
    tower = tiny_system(tower=rule).model.tower
    pictures = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = tower(pictures)
        reversed_ = tower(pictures.flip(0)).flip(0)
        alone = torch.cat([tower(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, reversed_, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("rule", ["token", "modality", "legacy_no_residual"])
def test_adapters_act_in_the_tower(tiny_system, rule):
    model = tiny_system(tower=rule).model
    pictures = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        adapted = model.tower(pictures)
        with model.adapters.disable_adapter():
            assert not torch.allclose(model.tower(pictures), adapted)


def test_a_tag_brings_its_preprocessing_and_activation():
    assert preprocess_settings(read_spec("ViT-L-14", "openai")).mean == OPENAI_MEAN
    assert read_spec("ViT-L-14", "openai").model["quick_gelu"] is True
    laion = read_spec("ViT-L-14", "laion2b_s32b_b82k")
    assert preprocess_settings(laion).mean == (0.5, 0.5, 0.5)
    assert not laion.model.get("quick_gelu")
    assert preprocess_settings(read_spec("ViT-L-14")).mean == OPENAI_MEAN
    assert not read_spec("ViT-L-14").model.get("quick_gelu")
    assert read_spec("ViT-L-14-quickgelu").model["quick_gelu"] is True


def test_the_activation_is_the_configurations(spec):
    def activation(quick: bool) -> str:
        tower = Tower(TowerSpec({**spec.model, "quick_gelu": quick}, {}), Features())
        return type(tower.blocks[0].mlp.gelu).__name__

    assert (activation(True), activation(False)) == ("LeanQuickGELU", "GELU")


def test_a_file_and_a_folder_are_read_alike(folder, spec):
    assert read_spec(str(folder / CONFIG_FILE)) == read_spec(str(folder)) == spec
    bare = folder / "model.json"
    bare.write_text(json.dumps(spec.model))
    assert read_spec(str(bare)) == TowerSpec(spec.model, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"has no vision_cfg; it must be an open_clip model configuration"),
        ("{}", r"has no vision_cfg"),
        ('{"model_cfg": {"embed_dim": 8}}', r"has no vision_cfg"),
        ('{"vision_cfg": {}}', r"has no embed_dim"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, content, message):
    (tmp_path / "tower.json").write_text(content)
    with pytest.raises(ModelError, match=rf"tower\.json {message}"):
        read_spec(str(tmp_path / "tower.json"))


def test_a_name_nobody_knows(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*x\.json"):
        read_spec(str(tmp_path / "x.json"))
    with pytest.raises(ModelError, match=rf"has neither {CONFIG_FILE} nor config\.json"):
        read_spec(str(tmp_path))
    with pytest.raises(ModelError, match=r"'ViT-Q-99' is neither a folder .* nor a model open_clip knows"):
        read_spec("ViT-Q-99")


def test_pictures_of_another_size_than_the_tower_sees(folder):
    edit(folder, lambda content: content["preprocess_cfg"].update(size=[16, 24]))
    with pytest.raises(ModelError, match=r"size \[16, 24\], but the tower sees 16 pixels; correct one"):
        preprocess_settings(read_spec(str(folder)))
    edit(folder, lambda content: content["preprocess_cfg"].update(size=[16, 16]))
    assert preprocess_settings(read_spec(str(folder))).size == [16, 16]


def test_unknown_settings_are_named(folder):
    edit(folder, lambda content: content["preprocess_cfg"].update(contrast=2))
    with pytest.raises(ModelError, match=r"preprocess_cfg has an unknown setting \(.*'contrast'"):
        preprocess_settings(read_spec(str(folder)))
    edit(folder, lambda content: content["model_cfg"]["vision_cfg"].update(depth=2))
    with pytest.raises(ModelError, match=r"vision_cfg has an unknown setting \(.*'depth'"):
        Tower(read_spec(str(folder)), Features())


def test_what_is_no_vision_transformer():
    with pytest.raises(ModelError, match="only vision transformers can be read, not convolutional towers"):
        Tower(read_spec("RN50"), Features("patches"))
    for name, built in (("MobileCLIP2-S0", "fastvit_mci0"), ("PE-Core-T-16-384", "vit_pe")):
        with (
            torch.device("meta"),
            pytest.raises(ModelError, match=f"{built}.* is not built of the blocks"),
        ):
            Tower(read_spec(name), Features("patches"))


def test_a_tower_without_class_tokens():
    with torch.device("meta"):
        with pytest.raises(ModelError, match="no class token to read; set base.tower_features to patches"):
            Tower(read_spec("ViT-B-16-SigLIP"), Features())
        tower = Tower(read_spec("ViT-SO400M-14-SigLIP-384"), Features("patches"))
        assert tower(torch.empty(2, 3, 384, 384)).shape == (2, 729, 1152)  # none of them dropped
    assert (tower.grid, tower.tokens, tower.width) == ((27, 27), 729, 1152)
    assert len(tower.blocks) == 27
    assert sum(p.numel() for p in tower.parameters()) == 428_225_600


@pytest.mark.parametrize(
    ("name", "grid", "width", "blocks"),
    [
        ("ViT-L-14", (16, 16), 1024, 24),
        ("ViT-L-14-336-quickgelu", (24, 24), 1024, 24),
        ("ViT-B-16-SigLIP2-256", (16, 16), 768, 12),
        ("MobileCLIP-B", (14, 14), 768, 12),
        ("coca_ViT-B-32", (7, 7), 768, 12),
    ],
)
def test_towers_by_name(name, grid, width, blocks):
    with torch.device("meta"):
        tower = Tower(read_spec(name), Features("patches", layer=-2))
        block = tower.get_submodule(f"{tower.block_prefix}.0")
        seen = {}
        for role, norm, reader in tower.norms:
            block.get_submodule(norm).register_forward_hook(
                lambda _, __, out, role=role: seen.update({f"{role} normed": out})
            )
            block.get_submodule(reader).register_forward_pre_hook(
                lambda _, args, role=role: seen.update({f"{role} read": args[0]})
            )
        features = tower(torch.empty(1, 3, *tower.image_size))
    assert (tower.grid, tower.width, len(tower.blocks)) == (grid, width, blocks)
    assert features.shape == (1, tower.tokens, width)
    for role in ("attn", "mlp"):
        assert seen[f"{role} normed"] is seen[f"{role} read"], "what it is said to read is the norm's output"


@pytest.mark.parametrize("layer", [-1, -2, -4])
def test_patches_are_those_of_the_layer(tiny_base, spec, layer):
    tower = Tower(spec, Features("patches", layer=layer)).eval()
    load_tower_weights(tower, Path(tiny_base.tower) / WEIGHTS_FILE)
    seen: dict[int, torch.Tensor] = {}
    for index, block in enumerate(tower.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out}))
    with torch.no_grad():
        features = tower(torch.randn(3, 3, 16, 16))
    assert list(seen) == list(range(4 + layer + 1)), "blocks behind the last that is read do not run"
    assert torch.equal(features, seen[4 + layer][:, 1:])
    assert (tower.grid, tower.tokens) == ((2, 2), 4)


@pytest.mark.parametrize("layer", [0, 1, -5])
def test_a_layer_that_is_not_there(spec, layer):
    with pytest.raises(
        ModelError,
        match=rf"patches of layer {layer}, but there are 4 blocks; set base\.tower_layer to -1 .* to -4",
    ):
        Tower(spec, Features("patches", layer=layer))


def test_features_of_an_unknown_kind(spec):
    with pytest.raises(ModelError, match="features are 'pooled'; choose class or patches"):
        Tower(spec, Features("pooled"))


def test_gelu_has_two_forms():
    """timm's is exact, Hugging Face's SigLIP was trained with tanh."""
    towers = []
    for gelu in ("", "tanh", "exact"):
        torch.manual_seed(0)
        shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
        trunk = {"img_size": (16, 16), "eps": 1e-6, **shape}
        towers.append(
            Tower(TowerSpec({"vision_cfg": {"image_size": 16}}, {}, gelu, trunk), Features("patches"))
        )
    pictures = torch.randn(1, 3, 16, 16)
    exact, tanh, named = (tower.eval()(pictures) for tower in towers)
    torch.testing.assert_close(exact, tanh, atol=1e-3, rtol=1e-3)
    assert not torch.equal(exact, tanh)
    assert torch.equal(exact, named)


def test_the_form_of_gelu_can_be_chosen(tiny_base):
    """Whatever the weights were trained with; an adapter remembers it."""
    seen = [
        type(build_base(replace(tiny_base, tower_gelu=gelu)).model.tower.blocks[0].mlp.gelu)
        for gelu in ("", "tanh")
    ]
    assert [kind.__name__ for kind in seen] == ["LeanQuickGELU", "GELU"]
    with pytest.raises(ModelError, match=r"GELU is 'quick'; set base\.tower_gelu to exact or tanh, or leave"):
        build_base(replace(tiny_base, tower_gelu="quick"))


@pytest.mark.parametrize("every", [0, -1, 5])
def test_too_few_blocks(tiny_base, every):
    with pytest.raises(
        ModelError, match=rf"after every {every} blocks, but there are 4; set base\.tower_every to 1 to 4"
    ):
        build_base(replace(tiny_base, tower_every=every))


def test_weights_are_found_beside_the_configuration_or_by_their_path(folder, tmp_path):
    path = folder / WEIGHTS_FILE
    assert find_tower_weights(str(folder), "") == path
    assert find_tower_weights("ViT-L-14", str(path)) == path
    with pytest.raises(ModelError, match=r"'ViT-L-14' brings no weights; set base\.tower_weights"):
        find_tower_weights("ViT-L-14", "")
    with pytest.raises(ModelError, match="'nowhere' is neither a file nor a pretrained tag of ViT-L-14"):
        find_tower_weights("ViT-L-14", "nowhere")
    path.unlink()
    with pytest.raises(ModelError, match=r"brings no weights"):
        find_tower_weights(str(folder), "")


def test_a_text_tower_beside_it_is_left_alone(folder, spec):
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({**tensors, "text_projection": torch.zeros(2)}, folder / WEIGHTS_FILE)
    tower = Tower(spec, Features())
    load_tower_weights(tower, folder / WEIGHTS_FILE)
    assert torch.equal(tower.visual.proj, tensors["visual.proj"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.proj"), r"1 tensors missing \['proj'\], 0 unexpected \[\], 0 misshapen"),
        (
            lambda t: t.update({"visual.gate": torch.zeros(1)}),
            r"0 tensors missing \[\], 1 unexpected \['gate'\]",
        ),
        (
            lambda t: t.update({"visual.proj": torch.zeros(3, 4)}),
            r"1 misshapen \['proj is \(3, 4\), not \(32, 16\)'\]",
        ),
        (lambda t: t.clear(), r"\d\d tensors missing \['class_embedding', "),
    ],
    ids=["missing", "unexpected", "misshapen", "all missing"],
)
def test_weights_that_do_not_fit(folder, spec, change, message):
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    tower = Tower(spec, Features())
    before = tower.visual.proj.detach().clone()
    with pytest.raises(ModelError, match=f"does not fit the tower: .*{message}"):
        load_tower_weights(tower, folder / WEIGHTS_FILE)
    assert torch.equal(tower.visual.proj, before)


def test_a_file_that_is_not_there_or_cut(folder, spec):
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read, it may be truncated"):
        load_tower_weights(Tower(spec, Features()), path)
    with pytest.raises(ModelError, match="there is no file"):
        load_tower_weights(Tower(spec, Features()), folder / "none.safetensors")
