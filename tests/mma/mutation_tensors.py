"""The ways a safetensors file is spoilt: names, shapes, types, values, and headers that lie about them.

Every kind takes a random generator, a copy of a real folder, and the path of a sentinel file that code in it
would write. Knows nothing of how folders are read.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

NAMES = (
    "../../escape", "/etc/passwd", "a\0b", "..", "", "a\nb", "\x1b[31mred", "ｒouter", "rοuter", "x" * 20_000,
    "\u202egnirts", "con", "a/../../b", "file:///etc/passwd", "${HOME}", "%s%n", "__class__", "\ud800",
)  # fmt: skip
TYPES = {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "I32": 4, "U32": 4}
TYPES |= {"I64": 8, "U64": 8, "C64": 8}


def pick(rng: Random, folder: Path, ending: str = "") -> Path:
    """One of the files."""
    return rng.choice(sorted(path for path in folder.iterdir() if path.name.endswith(ending)))


def take_apart(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def put(file: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> None:
    """Writes a safetensors file with any header, and any length claimed for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def resized(header: dict[str, Any], data: bytes, name: str, filling: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data with other bytes for one tensor; those behind it move."""
    begin, end = header[name]["data_offsets"]
    grown = len(filling) - (end - begin)
    moved = {
        key: {**info, "data_offsets": [x + grown if x >= end else x for x in info["data_offsets"]]}
        for key, info in header.items()
    }
    moved[name]["data_offsets"] = [begin, begin + len(filling)]
    return moved, data[:begin] + filling + data[end:]


# --- what must load


def other_floating_type(rng: Random, folder: Path, sentinel: Path) -> None:
    """Half, bfloat16 or double, tensor by tensor."""
    kinds = (torch.float16, torch.bfloat16, torch.float64)
    for file in sorted(folder.glob("*.safetensors")):
        save_file({name: x.to(rng.choice(kinds)) for name, x in load_file(file).items()}, file)


def header_spelt_otherwise(rng: Random, folder: Path, sentinel: Path) -> None:
    """Other order of the data, other spaces, other metadata."""
    file = pick(rng, folder, ".safetensors")
    header, data = take_apart(file)
    moved, out = {}, b""
    for name in rng.sample(sorted(header), len(header)):
        begin, end = header[name]["data_offsets"]
        moved[name] = {**header[name], "data_offsets": [len(out), len(out) + end - begin]}
        out += data[begin:end]
    if rng.random() < 0.5:
        moved["__metadata__"] = {rng.choice(NAMES[:-1]): rng.choice(NAMES[:-1])}
    put(file, json.dumps(moved, indent=rng.choice((None, 1))).encode() + b" " * rng.randrange(100), out)


# --- what must be refused


def tensors_misnamed(rng: Random, folder: Path, sentinel: Path) -> None:
    """One renamed, one or many too many, or one left out."""
    file = pick(rng, folder, ".safetensors")
    header, data = take_apart(file)
    name = rng.choice(sorted(header))
    near = (name + " ", name.upper(), name.replace(".", "/"), name + "\0", "é" + name, f"../{name}")
    odd = rng.choice(NAMES + near)
    end = header[name]["data_offsets"][1]
    what = rng.randrange(4)
    if what == 0:
        header[odd] = header.pop(name)
    elif what == 1:
        header[odd] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    elif what == 2:
        shape = [rng.choice((2**40, 2**62, 2**63)), 0]
        empty = {"dtype": "F32", "shape": shape, "data_offsets": [end, end]}
        header |= {f"{odd[:9]}{i}": empty for i in range(rng.choice((1, 20_000)))}
    else:
        header, data = resized(header, data, name, b"")
        del header[name]
    put(file, header, data)


def tensors_misshapen(rng: Random, folder: Path, sentinel: Path) -> None:
    """Another number of axes or another length, none included."""
    file = pick(rng, folder, ".safetensors")
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    x = tensors[name]
    choices = (
        x[None],
        x[..., None],
        x[:0],
        x.flatten()[0],
        x.flatten() if x.ndim > 1 else x[None],
        x.reshape(*[1] * 60, *x.shape),
        torch.cat([x, x]),
        torch.cat([x, x], dim=-1),
    )
    tensors[name] = rng.choice(choices).contiguous()
    save_file(tensors, file)


def tensors_of_another_type(rng: Random, folder: Path, sentinel: Path) -> None:
    """Whole, boolean, complex or tiny numbers, of the right shape and number of bytes."""
    file = pick(rng, folder, ".safetensors")
    header, data = take_apart(file)
    name = rng.choice(sorted(header))
    kind, size = rng.choice(sorted(TYPES.items()))
    begin, end = header[name]["data_offsets"]
    header, data = resized(header, data, name, bytes(rng.choices((0, 1), k=(end - begin) // 4 * size)))
    header[name]["dtype"] = kind
    put(file, header, data)


def tensors_not_finite(rng: Random, folder: Path, sentinel: Path) -> None:
    """One value that is no number, or none of 32 bits."""
    file = pick(rng, folder, ".safetensors")
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    if rng.random() < 0.3:
        tensors[name] = tensors[name].to(rng.choice((torch.float16, torch.bfloat16, torch.float64)))
    largest = 1e300 if tensors[name].dtype == torch.float64 else float("inf")
    flat = tensors[name].view(-1)
    flat[rng.randrange(len(flat))] = rng.choice((float("nan"), float("inf"), -float("inf"), largest))
    save_file(tensors, file)


def header_claims_wrongly(rng: Random, folder: Path, sentinel: Path) -> None:
    """A type, shape or place that the data does not have."""
    file = pick(rng, folder, ".safetensors")
    header, data = take_apart(file)
    info = rng.choice([header[name] for name in sorted(header)])
    begin, end = info["data_offsets"]
    shapes = (
        [2**40, 2**40],
        [2**63],
        [10**30],
        [-1],
        [1.0],
        [True],
        "2",
        [[]],
        None,
        [1] * 100_000 + info["shape"],
    )
    types = "f32", "F32\nF32", "x" * 100_000, 7, None, "F4", "torch.float32", "../F32"
    offsets = (
        [begin, end + 4],
        [end, begin],
        [-begin - 4, end],
        [begin + 1, end],
        [2**63, 2**64],
        [begin],
        [begin, end, end],
        [str(begin), str(end)],
        {"begin": begin},
    )
    key, values = rng.choice((("shape", shapes), ("dtype", types), ("data_offsets", offsets)))
    if rng.random() < 0.1:
        del info[key]
    else:
        info[key] = rng.choice(values)
    put(file, header, data)


def header_broken(rng: Random, folder: Path, sentinel: Path) -> None:
    """A header of another length than it says, that is not JSON, or names a tensor twice."""
    file = pick(rng, folder, ".safetensors")
    header, data = take_apart(file)
    text = json.dumps(header).encode()
    first = json.dumps(dict([next(iter(header.items()))])).encode()
    lengths = 2**63, 2**64 - 1, 99_000_000, 2**23 + 1, len(text) - 1, len(text) + 4, 0
    texts = (
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b"",
        first[:-1] + b"," + text[1:],
        b"\xef\xbb\xbf" + text,
        text.replace(b'"F32"', b'"F\xff2"', 1),
        text + b"\0",
        text + b",",
        b" " * 2**24 + text,
        text.replace(b"{", b'{"__metadata__":3,', 1),
        text.replace(b"{", b'{"__metadata__":{"a":3},', 1),
    )
    if rng.random() < 0.4:
        put(file, text, data, rng.choice(lengths))
    else:
        put(file, rng.choice(texts), data)
