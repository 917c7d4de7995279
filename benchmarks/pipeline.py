"""The input pipeline alone: pictures a second by workers and caches, and how long a step waits for its input.

Pictures of ScienceQA's sizes are drawn to a temporary folder, half PNG and half JPEG, and prepared as CLIP's
tower at 224 wants them. An epoch of steps goes through `training.batches.prefetched` as in a run; the peer is
`torch.utils.data.DataLoader` with the same preparation, batches and workers. Time is that on the wall, since
several processes work; workers and caches are warm. The share of waiting is that of the training steps of the
embedded base (forward and backward pass) on the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import against, main, milliseconds, ratio, table, take_turns
from data.packing import LoadPicture
from data.picture_cache import CachedPictures, cached_pictures
from data.picture_workers import Pictures
from data.pictures import Prepared, open_picture, picture_loader
from data.sample import Tokens
from mma import MMAConfig
from models.build import BaseSettings, System, build_new, features_of, layout_of, spec_of
from models.tower import Tower
from models.views import Layout
from training.batches import Pass, prefetched

PICTURES, BATCH, ROUNDS = 96, 16, 5
SIZES = ((750, 429), (302, 232), (640, 480), (480, 360))
WORKERS = (0, 1, 2)
LENGTH, ANSWER = 120, 20


def measure(quick: bool) -> tuple[str, dict[str, Any]]:
    """Pictures a second of all cases, and the share of a step that is waited."""
    count, rounds = (4, 2) if quick else (PICTURES, ROUNDS)
    workers = WORKERS[:1] if quick else WORKERS
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = [_draw(folder, index) for index in range(count)]
        layout = _clip(quick)
        load = picture_loader(layout)
        ways = _ways(load, partial(_unseen, load), folder / "clip", workers)
        cases: dict[str, Callable[[], object]] = {
            case: partial(_epoch, pictures, paths) for case, pictures in ways.items()
        }
        for number in workers:
            cases[f"DataLoader, {number} workers"] = partial(_peer_epoch, _loader(layout, paths, number))
        times = take_turns(cases, rounds, perf_counter)
        over = {case: ratio(times, "DataLoader, 0 workers", case) for case in cases}
        same = {
            f"{number} workers": ratio(times, f"DataLoader, {number} workers", f"{number} workers")
            for number in workers
        }
        waited = _waits(folder, paths, workers, rounds)
    speed = {case: round(count / spent * 1000, 1) for case, spent in milliseconds(times).items()}
    rows = [(case, f"{speed[case]:.0f}", against(over[case])) for case in cases]
    text = "\n".join(
        [
            table(("", "pictures/s", "times DataLoader, 0 workers"), rows),
            *(f"{case}: {against(found)} times DataLoader's with as many" for case, found in same.items()),
            *(f"waited for input, {case}: {share:.1%} of a step" for case, share in waited.items()),
        ]
    )
    numbers = {"pictures_per_s": speed, "over_dataloader": over, "over_dataloader_alike": same}
    return text, {"pictures": count, "batch": BATCH, **numbers, "waited_share": waited}


def _draw(folder: Path, index: int) -> Path:
    """A picture of coarse and fine detail, so that it takes as long to decode as a photograph."""
    random, (width, height) = np.random.default_rng(index), SIZES[index % len(SIZES)]
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += random.integers(-6, 7, pixels.shape, dtype=np.int16)
    path = folder / f"{index}.{('png', 'jpg')[index // len(SIZES) % 2]}"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def _clip(quick: bool) -> Layout:
    """How CLIP's ViT-B/32 at 224 wants pictures; a quick one is the embedded base's tower."""
    settings = BaseSettings() if quick else BaseSettings(tower="ViT-B-32", tower_weights="openai")
    spec = spec_of(settings)
    with torch.device("meta"):
        tower = Tower(spec, features_of(settings))
    return layout_of(settings, spec, tower)


def _ways(load: LoadPicture, seen: LoadPicture, folder: Path, workers: Sequence[int]) -> dict[str, Pictures]:
    """Every way to get at pictures: workers, and the caches on disk."""
    return {
        **{f"{number} workers": Pictures(load, number) for number in workers},
        "picture cache": Pictures(cached_pictures(load, folder / "views", "")),
        "feature cache": Pictures(
            CachedPictures(seen, folder / "features", "", _named, lambda held: held["features"])
        ),
    }


def _unseen(load: LoadPicture, path: Path) -> Prepared:
    """Features of the size of ViT-L's class tokens; what they are does not matter once they are kept."""
    return Prepared(torch.randn(1, 6, 1024), load(path).size)


