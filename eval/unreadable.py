"""Pictures that cannot be decoded: which they are, and a grey one in their place.

Knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from data.errors import DataError
from data.packing import LoadPicture
from data.pictures import Prepared, open_picture
from eval.errors import EvalError

if TYPE_CHECKING:  # what reads pictures alone should not wait for the models
    from models.build import System

GREY = (128, 128, 128)


def unreadable(paths: Iterable[Path]) -> dict[Path, str]:
    """The pictures that cannot be shown, in the order given, each with the reason."""
    own = list(dict.fromkeys(paths))
    # Decoding leaves the interpreter lock, so threads use every core.
    with ThreadPoolExecutor() as pool:
        faults = tqdm(pool.map(_fault, own), total=len(own), unit="picture", delay=2, leave=False)
        return {path: fault for path, fault in zip(own, faults, strict=True) if fault is not None}


def grey_instead(load: LoadPicture, bad: Collection[Path], system: System) -> LoadPicture:
    """The same pictures, with a mid-grey one of the tower's size for each that cannot be shown."""
    if not bad:
        return load
    if system.image_slots is None:
        # Nobody knows how many slots a picture without a size would have had.
        raise EvalError(
            f"--unreadable grey: {len(bad)} pictures cannot be decoded (the first is {next(iter(bad))}), and "
            "this model sees a picture in its own size, so that none can stand for it; replace the files"
        )
    hidden = frozenset(bad)
    height, width = system.model.tower.image_size

    def shown(path: Path) -> Prepared:
        if path not in hidden:
            return load(path)
        return Prepared(system.preprocess(Image.new("RGB", (width, height), GREY)), (width, height))

    return shown


def _fault(path: Path) -> str | None:
    try:
        open_picture(path).close()
    except DataError as error:
        return str(error)
    return None
