"""Pictures of any size and number in the joined model, by every kind of projector, and in the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data.packing import PackedBatch, collate
from data.pictures import Prepared
from data.sample import Tokens, modality_of
from mma import MMAConfig, PartsConfig
from mma.bank import AdapterBank
from models.build import BaseSettings, System, build_new, load, outline
from models.errors import ModelError
from models.views import Layout

SIDE, PATCHES = 16, 4
SIZES = ((16, 16), (31, 17), (9, 80), (40, 40))
KINDS = ("linear", "mlp2x_gelu", "mlp3x_gelu", "resampler-3", "mean-1", "mean-4")


@pytest.fixture
def patches(tiny_base) -> BaseSettings:
    return replace(tiny_base, tower_features="patches")


@pytest.fixture
def anyres(patches) -> BaseSettings:
    return replace(patches, pictures="anyres", grids="1x2,2x1,2x2,1x3")


def filled(system: System) -> System:
    """The system with random values in all that is trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return system


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def sample(system: System, *sizes: tuple[int, int], video: bool = False) -> Tokens:
    """Words, and pictures of these sizes between them."""
    ids, slots, counts = [5], [], []
    for size in sizes:
        counts.append(system.model.slots(*size))
        slots += range(len(ids), len(ids) + counts[-1])
        ids += [*[0] * counts[-1], 6]
    ids += [7, 8 + len(sizes), 9]
    supervised = tuple(index >= len(ids) - 2 for index in range(len(ids)))
    paths = tuple(Path(f"{width}x{height}") for width, height in sizes)
    modality = modality_of(paths, video)
    return Tokens(str(sizes), tuple(ids), supervised, tuple(slots), modality, paths, tuple(counts))


def packed(system: System, *samples: Tokens) -> PackedBatch:
    def prepared(path: Path) -> Prepared:
        width, height = (int(side) for side in path.name.split("x"))
        return Prepared(system.preprocess(noise(width, height)), (width, height))

    return collate(samples, prepared)


@pytest.mark.parametrize("kind", KINDS)
def test_every_projector_is_kept_in_the_bundle(patches, kind, tmp_path):
    system = filled(build_new(patches, PartsConfig(projector=kind)))
    count = {"resampler-3": 3, "mean-1": 1}.get(kind, PATCHES)
    assert (system.image_slots, system.model.slots(99, 5)) == (count, count)
    batch = packed(system, sample(system, (20, 31)), sample(system), sample(system, (16, 16)))
    system.model.adapters.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    own = system.model.adapters.part("projector").state_dict()
    assert set(stored) == {f"projector.{name}" for name in own}
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "adapter").model(batch), system.model(batch))
    system.model.loss(batch).backward()
    assert all(p.grad is not None for p in system.model.adapters.trainable_parameters().values())


@pytest.mark.parametrize(
    ("decoder", "tower", "kind", "sizes"),
    [
        ("llama-13b", "ViT-L-14", "linear", (303_966_208, 256, 5_248_000)),
        # its table of positions is longer
        ("llama-7b", "ViT-L-14-336", "mlp2x_gelu", (303_966_208 + 320 * 1024, 576, 20_979_712)),
        ("llama-65b", "ViT-L-14-336-quickgelu", "mlp2x_gelu", (304_293_888, 576, 75_513_856)),
        ("phi-2", "ViT-SO400M-14-SigLIP-384", "mlp2x_gelu", (428_225_600, 729, 9_507_840)),
    ],
)
def test_published_sizes(decoder, tower, kind, sizes):
    """Parameters of the tower, tokens of a picture, parameters of the projector; one block never runs."""
    model = outline(BaseSettings(decoder="none", architecture=decoder, tower=tower, tower_features="patches"))
    with torch.device("meta"):
        model.adapters.add_adapter("default", PartsConfig(projector=kind))
    trained = sum(p.numel() for p in model.adapters.trainable_parameters().values())
    assert (sum(p.numel() for p in model.tower.parameters()), model.slots(640, 480), trained) == sizes
    assert model.tower.last_block == len(model.tower.blocks) - 2


@pytest.mark.parametrize("mode", ["own", "anyres"])
def test_a_sample_does_not_depend_on_its_company(anyres, mode):
    system = filled(build_new(replace(anyres, pictures=mode), PartsConfig(projector="mlp2x_gelu")))
    one = sample(system, (31, 17), (9, 80))
    others = [sample(system), sample(system, (40, 40)), sample(system, *SIZES)]
    with torch.no_grad():
        alone = system.model.hidden(packed(system, one))
        for samples in ([one, *others], [*others, one], [others[1], one, others[2]]):
            together = system.model.hidden(packed(system, *samples))
            row = together.split([len(each) for each in samples])[samples.index(one)]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


def test_every_slot_gets_its_own_token(anyres):
    """A picture's tokens stand where it stands, in the order of the pictures."""
    system = filled(build_new(anyres, PartsConfig(projector="linear")))
    batch = packed(system, sample(system, *SIZES[:2]), sample(system, *SIZES[2:]))
    with torch.no_grad():
        stream = system.model.embed(batch)
        tokens = [system.model.project(system.preprocess(noise(*size)), [size]) for size in SIZES]
    torch.testing.assert_close(stream.x[batch.slots], torch.cat(tokens), atol=1e-5, rtol=1e-5)
    words = torch.ones(len(batch.ids), dtype=torch.bool)
    words[batch.slots] = False
    assert torch.equal(stream.x[words], system.model.decoder.embed(batch.ids[words]))