def _named(features: Tensor) -> dict[str, Tensor]:
    return {"features": features}


def _tokens(path: Path, slots: int = 6) -> Tokens:
    """A sample with a picture."""
    supervised = tuple(place >= LENGTH - ANSWER for place in range(LENGTH))
    generator = torch.Generator().manual_seed(len(path.name))
    ids = tuple(torch.randint(3, 1000, (LENGTH,), generator=generator).tolist())
    return Tokens(path.name, ids, supervised, tuple(range(3, 3 + slots)), "image", (path,), (slots,))


def _steps(pictures: Pictures, samples: Sequence[Tokens]) -> Callable[[int], list[Pass]]:
    """What a run makes of a step."""

    def own(step: int) -> list[Pass]:
        group = samples[step * BATCH : (step + 1) * BATCH]
        return [Pass(0, pictures.batch(group), step)]

    return own


def _epoch(pictures: Pictures, paths: Sequence[Path]) -> None:
    own = _steps(pictures, [_tokens(path) for path in paths])
    with closing(prefetched(own, 0, -(-len(paths) // BATCH))) as steps:
        for _ in steps:
            pass


class _Files(Dataset[Tensor]):
    """The peer's data set: a picture by its index."""

    def __init__(self, layout: Layout, paths: Sequence[Path]) -> None:
        self.layout, self.paths = layout, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.layout(open_picture(self.paths[index]))


def _loader(layout: Layout, paths: Sequence[Path], workers: int) -> DataLoader[Tensor]:
    more = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    return DataLoader(_Files(layout, paths), BATCH, num_workers=workers, collate_fn=torch.cat, **more)


def _peer_epoch(loader: DataLoader[Tensor]) -> None:
    for _ in loader:
        pass


def _waits(folder: Path, paths: Sequence[Path], workers: Sequence[int], rounds: int) -> dict[str, float]:
    """The share of the time of training steps that is spent waiting for batches, by way."""
    system = build_new(BaseSettings(), MMAConfig(tower="none"))
    tower, load = system.model.tower, picture_loader(system.preprocess)

    @torch.no_grad()
    def seen(path: Path) -> Prepared:
        picture = load(path)
        return Prepared(tower(picture.views), picture.size)

    ways = _ways(load, seen, folder / "mini", workers)
    samples = [_tokens(path, system.model.slots(1, 1)) for path in paths]
    for pictures in ways.values():
        _train(system, pictures, samples, 1)
    return {case: round(_train(system, pictures, samples, rounds), 4) for case, pictures in ways.items()}


def _train(system: System, pictures: Pictures, samples: Sequence[Tokens], epochs: int) -> float:
    """The share that is waited in so many epochs."""
    waited, begun = 0.0, perf_counter()
    for _ in range(epochs):
        own = _steps(pictures, samples)
        with closing(prefetched(own, 0, -(-len(samples) // BATCH))) as steps:
            asked = perf_counter()
            for passes in steps:
                waited += perf_counter() - asked
                for each in passes:
                    system.model.loss(each.batch).backward()  # type: ignore[arg-type]
                asked = perf_counter()
    return waited / (perf_counter() - begun)


if __name__ == "__main__":
    main("pipeline", __doc__, measure)
