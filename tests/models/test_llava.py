"""A whole LLaVA or LLaVA-NeXT of transformers, read from its folder, gives transformers' own logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.build import BaseSettings, load, load_llava
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.hf_config import read_hf_config
from models.llava import fill_parts, read_llava
from models.projector import make_projector
from models.weights import load_decoder
from tests.models.llava_files import (
    PINPOINTS,
    SIDE,
    SIZES,
    TEXT,
    TEXTS,
    VISION,
    agree,
    edited,
    made,
    processor,
    renamed,
)


@pytest.mark.parametrize("vision", ["clip", "siglip"])
@pytest.mark.parametrize("text", list(TEXTS))
def test_logits_of_a_llava(tmp_path, text, vision):
    model = made(tmp_path, text, vision)
    mean = [0.48145466, 0.4578275, 0.40821073] if vision == "clip" else [0.5] * 3
    std = [0.26862954, 0.26130258, 0.27577711] if vision == "clip" else [0.5] * 3
    prepare = processor(False, image_mean=mean, image_std=std)
    prepare.save_pretrained(tmp_path)
    system = load_llava(tmp_path)
    agree(model, system, prepare)
    for size in ((28, 28), (60, 40), (28, 31)):
        agree(model, system, prepare, size)
    agree(model, system, prepare, (60, 40), (28, 30))


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_logits_of_a_llava_next(tmp_path, text):
    model = made(tmp_path, text, after=True)
    prepare = processor(True)
    prepare.save_pretrained(tmp_path)
    system = load_llava(tmp_path)
    assert system.image_slots is None
    agree(model, system, prepare)
    for size in SIZES:
        agree(model, system, prepare, size)
    agree(model, system, prepare, *SIZES[1:4])


def test_pictures_are_padded_where_the_folder_says_so(tmp_path):
    model = made(tmp_path)
    prepare = processor(False, do_pad=True)
    prepare.save_pretrained(tmp_path)
    system = load_llava(tmp_path)
    assert system.settings.pictures == "pad"
    agree(model, system, prepare, (90, 30))


@pytest.mark.parametrize("layer", [-1, -4, 0, 2, 4])
def test_the_layer_is_counted_from_either_end(tmp_path, layer):
    """0 is what enters the first block, which cannot be read."""
    model = made(tmp_path, vision_feature_layer=layer)
    if layer == 0:
        with pytest.raises(ModelError, match="patches of layer -5, but there are 4 blocks"):
            load_llava(tmp_path)
        return
    agree(model, load_llava(tmp_path), processor(False), (28, 28))


MEMORY = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1"),
)
OLDER = ((r"^vision_tower\.", "vision_tower.vision_model."),)
BOTH = ((r"^vision_tower\.", "vision_tower.vision_model."), *MEMORY)


@pytest.mark.parametrize("changes", [MEMORY, OLDER, BOTH], ids=["in memory", "older", "both"])
def test_names_that_changed_over_the_years(tmp_path, changes):
    model = made(tmp_path, after=True)
    renamed(tmp_path, *changes)
    agree(model, load_llava(tmp_path), processor(True), (60, 41))


def test_shards_and_old_files(tmp_path):
    model = made(tmp_path / "shards", after=True, shards="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    agree(model, load_llava(tmp_path / "shards"), processor(True), (60, 41))
    model = made(tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    agree(model, load_llava(tmp_path / "old"), processor(False), (60, 40))


@pytest.mark.parametrize("inside", [True, False])
def test_a_tied_output_layer(tmp_path, inside):
    """The table of the decoder says so, or the whole."""
    settings = {"tied": True} if inside else {"tie_word_embeddings": True}
    model = made(tmp_path, "qwen2", **settings)
    if inside:
        edited(tmp_path, tie_word_embeddings=False)
    system = load_llava(tmp_path)
    assert system.model.decoder.head.weight is system.model.decoder.embed.weight
    agree(model, system, processor(False), (28, 28))


@pytest.mark.parametrize("text", list(TEXTS))
def test_what_a_short_table_leaves_out(tmp_path, text):
    """Folders of older versions write down only what is not usual."""
    full = {**TEXTS[text]().to_dict(), "sliding_window": None}
    short = {"model_type": text, "sliding_window": None}
    for name, table in (("full", full), ("short", short), ("bare", {})):
        (tmp_path / name).mkdir()
        content = {"model_type": "llava", "text_config": table, "vision_config": {}}
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    assert read_hf_config(tmp_path / "short") == read_hf_config(tmp_path / "full")
    assert read_hf_config(tmp_path / "bare") == DecoderConfig(
        4096, 32, 32, 32, 11008, vocab_size=32000, norm_eps=1e-6
    )


PUBLISHED = (
    (r"^language_model\.", ""),
    (r"^vision_tower", "model.vision_tower.vision_tower.vision_model"),
    (r"^image_newline", "model.image_newline"),
    (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^multi_modal_projector\.linear_2", "model.mm_projector.2"),
)


def published(folder: Path, **settings: object) -> str:
    """Makes a folder one as LLaVA was published, and gives the folder of its tower."""
    renamed(folder, *PUBLISHED)
    tower = folder / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({**VISION, "model_type": "clip_vision_model"}))
    content = {**TEXT, "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", **settings}
    (folder / "config.json").write_text(json.dumps(content))
    return str(tower)


def test_the_decoder_alone_is_read_from_a_whole(tmp_path):
    model = made(tmp_path, after=True)
    theirs = model.model.language_model.embed_tokens.weight
    assert torch.equal(load_decoder(tmp_path, dtype=torch.float32).embed.weight, theirs)
    published(tmp_path)
    assert torch.equal(load_decoder(tmp_path, dtype=torch.float32).embed.weight, theirs)
    edited(tmp_path, model_type="llama")
    with pytest.raises(ModelError, match=r"has \d+ tensors no LLaMA decoder has: \['model.image_newline"):
        load_decoder(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("points", [[point[::-1] for point in PINPOINTS], "(1x1),...,(2x3)"])
def test_a_llava_next_as_it_was_published(tmp_path, points):
    """One table for all, the tower beside the decoder, and the width of a grid before its height."""
    pairs = [[high * SIDE, wide * SIDE] for wide in (1, 2) for high in (1, 2, 3)]
    grids = pairs if isinstance(points, str) else PINPOINTS
    model = made(tmp_path, after=True, image_grid_pinpoints=grids)
    merged = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    system = load_llava(tmp_path, published(tmp_path, image_grid_pinpoints=points, **merged))
    agree(model, system, processor(True, image_grid_pinpoints=grids))
    for size in SIZES:
        agree(model, system, processor(True, image_grid_pinpoints=grids), size)


@pytest.mark.parametrize("shape", [None, "pad"])
def test_a_llava_as_it_was_published(tmp_path, shape):
    """Its tower may be elsewhere, if it was not tuned."""
    model = made(tmp_path)
    tower = published(tmp_path, image_aspect_ratio=shape)
    tensors = load_file(tmp_path / "model.safetensors")
    inside = {name: tensors.pop(name) for name in list(tensors) if ".vision_tower." in name}
    save_file(tensors, tmp_path / "model.safetensors")
    short = {name.removeprefix("model.vision_tower.vision_tower."): x for name, x in inside.items()}
    save_file(short, Path(tower) / "model.safetensors")
    agree(model, load_llava(tmp_path, tower), processor(False, do_pad=shape == "pad"), (28, 47))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch'; .* is 'patch'"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio 'anyres_max_9'; what can be read"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat'; what .* is 'spatial_unpad'"),
        ({"mm_projector_type": "identity"}, "'identity' is no kind of projector"),
    ],
)
def test_a_published_folder_that_is_joined_otherwise(tmp_path, changes, message):
    made(tmp_path)
    tower = published(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        load_llava(tmp_path, tower)


def test_a_published_folder_without_its_tower(tmp_path):
    made(tmp_path)
    published(tmp_path, mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(
        ModelError, match="its tower is openai/clip-vit-large-patch14-336, .*; name the tower"
    ):
        load_llava(tmp_path)


def test_projector_and_newline_are_the_adapter(tmp_path):
    """The bundle brings them back, without the projector of the folder."""
    model = made(tmp_path / "llava", after=True)
    system = load_llava(tmp_path / "llava")
    system.model.adapters.save_pretrained(tmp_path / "adapter")
    renamed(tmp_path / "llava", (r"^multi_modal_projector\.linear_.", "multi_modal_projector.unknown"))
    agree(model, load(tmp_path / "adapter"), processor(True), (60, 41))


def test_one_precision_for_all(tmp_path):
    made(tmp_path)
    system = load_llava(tmp_path, precision="bf16")
    assert {p.dtype for p in (*system.model.decoder.parameters(), *system.model.tower.parameters())} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "describes a 'llama' model; known are llava, llava_next"),
        ({"vision_config": None}, "says its tower is None, but not how that is built; name the tower's"),
        (
            {"vision_feature_select_strategy": "full"},
            "vision_feature_select_strategy 'full'; what can be read here is 'default'",
        ),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'; what can be read here is 'gelu'"),
        (
            {"multimodal_projector_bias": False},
            "multimodal_projector_bias False; what can be read here is True",
        ),
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer \[-2, -1\]; only one layer"),
        ({"image_grid_pinpoints": [[28, 30]]}, r"image_grid_pinpoints \[\[28, 30\]\]; .* multiples of 28"),
        ({"image_grid_pinpoints": [28]}, r"image_grid_pinpoints \[28\]; they must be pairs"),
        ({"quantization_config": {"bits": 4}}, "has a quantization_config; unquantised weights are needed"),
        ({"text_config": 3}, "text_config 3, not a table of settings"),
        ({"text_config": {"model_type": "gemma"}}, "describes a 'gemma' model, not a LLaMA"),
    ],
)
def test_a_folder_that_is_joined_otherwise(tmp_path, changes, message):
    made(tmp_path, after=True)
    with pytest.raises(ModelError, match=message):
        load_llava(edited(tmp_path, **changes))


def test_a_siglip_without_its_first_patch(tmp_path):
    made(tmp_path, vision="siglip")
    with pytest.raises(
        ModelError, match="vision_feature_select_strategy 'default'; what can be read here is 'full'"
    ):
        load_llava(edited(tmp_path, vision_feature_select_strategy="default"))


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*config\.json; name the folder of a LLaVA"):
        load_llava(tmp_path)


def test_pinpoints_where_none_are_named(tmp_path):
    vision = {"model_type": "clip_vision_model", "image_size": 336}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next", "vision_config": vision}))
    assert read_llava(tmp_path).settings["grids"] == BaseSettings().grids


def test_a_projector_of_a_file(tmp_path):
    """`mm_projector.bin`, as LLaVA's first stage writes it; of one layer in its first version."""
    torch.manual_seed(0)
    for kind, layers in (("linear", [None]), ("mlp2x_gelu", [0, 2])):
        ours = make_projector(kind, 6, 10, (2, 2), 0)
        tensors = {}
        for layer in layers:
            inside = "" if layer is None else f"{layer}."
            tensors[f"model.mm_projector.{inside}weight"] = torch.randn(10, 10 if layer else 6)
            tensors[f"model.mm_projector.{inside}bias"] = torch.randn(10)
        torch.save(tensors, tmp_path / "mm_projector.bin")
        fill_parts({"projector": ours}, tmp_path / "mm_projector.bin")
        x = torch.randn(3, 4, 6)
        first, *rest = zip(*[iter(tensors.values())] * 2, strict=True)
        expected = torch.nn.functional.linear(x, *first)
        for weight, bias in rest:
            expected = torch.nn.functional.linear(torch.nn.functional.gelu(expected), weight, bias)
        torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("multi_modal_projector.linear_2.bias"), r"missing \['projector.2.bias'\]"),
        (lambda t: t.pop("image_newline"), r"missing \['newline.weight'\]"),
        (
            lambda t: t.update({"multi_modal_projector.linear_1.bias": torch.zeros(3)}),
            r"misshapen \['projector.0.bias is \(3,\), not \(32,\)'\]",
        ),
        (
            lambda t: t.update({"mm_projector.4.bias": torch.zeros(3)}),
            r"unexpected \['projector.4.bias'\]",
        ),
    ],
)
def test_a_projector_that_does_not_fit(tmp_path, change, message):
    made(tmp_path, after=True)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"does not fit the projector: .*{message}"):
        load_llava(tmp_path)