def test_the_newline_is_trained_and_kept_with_the_projector(anyres, tmp_path):
    system = filled(build_new(anyres, PartsConfig(projector="linear")))
    batch = packed(system, sample(system, (31, 17)), sample(system))
    system.model.loss(batch).backward()
    trained = system.model.adapters.trainable_parameters()
    assert trained["newline.weight"].shape == (1, 32)
    assert trained["newline.weight"].grad.abs().sum() > 0
    assert system.model.part_of("newline.weight") == "projector"
    system.model.adapters.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "adapter").model(batch), system.model(batch))


def test_a_route_for_everything_a_sample_can_carry(anyres):
    """Text, one picture, several, and the frames of a video, in one batch."""
    config = MMAConfig(
        projector="linear", dropout=0.0, temperature=1.0, modalities=("text", "image", "images", "video")
    )
    system = filled(build_new(anyres, config))
    samples = [
        sample(system),
        sample(system, SIZES[1]),
        sample(system, *SIZES[:3]),
        sample(system, *SIZES[:3], video=True),
    ]
    batch = packed(system, *samples)
    assert batch.modalities == config.modalities
    with torch.no_grad():
        rows = system.model.hidden(batch).split([len(each) for each in samples])
        for one, row in zip(samples, rows, strict=True):
            torch.testing.assert_close(system.model.hidden(packed(system, one)), row, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rows[2], rows[3])  # the same pictures by another route
    system.model.loss(batch).backward()
    assert all(p.grad is not None for p in system.model.adapters.trainable_parameters().values())


def test_slots_counted_otherwise(anyres):
    system = build_new(anyres, PartsConfig(projector="linear"))
    batch = packed(system, sample(system, (31, 17)))
    batch.sizes = ((17, 31),)
    with pytest.raises(ModelError, match=r"they give \d+ tokens, but \d+ slots were left; count slots by"):
        system.model(batch)


@pytest.mark.parametrize("kind", ["resampler-4", "mean-4"])
def test_projectors_that_lose_the_place_of_a_patch(anyres, kind):
    with pytest.raises(
        ModelError, match=f"{kind} mixes the patches of a view, but anyres lays them out anew; choose linear"
    ):
        build_new(anyres, PartsConfig(projector=kind))


def test_class_tokens_have_no_place_in_the_picture(anyres):
    with pytest.raises(ModelError, match=r"any resolution need patches; set base\.tower_features to patches"):
        build_new(replace(anyres, tower_features="class"), PartsConfig(projector="linear"))


def test_a_bank_has_no_newlines(anyres):
    config = MMAConfig(projector="linear", tower="none")
    system = build_new(anyres, config)
    AdapterBank(system.model.adapters, 1, config)
    batch = replace(packed(system, sample(system, (31, 17))), adapters=("default",))
    with pytest.raises(ModelError, match="a bank holds no newlines, which any resolution needs; load one"):
        system.model(batch)


# the layout by itself

GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    grids=GRIDS,
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_a_header_tells_what_a_picture_gives(width, height, grids, grid):
    """Views and slots by the size alone are those that the pixels give."""
    text = ",".join(f"{rows}x{columns}" for rows, columns in grids)
    layout = Layout(PreprocessCfg(size=12), "anyres", text, grid)
    views = layout(Image.new("RGB", (width, height)))
    assert layout.views(width, height) == len(views)
    tokens = grid[0] * grid[1]
    features = torch.arange(len(views) * tokens, dtype=torch.float32).reshape(len(views), tokens, 1)
    arranged = layout.arrange(features, [(width, height)], [torch.tensor([-1.0])])
    assert len(arranged) == layout.slots(width, height, tokens)
    real = arranged[arranged != -1]
    assert len(real) == len(set(real.tolist()))  # no token twice
    assert torch.equal(arranged[:tokens, 0], features[0, :, 0])


@pytest.mark.parametrize("size", [(640, 480), (33, 57), (24, 24), (24, 27), (29, 24), (1, 7), (101, 24)])
def test_the_square_is_that_of_transformers(size):
    """Also where the middle is between two pixels, of which open_clip takes the even one."""
    given_sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    expected = CLIPImageProcessorPil(**given_sizes)(noise(*size), return_tensors="np")["pixel_values"]
    ours = Layout(PreprocessCfg(size=24), "square", "", (2, 2))(noise(*size))
    torch.testing.assert_close(ours, torch.as_tensor(np.array(expected)), atol=1e-6, rtol=1e-6)


def test_a_square_for_a_tower_that_is_none():
    layout = Layout(PreprocessCfg(size=(12, 24), mean=(0, 0, 0), std=(1, 1, 1)), "square", "", (1, 2))
    for size in ((24, 12), (48, 24), (30, 12), (24, 20)):
        ramp = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        ramp[size[1] // 2 :] = 255
        seen = layout(Image.fromarray(ramp))[0, 0]
        assert seen.shape == (12, 24)
        assert (seen[:5].max(), seen[7:].min()) == (0, 1)
