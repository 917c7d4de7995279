"""The ways an adapter folder is spoilt: bytes, JSON, files that are none, pickles with code in them.

Every kind takes a random generator, a copy of a real folder, and the path of a sentinel that code in it would
make; it may return another path to load. Knows nothing of how folders are read.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.mma import mutation_tensors as tensors
from tests.mma.mutation_tensors import NAMES, pick, put, take_apart

Kind = Callable[[Random, Path, Path], "Path | None"]
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
NUMBERS = (0, -1, 1, 2, 3, 16, 65536, 65537, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308)
OTHERS = (float("nan"), float("inf"), True, False, None, {}, {"a": 1}, "x" * 20_000, "text", *NAMES)
LISTS = [], [[]], [1] * 20_000, ["text", "image", 3], ["image", "text"], ["a", "a"], [0], [1, 1], [10**30]
VALUES: tuple[Any, ...] = (*NUMBERS, *OTHERS, *LISTS)
SPELT = "8.0 8e0 +8 0x8 08 1e400 -1e400 1e-400 -0 -0.0 8_0 8.000000000000000000001 ８ 1E1 .5 5. Infinity -NaN"
VERSIONS = "1.0", "1.7", "1.999999", "2.0", "0.9", "1", "1.", ".1", "1.1.1", "1.-1", "１.１", "1.x", "1.1\n"
PEFT_TYPES = "MMA", "BOTTLENECK", "LORA", "mma", "IA3", ["MMA"], {"MMA": 1}, 7, "MMA\0", "ＭＭＡ", None
ODD_FILES = "/dev/zero", "/dev/full", "/dev/null", "/dev/tty", "/proc/kmsg", "/proc/kcore", "/proc/self/mem"


class Payload:
    """Makes the sentinel when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


def pickled(rng: Random, sentinel: Path, file: Path) -> None:
    """A pickle with code in it, plain or in one of PyTorch's two formats."""
    content = {"weight": torch.zeros(2), "evil": Payload(sentinel)}
    form = rng.randrange(3)
    if form == 0:
        file.write_bytes(pickle.dumps(content, protocol=rng.randrange(6)))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == 1)


def table_of(file: Path) -> dict[str, Any]:
    """The table in a JSON file."""
    content: dict[str, Any] = json.loads(file.read_text())
    return content


# --- what must load


def untouched(rng: Random, folder: Path, sentinel: Path) -> None:
    """The folder as it was saved."""


def json_spelt_otherwise(rng: Random, folder: Path, sentinel: Path) -> None:
    """Other order, other spaces, letters by their numbers."""
    file = pick(rng, folder, ".json")
    content = table_of(file)
    space = rng.choice((" ", "\n", "\r\n\t", ""))
    lines = []
    for key in rng.sample(sorted(content), len(content)):
        spelt = "".join(f"\\u{ord(letter):04x}" for letter in key) if rng.random() < 0.5 else key
        lines.append(
            f'{space}"{spelt}"{space}:{space}{json.dumps(content[key], indent=rng.choice((None, 3)))}'
        )
    file.write_text(f"{space}{{{','.join(lines)}}}{space}")


def what_is_never_read(rng: Random, folder: Path, sentinel: Path) -> None:
    """Anything where things are told, and instead of the model card."""
    for file in sorted(folder.glob("*.json")):
        content = table_of(file)
        told = content.keys() & {"sites", "provenance", "routing_table", "base"}
        content |= {key: rng.choice(VALUES) for key in sorted(told)}
        file.write_text(json.dumps(content))
    card = folder / "README.md"
    card.unlink()
    rng.choice((lambda: card.write_bytes(rng.randbytes(9)), card.mkdir, lambda: card.symlink_to(card), str))()


def extra_files_with_code(rng: Random, folder: Path, sentinel: Path) -> None:
    """Files beside the adapter that other programs would load or import."""
    for name in ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "a.pkl"):
        pickled(rng, sentinel, folder / name)
    for name in ("__init__.py", "sitecustomize.py", "conftest.py", "adapter_model.py", "json.py", "a.pth"):
        (folder / name).write_text(f"import os; os.mkdir({str(sentinel)!r})\n")


def links_to_the_files(rng: Random, folder: Path, sentinel: Path) -> None:
    """The folder elsewhere, or its files, as a cache of downloads has them."""
    away = folder.with_name("away")
    shutil.move(folder, away)
    if rng.random() < 0.3:
        folder.symlink_to(away)
        return
    folder.mkdir()
    for file in away.iterdir():
        (folder / file.name).symlink_to(file)


