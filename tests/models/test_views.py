"""From pictures to views and slots: each way of showing a picture, and LLaVA-NeXT's against transformers'."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, unpad_image

from models.errors import ModelError
from models.tower_spec import TowerSpec, preprocess_settings
from models.views import MODES, Layout, parse_grids
from tests.conftest import TOWER_MODEL

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
DEFAULT = "1x2,2x1,2x2,3x1,1x3"  # of transformers
BLOG = "2x2,1x2,2x1,1x3,3x1,1x4,4x1"
RANGE = "(1x1),...,(6x6)"


def layout(
    mode: str = "anyres", grids: str = DEFAULT, size: int = 336, patch: int = 14, **settings
) -> Layout:
    side = size // patch
    return Layout(PreprocessCfg(size=size, **settings), mode, grids, (side, side))


def pinpoints(grids: str, size: int) -> list[list[int]]:
    return [[rows * size, columns * size] for rows, columns in parse_grids(grids)]


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sizes(count: int, seed: int) -> list[tuple[int, int]]:
    generator = random.Random(seed)
    drawn = [[int(2 ** generator.uniform(3, 12)) for _ in range(2)] for _ in range(count)]
    return [(width, height) for width, height in drawn]


# what every way does to a picture


@pytest.mark.parametrize("settings", [{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, {}])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "anyres"])
def test_pictures_are_normalised_as_the_tower_says(mode, settings):
    known = preprocess_settings(TowerSpec(TOWER_MODEL, settings))
    views = Layout(known, mode, "", (2, 2))(Image.fromarray(np.full((40, 40, 3), 51, dtype=np.uint8)))
    assert views.shape == (1, 3, 16, 16)
    assert views.dtype == torch.float32
    mean, std = torch.tensor(known.mean), torch.tensor(known.std)
    if not settings:
        assert known.mean == OPENAI_MEAN  # not ImageNet's
    torch.testing.assert_close(views[0], ((0.2 - mean) / std)[:, None, None].expand(3, 16, 16))


@pytest.mark.parametrize(
    ("mode", "resize_mode", "left", "right"),
    [
        ("own", "squash", 0, 250),
        ("own", "shortest", 96, 156),
        ("square", "squash", 96, 156),
        ("squash", "shortest", 0, 250),
    ],
)
def test_what_is_seen_of_a_wide_picture(mode, resize_mode, left, right):
    """Squashed, the whole is seen; cropped, the edges of a wide picture are lost."""
    ramp = np.arange(0, 256, 4, dtype=np.uint8)[None, :, None]
    wide = Image.fromarray(np.broadcast_to(ramp, (16, 64, 3)).copy())
    view = layout(mode, size=16, patch=8, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize_mode)(wide)[0]
    assert view[0, :, 0].mean() * 255 == pytest.approx(left, abs=8)
    assert view[0, :, -1].mean() * 255 == pytest.approx(right, abs=8)


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (336, 336), (60, 200)])
def test_padding_is_llavas(size):
    """LLaVA-1.5 puts a picture on a square of the mean colour."""
    given = {"size": {"height": 56, "width": 56}, "do_center_crop": False, "do_pad": True}
    expected = LlavaImageProcessorPil(**given)(noise(*size), return_tensors="np")["pixel_values"]
    ours = layout("pad", size=56)(noise(*size))
    torch.testing.assert_close(ours, torch.as_tensor(np.array(expected)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "anyres"])
def test_one_view_gives_as_many_slots_as_tokens(mode):
    one = layout(mode, "not read")
    assert (one.newline, one.views(640, 480), one.fixed(49), one.slots(640, 480, 49)) == (False, 1, 49, 49)
    features = torch.randn(3, 49, 8)
    assert torch.equal(one.arrange(features, [(1, 2)] * 3, None), features.reshape(147, 8))


# any resolution


@pytest.mark.parametrize(
    ("grids", "size", "patch"),
    [(DEFAULT, 336, 14), (BLOG, 384, 14), (RANGE, 224, 16)],
    ids=["1.6", "blog", "range"],
)
def test_grids_and_counts_equal_transformers(grids, size, patch):
    ours, known, side = layout(grids=grids, size=size, patch=patch), pinpoints(grids, size), size // patch
    assert ours.newline
    assert ours.fixed(side**2) is None
    rounded = [(375, 1375), (840, 700), (105, 105), (175, 105), (1065, 710)]  # a hair below a whole number
    for width, height in [*sizes(1000, seed=1), *rounded]:
        best = select_best_resolution((height, width), known)
        rows, columns = best[0] // size, best[1] // size
        assert ours.views(width, height) == 1 + rows * columns
        kept = unpad_image(torch.empty(1, rows * side, columns * side), (height, width))
        count = side**2 + kept.shape[1] * (kept.shape[2] + 1)
        assert ours.slots(width, height, side**2) == count, (width, height)


@pytest.mark.parametrize(
    ("grids", "size", "count"),
    [
        (DEFAULT, (672, 672), 2928),
        (DEFAULT, (1008, 336), 2328),
        (DEFAULT, (336, 1008), 2376),
        (DEFAULT, (640, 480), 2340),
        (DEFAULT, (480, 640), 2352),
        (DEFAULT, (1920, 1080), 1948),
        (DEFAULT, (336, 336), 1176),
        (DEFAULT, (2000, 400), 1598),
        (BLOG, (2000, 400), 2516),
    ],
)
def test_published_counts(grids, size, count):
    assert layout(grids=grids).slots(*size, 576) == count


@pytest.mark.parametrize(
    "size",
    [
        (640, 480),
        (480, 640),
        (1920, 1080),
        (200, 200),
        (336, 336),
        (50, 777),
        (1001, 333),
        (701, 699),
        (1, 9),
    ],
)
def test_views_equal_transformers(size):
    """Those of the processor that resizes with Pillow, as published models were trained."""
    given = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints(BLOG, 56), **given)
    expected = torch.as_tensor(np.array(processor(noise(*size), return_tensors="np")["pixel_values"][0]))
    ours = layout(grids=BLOG, size=56)(noise(*size))
    assert len(ours) == layout(grids=BLOG, size=56).views(*size)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_tiles_are_resized_as_the_tower_says():
    given = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "resample": 2}
    processor = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints(BLOG, 56), **given)
    expected = torch.as_tensor(np.array(processor(noise(150, 99), return_tensors="np")["pixel_values"][0]))
    ours = layout(grids=BLOG, size=56, interpolation="bilinear")(noise(150, 99))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_the_order_of_tokens_equals_transformers():
    """Whole picture first, then the rows of all tiles without padding, each ended by the newline."""
    generator = torch.Generator().manual_seed(0)
    several = [*sizes(20, seed=2), (1065, 710), (9, 800), (70, 70)]
    ours, known = layout(grids=BLOG, size=70), pinpoints(BLOG, 70)
    views = [torch.randn(ours.views(*size), 25, 6, generator=generator) for size in several]
    newline = torch.randn(6, generator=generator)
    vision = SimpleNamespace(image_size=70, patch_size=14)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=known)
    expected, counts = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), views, [size[::-1] for size in several], "full", newline
    )
    got = ours.arrange(torch.cat(views), several, [newline] * len(several))
    assert torch.equal(got, torch.cat(expected))
    assert [ours.slots(*size, 25) for size in several] == counts.tolist()


def test_every_picture_has_its_own_newline():
    ours = layout(grids="1x2", size=28)
    features, newlines = torch.zeros(6, 4, 3), [torch.full((3,), 1.0), torch.full((3,), 2.0)]
    got = ours.arrange(features, [(56, 28), (56, 28)], newlines)
    count = ours.slots(56, 28, 4)
    assert (len(got), count) == (28, 4 + 2 * (4 + 1))
    assert [sorted(set(part[:, 0].tolist())) for part in got.split(count)] == [[0, 1], [0, 2]]


def test_towers_that_are_not_square():
    """A token's place on the large grid follows from its tile and patch; rows are no columns."""
    ours = Layout(PreprocessCfg(size=(28, 42)), "anyres", "2x2,1x3", (2, 3))
    assert ours(noise(126, 28)).shape == (4, 3, 28, 42)
    assert ours.slots(126, 28, 6) == 6 + 2 * (9 + 1)
    place: Tensor = torch.zeros(4, 2, 3, 2)
    for tile in range(3):
        for row in range(2):
            for column in range(3):
                place[1 + tile, row, column] = torch.tensor([row, 3 * tile + column])
    got = ours.arrange(place.reshape(4, 6, 2), [(126, 28)], [torch.tensor([-1.0, -1.0])])
    expected = [[row, column] for row in (0, 1) for column in range(9)]
    expected.insert(9, [-1, -1])
    assert got[6:].tolist() == [*expected, [-1, -1]]


