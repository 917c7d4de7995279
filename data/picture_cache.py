"""What was made of a picture file, kept on disk: one file per picture, so that the next run need not make it.

An entry is found by the file's place, size and time of change, and by how it was prepared; a file that was
changed within the clock's grain to one of the same size is taken for the old one. An entry is written beside
its place and moved there whole, so any number of processes can share a folder. One that does not match its
own checksum is made anew. Nothing is ever removed: the folder grows by an entry for every picture and every
way of preparing it, and can be deleted when no run uses it.

Shapes: V views, C channels of H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import safetensors.torch
import torch
from torch import Tensor

from data.errors import DataError
from data.packing import LoadPicture
from data.pictures import Prepared, named_errors

CHECKSUM = 16  # bytes, in front of the tensors
LEVELS = 256  # of a pixel that was eight bits once


@dataclass(frozen=True)
class CachedPictures:
    """Gives a picture from the folder where it is there, else loads it and leaves it there.

    Args:
        load: Loads a picture.
        folder: Where entries lie; the setting of its name is told in errors.
        about: Everything beside the file that decides what `load` gives.
        encode, decode: From views to what is written, and back to the same bits.

    Raises DataError where the folder cannot be written.
    """

    load: LoadPicture
    folder: Path
    about: str
    encode: Callable[[Tensor], dict[str, Tensor]]
    decode: Callable[[dict[str, Tensor]], Tensor]

    def __call__(self, path: Path) -> Prepared:
        """The picture of one path."""
        place = self.folder / entry_name(path, self.about)
        try:
            return self._read(place)
        except (OSError, ValueError, KeyError):  # not there, or not whole
            picture = self.load(path)
        size = torch.tensor(picture.size)
        write_entry(place, {"size": size, **self.encode(picture.views)})
        return picture

    def _read(self, place: Path) -> Prepared:
        tensors = read_entry(place)
        width, height = tensors.pop("size").tolist()
        return Prepared(self.decode(tensors), (width, height))


def cached_pictures(load: LoadPicture, folder: Path, about: str) -> CachedPictures:
    """Keeps prepared pictures in a folder: eight bits per pixel where no more is in them, else all 32."""
    return CachedPictures(load, folder, about, in_levels, from_levels)


def entry_name(path: Path, about: str) -> str:
    """Where the entry of a picture file lies within a folder; DataError where there is no such file."""
    with named_errors(path):
        found = path.stat()
    text = f"{path.resolve()}\n{found.st_size} {found.st_mtime_ns}\n{about}"
    name = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=20).hexdigest()
    return f"{name[:2]}/{name[2:]}"


def read_entry(place: Path) -> dict[str, Tensor]:
    """The tensors of an entry; OSError where there is none, ValueError where it is broken."""
    content = place.read_bytes()
    payload = memoryview(content)[CHECKSUM:]
    if _checksum(payload) != content[:CHECKSUM]:
        raise ValueError(f"{place} is not what was written")
    return safetensors.torch.load(bytes(payload))


def write_entry(place: Path, tensors: dict[str, Tensor]) -> None:
    """Writes an entry, whole or not at all."""
    payload = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    beside = place.with_name(f"{place.name}.{uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(_checksum(payload) + payload)
        beside.replace(place)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise DataError(
            f"{place.parent.parent} cannot be written ({error.strerror}): make room, or choose another "
            "folder for data.picture_cache or data.feature_cache"
        ) from error


def in_levels(views: Tensor) -> dict[str, Tensor]:
    """Views float32[V, C, H, W] as levels uint8[V, C, H, W] and values float32[C, 256], or as they are.

    Preparing works pixel by pixel once a picture has its size, so a channel has one value per level of eight
    bits: their table gives the same bits back, whatever mean and deviation were.
    """
    channels = views.transpose(0, 1).flatten(1)
    values, levels = torch.zeros(len(channels), LEVELS), []
    for index, channel in enumerate(channels):
        found, level = torch.unique(channel, return_inverse=True)
        if len(found) > LEVELS:
            return {"views": views}
        values[index, : len(found)] = found
        levels.append(level.to(torch.uint8))
    shape = (len(channels), len(views), *views.shape[2:])
    return {"levels": torch.stack(levels).view(shape).transpose(0, 1), "values": values}


def from_levels(tensors: dict[str, Tensor]) -> Tensor:
    """The views float32[V, C, H, W] that `in_levels` was given."""
    if "views" in tensors:
        return tensors["views"]
    levels, values = tensors["levels"], tensors["values"]
    channels = [
        each[levels[:, index].flatten().int()].view(levels[:, index].shape)
        for index, each in enumerate(values)
    ]
    return torch.stack(channels, dim=1)


def _checksum(payload: bytes | memoryview) -> bytes:
    return hashlib.blake2b(payload, digest_size=CHECKSUM).digest()