# --- what must be refused


def pickle_in_place_of_a_file(rng: Random, folder: Path, sentinel: Path) -> None:
    """A pickle under the name of a file that is read."""
    pickled(rng, sentinel, folder / rng.choice((CONFIG, TENSORS)))
    pickled(rng, sentinel, folder / "adapter_model.bin")


def no_file(rng: Random, folder: Path, sentinel: Path) -> None:
    """Nothing, a folder, a pipe, a socket, a device, a loop or an empty file where a file should be."""
    file = folder / rng.choice((CONFIG, TENSORS))
    file.unlink()
    target = rng.choice((file.name, "nowhere", "../" * 50, "x" * 255, *ODD_FILES))
    choices: tuple[Callable[[], object], ...] = (
        str,
        file.mkdir,
        file.touch,
        lambda: os.mkfifo(file),
        lambda: os.mknod(file, stat.S_IFSOCK | 0o600),
        lambda: file.symlink_to(target),
        lambda: file.symlink_to(target),
    )
    rng.choice(choices)()


def no_folder(rng: Random, folder: Path, sentinel: Path) -> Path | None:
    """A path that names no folder, or one that is a pipe, a loop or empty."""
    if rng.random() < 0.5:
        return Path(
            rng.choice((*ODD_FILES, folder / "README.md", f"a\0{folder}", folder / ("x" * 300), "x/" * 3000))
        )
    shutil.rmtree(folder)
    rng.choice((lambda: os.mkfifo(folder), lambda: folder.symlink_to(folder), folder.mkdir, str))()
    return None


def truncated(rng: Random, folder: Path, sentinel: Path) -> None:
    """A file cut off anywhere."""
    file = folder / rng.choice((CONFIG, TENSORS))
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) - 2)])


