"""Towers of Hugging Face's folders give what transformers gives, at every layer, wherever they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.errors import ModelError
from models.hf_tower import read_hf_tower
from models.tower import Features, Tower, load_tower_weights
from models.tower_files import find_tower_weights, read_spec
from models.tower_spec import preprocess_settings
from models.views import Layout
from tests.conftest import randomise

# 98 x (101 / 98) is a hair below 101, and 30 no multiple of 7: what is rounded down, and where, shows
SHAPE = {
    "hidden_size": 98, "intermediate_size": 101, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 30, "patch_size": 7,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CLIP = hf.CLIPVisionConfig(**SHAPE, projection_dim=16, layer_norm_eps=1e-3)
SIGLIP = hf.SiglipVisionConfig(**SHAPE, layer_norm_eps=1e-3)


def llava(vision: hf.PretrainedConfig) -> hf.PreTrainedModel:
    text = {"model_type": "llama", "num_key_value_heads": 2, **TEXT}
    return hf.LlavaForConditionalGeneration(hf.LlavaConfig(vision_config=vision.to_dict(), text_config=text))


def llava_next(vision: hf.PretrainedConfig) -> hf.PreTrainedModel:
    text = {"model_type": "llama", "num_key_value_heads": 2, **TEXT}
    config = hf.LlavaNextConfig(vision_config=vision.to_dict(), text_config=text)
    return hf.LlavaNextForConditionalGeneration(config)


# Each with where the vision transformer is in it.
MODELS: dict[str, tuple[Callable[[], hf.PreTrainedModel], str]] = {
    "clip_vision_model": (lambda: hf.CLIPVisionModel(CLIP), ""),
    "clip_vision_model, exact": (
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SHAPE, hidden_act="gelu")),
        "",
    ),
    "clip_vision_model, tanh": (
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SHAPE, hidden_act="gelu_pytorch_tanh")),
        "",
    ),
    "clip_vision_model, projected": (lambda: hf.CLIPVisionModelWithProjection(CLIP), "vision_model"),
    "clip": (
        lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=CLIP.to_dict(), text_config=TEXT)),
        "vision_model",
    ),
    "siglip_vision_model": (lambda: hf.SiglipVisionModel(SIGLIP), ""),
    "siglip_vision_model, exact": (
        lambda: hf.SiglipVisionModel(
            hf.SiglipVisionConfig(**SHAPE, hidden_act="gelu", vision_use_head=False)
        ),
        "",
    ),
    "siglip": (
        lambda: hf.SiglipModel(hf.SiglipConfig(vision_config=SIGLIP.to_dict(), text_config=TEXT)),
        "vision_model",
    ),
    "llava of clip": (lambda: llava(CLIP), "model.vision_tower"),
    "llava of siglip": (lambda: llava(SIGLIP), "model.vision_tower"),
    "llava_next": (lambda: llava_next(CLIP), "model.vision_tower"),
}  # fmt: skip


def save(model: hf.PreTrainedModel, folder: Path, shard: str = "5GB") -> Path:
    randomise(model, 3)
    model.eval().save_pretrained(folder, max_shard_size=shard)
    return folder


def loaded(folder: Path, features: Features) -> Tower:
    tower = Tower(read_spec(str(folder)), features).eval()
    load_tower_weights(tower, find_tower_weights(str(folder), ""))
    return tower


@pytest.fixture
def folder(tmp_path) -> Path:
    """A CLIP tower's folder, to be damaged."""
    return save(hf.CLIPVisionModel(CLIP), tmp_path)


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@torch.no_grad()
def hidden_states(vision: torch.nn.Module, pictures: Tensor) -> tuple[Tensor, ...]:
    return vision(pictures, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", MODELS)
def test_features_equal_transformers_at_every_layer(name, tmp_path):
    make, where = MODELS[name]
    model = make()
    save(model, tmp_path)
    pictures = torch.randn(2, 3, 30, 30)
    states = hidden_states(model.get_submodule(where), pictures)
    assert len(states) == 4
    classes = states[0].shape[1] - 16  # the class token, if there is one
    for layer in (-1, -2, -3):
        with torch.no_grad():
            features = loaded(tmp_path, Features("patches", layer=layer))(pictures)
        assert features.shape == (2, 16, 98)
        torch.testing.assert_close(features, states[layer][:, classes:], atol=1e-5, rtol=1e-5)
    if classes:
        with torch.no_grad():
            features = loaded(tmp_path, Features(every=1))(pictures)
        expected = torch.stack([state[:, 0] for state in states[1:]], dim=1)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_siglip_gives_all_its_patches(tmp_path):
    """Not 728: it has no class token that could be dropped."""
    config = hf.SiglipVisionConfig(**SHAPE | {"image_size": 384, "patch_size": 14})
    save(hf.SiglipVisionModel(config), tmp_path)
    tower = loaded(tmp_path, Features("patches"))
    assert (tower.tokens, tower.grid) == (729, (27, 27))
    with torch.no_grad():
        assert tower(torch.randn(1, 3, 384, 384)).shape == (1, 729, 98)
    with pytest.raises(ModelError, match="no class token to read"):
        Tower(read_spec(str(tmp_path)), Features("class"))


@pytest.mark.parametrize(
    ("model", "parameters", "tokens"),
    [
        # published CLIP ViT-L/14 at 336, and SigLIP SO400M without its pooling head
        (
            {
                "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            },
            303_507_456,
            576,
        ),
        (
            {
                "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
                "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
            },
            412_987_248,
            729,
        ),
    ],
    ids=["clip", "siglip"],
)  # fmt: skip
def test_published_sizes(tmp_path, model, parameters, tokens):
    (tmp_path / "config.json").write_text(json.dumps(model))
    spec = read_spec(str(tmp_path))
    with torch.device("meta"):
        tower = Tower(spec, Features("patches"))
        kind = {"clip_vision_model": hf.CLIPVisionModel, "siglip_vision_model": hf.SiglipVisionModel}
        oracle = kind[model["model_type"]](hf.AutoConfig.for_model(**model))
    total = sum(p.numel() for name, p in oracle.named_parameters() if not name.startswith("head."))
    assert sum(p.numel() for p in tower.parameters()) == total == parameters
    assert tower.tokens == tokens


@pytest.mark.parametrize(
    "prefix", ["vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."]
)
def test_older_names_and_shards(tmp_path, prefix):
    """Names of older files, a buffer they hold, and the tower spread over shards among other tensors."""
    model = hf.CLIPVisionModel(CLIP)
    save(model, tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    tensors = {prefix + name: tensor for name, tensor in plain.items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(17)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2)
    tensors["lm_head.weight"] = torch.zeros(2)
    files = {name: f"part-{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in sorted(set(files.values())):
        save_file({name: tensors[name] for name in files if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    pictures = torch.randn(1, 3, 30, 30)
    with torch.no_grad():
        features = loaded(tmp_path, Features("patches", layer=-1))(pictures)
    expected = hidden_states(model, pictures)[-1][:, 1:]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_a_pytorch_file_and_a_file_by_its_path(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    torch.save({f"vision_model.{name}": x for name, x in tensors.items()}, tmp_path / "pytorch_model.bin")
    tower = loaded(folder, Features("patches"))
    other = Tower(read_spec(str(folder)), Features("patches"))
    path = find_tower_weights(str(folder), str(tmp_path / "pytorch_model.bin"))
    load_tower_weights(other, path)
    for ours, theirs in zip(tower.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_left_out_is_as_transformers_has_it(tmp_path):
    for kind, config in (("clip", hf.CLIPVisionConfig()), ("siglip", hf.SiglipVisionConfig())):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        short = read_hf_tower(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        assert read_hf_tower(tmp_path) == short
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "vision_config": {}}))
    assert read_hf_tower(tmp_path).model["vision_cfg"]["patch_size"] == (32, 32)


@pytest.mark.parametrize("whole", [False, True], ids=["own file", "processor's file"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("clip", {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}),
        ("clip", {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "resample": 2}),
        ("siglip", {"size": {"height": 30, "width": 30}}),
        ("siglip", {"size": {"height": 30, "width": 30}, "image_mean": [0.1, 0.2, 0.3]}),
    ],
)
def test_pictures_are_prepared_as_the_folder_says(tmp_path, kind, settings, whole):
    config, make = {"clip": (CLIP, CLIPImageProcessorPil), "siglip": (SIGLIP, SiglipImageProcessorPil)}[kind]
    processor = make(**settings)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    processor.save_pretrained(tmp_path)
    if whole:
        path = tmp_path / "preprocessor_config.json"
        edit(tmp_path / "processor_config.json", image_processor=json.loads(path.read_text()))
        path.unlink()
    layout = Layout(preprocess_settings(read_spec(str(tmp_path))), "own", "", (1, 1))
    noise = np.random.default_rng(0).integers(0, 256, (44, 64, 3), dtype=np.uint8)
    expected = torch.as_tensor(processor(Image.fromarray(noise), return_tensors="np")["pixel_values"])
    torch.testing.assert_close(layout(Image.fromarray(noise)), expected, atol=1e-6, rtol=1e-6)


def test_pictures_without_a_word_are_prepared_as_the_family_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CLIP.to_dict()))
    clip = preprocess_settings(read_spec(str(tmp_path)))
    assert (clip.mean[0], clip.resize_mode, clip.size) == (0.48145466, "shortest", (30, 30))
    (tmp_path / "config.json").write_text(json.dumps(SIGLIP.to_dict()))
    siglip = preprocess_settings(read_spec(str(tmp_path)))
    assert (siglip.mean, siglip.std, siglip.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "squash")
    edit(tmp_path / "preprocessor_config.json", size=30, crop_size=30, do_center_crop=True)  # older files
    assert preprocess_settings(read_spec(str(tmp_path))).resize_mode == "shortest"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 336}}, "prepares pictures of 336 pixels, but .* sees 30 x 30; correct"),
        ({"crop_size": {"height": 24, "width": 24}, "do_center_crop": True}, "of 24 pixels"),
        ({"crop_size": 24, "do_center_crop": True}, "of 24 pixels"),
        ({"resample": 0}, r"has resample 0; known are 2 \(bilinear\) and 3 \(bicubic\)"),
    ],
)
def test_pictures_that_cannot_be_prepared(folder, changes, message):
    edit(folder / "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=rf"preprocessor_config\.json .*{message}"):
        read_spec(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dinov2"}, "describes 'dinov2'; towers are clip, siglip, or a LLaVA with one"),
        ({"model_type": None}, "describes 'None'"),
        ({"hidden_act": "relu"}, "has hidden_act 'relu'; known are gelu_pytorch_tanh, gelu, quick_gelu"),
        ({"model_type": "siglip", "vision_config": {"hidden_act": "quick_gelu"}}, "'quick_gelu'; known are"),
        ({"num_hidden_layers": "3"}, "has num_hidden_layers '3'; it must be a whole number"),
        ({"image_size": [30, 0]}, "has image_size 0; it must be a whole number"),
        ({"num_attention_heads": 5}, "has hidden_size 98, but 5 attention heads"),
        ({"vision_config": 7}, "has vision_config 7, not a table of settings"),
        (
            {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
            "its tower is openai/clip-vit-large-patch14-336, .*; set base.tower to a folder of openai/clip",
        ),
    ],
)
def test_descriptions_that_are_no_towers(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=rf"config\.json .*{message}"):
        read_spec(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("encoder.layers.1.self_attn.k_proj.bias"),
            r"1 tensors missing \['transformer.resblocks.1.attn.in_proj_bias'\], 0 unexpected",
        ),
        (lambda t: t.pop("pre_layrnorm.weight"), r"1 tensors missing \['ln_pre.weight'\], 0 unexpected"),
        (
            lambda t: t.update({"encoder.gate": torch.zeros(1)}),
            r"0 tensors .*1 unexpected \['encoder.gate'\]",
        ),
        (
            lambda t: t.update({"post_layernorm.bias": torch.zeros(2)}),
            r"1 misshapen \['ln_post.bias is \(2,\), not \(98,\)'\]",
        ),
        (
            lambda t: [t.pop(name) for name in list(t)] and t.update(x=torch.zeros(1)),
            "43 tensors missing .* 0 unexpected",
        ),
    ],
    ids=["a part of qkv", "missing", "unexpected", "misshapen", "no tower"],
)
def test_weights_that_do_not_fit(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"does not fit the tower: .*{message}"):
        loaded(folder, Features("patches"))


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has config\.json but no model\.safetensors"):
        loaded(folder, Features("patches"))