# grids


@pytest.mark.parametrize(
    ("text", "grids"),
    [
        ("2x2", [(2, 2)]),
        (" 1x2 , 3x1", [(1, 2), (3, 1)]),
        ("(1x2),(2x1)", [(1, 2), (2, 1)]),
        ("(1x1),...,(2x3)", [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]),
    ],
)
def test_grids_as_they_are_written(text, grids):
    assert list(parse_grids(text)) == grids


def test_rows_come_first():
    assert layout(grids="1x3", size=14)(noise(42, 14)).shape[0] == 4
    tall = layout(grids="3x1,1x3", size=14)
    assert tall.slots(14, 42, 1) == 1 + 3 * 2  # three rows of one token and a newline
    assert tall.slots(42, 14, 1) == 1 + 1 * 4


@pytest.mark.parametrize(
    "text", ["", "2", "2x", "0x1", "336x672", "1x1,...", "(2x2),...,(1x1)", "(1x1),...", "a"]
)
def test_grids_that_are_none(text):
    with pytest.raises(ModelError, match=r"grids are '.*'; write rows x columns such as 1x2,2x1,2x2 or"):
        layout(grids=text)


def test_an_unknown_way_to_show_pictures():
    with pytest.raises(
        ModelError, match="'crop' is no way to show them; choose own, square, pad, squash, anyres"
    ):
        layout("crop")


@pytest.mark.parametrize(
    "settings", [{"mean": (1, 2)}, {"std": (0, 0, 0)}, {"interpolation": "lanczos"}, {"resize_mode": "tile"}]
)
def test_settings_that_prepare_no_picture(settings):
    with pytest.raises(ModelError, match=r"preprocess_cfg cannot prepare a picture \(.*; correct it"):
        layout("own", **settings)