def json_broken(rng: Random, folder: Path, sentinel: Path) -> None:
    """What is no JSON in UTF-8, or no table, or has a key twice, or is nested or long beyond reason."""
    file = pick(rng, folder, ".json")
    whole = file.read_bytes()
    text = whole.decode()
    deep = rng.choice((40, 900, 990, 100_000))
    tries = (
        *(b"null", b"[]", b'"a"', b"3", b"NaN", b"{", rng.randbytes(1000)),
        *(b"[" * deep, b'{"a":' * deep, b'{"a":' * deep + b"1" + b"}" * deep),
        *(
            b"\xef\xbb\xbf" + whole,
            text.encode("utf-16"),
            text.encode("utf-32"),
            whole + b"\0",
            whole + whole,
        ),
        *(whole.replace(b"\n}", b",\n}"), b"// settings\n" + whole, whole.replace(b'"', b"'")),
        whole.replace(b"{", b'{"a": ' + b"[" * deep + b"]" * deep + b",", 1),
        whole.replace(b'"r"', b'"\xff"', 1),
        whole.replace(b'"r": ', b'"r": 9' + b"9" * rng.choice((5000, 500_000))),
        whole.replace(b"{", b'{"r": 8,', 1),
        whole.replace(b"{", b'{"\\u0072": 8,', 1),
        whole.replace(b"{", b'{"' + b"x" * 2_000_000 + b'": 1,', 1),
        whole + b" " * 3_000_000,
        b"{" + b",".join(b'"k%d":[]' % (i // 2) for i in range(60_000)) + b"}",
    )
    file.write_bytes(rng.choice(tries))


def huge_files(rng: Random, folder: Path, sentinel: Path) -> None:
    """Files with holes: gigabytes to read, and next to nothing on the disk."""
    size = rng.choice((3, 30)) * 2**30
    file = folder / rng.choice((CONFIG, TENSORS))
    header, _ = take_apart(folder / TENSORS)
    name = rng.choice(sorted(header))
    if rng.random() < 0.5:
        header = {name: header[name]}
    header[name] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    if rng.random() < 0.7:
        put(file, header, b"")
    else:
        put(file, b"", b"", rng.choice((size - 8, 99_000_000)))
    os.truncate(file, file.stat().st_size + size)


def huge_settings(rng: Random, folder: Path, sentinel: Path) -> None:
    """Sizes of which modules would not fit into any memory."""
    size = rng.choice((4096, 30_000, 65536, 65537, 10**9, 2**63 - 1, 2**63, 10**30, 10**400))
    names = ["text", "image", *(str(i) for i in range(rng.choice((3, 50_000))))]
    layers = list(range(2, rng.choice((9, 50_000))))
    sizes = {"r": size, "routes": size, "projector_hidden": size, "modalities": names, "layers": layers}
    content = table_of(folder / CONFIG)
    keys = sorted(sizes.keys() & content)
    content |= {key: sizes[key] for key in rng.sample(keys, rng.randint(1, len(keys)))}
    (folder / CONFIG).write_text(json.dumps(content))


# --- what the strict reader decides


def bytes_changed(rng: Random, folder: Path, sentinel: Path) -> None:
    """Bits flipped, bytes put in, taken out or written over, in any file."""
    file = pick(rng, folder)
    content = bytearray(file.read_bytes())
    reach = rng.choice((len(content), 3000))  # settings and headers are small and lie in front
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(max(1, min(reach, len(content))))
        old = bytes(content[place : place + rng.randint(1, 9)])
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in old[:1]) + old[1:]
        other = rng.choice((b"\0" * 4, b"\xff" * 4, b'"', b"}", b"9999", bytes(content[:4])))
        content[place : place + len(old)] = rng.choice((flipped, flipped, rng.randbytes(3) + old, b"", other))
    file.write_bytes(content)


def setting_changed(rng: Random, folder: Path, sentinel: Path) -> None:
    """Any value for one key."""
    file = pick(rng, folder, ".json")
    content = table_of(file)
    content[rng.choice(sorted(content))] = rng.choice(VALUES)
    file.write_text(json.dumps(content))


def setting_renamed(rng: Random, folder: Path, sentinel: Path) -> None:
    """One key under another name, or left out."""
    file = pick(rng, folder, ".json")
    content = table_of(file)
    key = rng.choice(sorted(content))
    value = content.pop(key)
    if rng.random() < 0.7:
        near = key + " ", key.upper(), key[:-1], key[:-1] + "е", "format_version", "__proto__", "self", "cls"
        content[rng.choice(NAMES + near)] = value
    file.write_text(json.dumps(content))


def number_spelt_oddly(rng: Random, folder: Path, sentinel: Path) -> None:
    """A number that JSON does not have, or has in more than one way."""
    file = pick(rng, folder, ".json")
    content = table_of(file)
    key = rng.choice(sorted(key for key, value in content.items() if type(value) in (int, float)))
    odd = rng.choice((*SPELT.split(), "1" * 400, "1" * 5000, f"{content[key]}e0", f"{content[key]}.0"))
    file.write_text(json.dumps({**content, key: "PLACE"}).replace('"PLACE"', odd))


def version_or_kind_changed(rng: Random, folder: Path, sentinel: Path) -> None:
    """Another version, with or without a setting that only that one would know, or another kind."""
    file = pick(rng, folder, ".json")
    content = table_of(file)
    if rng.random() < 0.7:
        content["format_version"] = rng.choice((*VERSIONS, *VERSIONS, *VALUES))
    else:
        content["peft_type"] = rng.choice(PEFT_TYPES)
    file.write_text(json.dumps({**content, "warmth": 3} if rng.random() < 0.5 else content))


def files_of_two_adapters(rng: Random, folder: Path, sentinel: Path) -> None:
    """The settings of one adapter with the tensors of another."""
    others = sorted(path for path in sentinel.parent.glob("saved/*"))
    name = rng.choice(sorted(path.name for path in folder.iterdir()))
    sources = [other / name for other in others if (other / name).is_file()]
    shutil.copy(rng.choice(sources), folder / name)


LOADS: tuple[Kind, ...] = (
    *(untouched, json_spelt_otherwise, what_is_never_read, extra_files_with_code, links_to_the_files),
    *(tensors.other_floating_type, tensors.header_spelt_otherwise),
)
REFUSED: tuple[Kind, ...] = (
    *(pickle_in_place_of_a_file, no_file, no_folder, truncated, json_broken, huge_files),
    *(tensors.tensors_misnamed, tensors.tensors_misshapen, tensors.tensors_of_another_type),
    *(tensors.tensors_not_finite, tensors.header_claims_wrongly, tensors.header_broken),
)
EITHER: tuple[Kind, ...] = (
    *(bytes_changed, setting_changed, setting_renamed, number_spelt_oddly, version_or_kind_changed),
    *(files_of_two_adapters, huge_settings),
)
KINDS: tuple[Kind, ...] = (*LOADS, *REFUSED, *EITHER, bytes_changed, setting_changed)
