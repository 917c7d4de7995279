"""The tensors of a safetensors file as views of the file, for a header that safetensors has checked.

safetensors' own `get_tensor` keeps some 60 bytes of every tensor it reads (0.8.0): a server that swaps a 7B
adapter a thousand times would lose 20 MB. It still opens and checks the file; only the views are made here.
Knows no names.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def views(file_path: Path, header: Mapping[str, Any], start: int) -> dict[str, Tensor]:
    """Every tensor of the header; its bytes are read when they are looked at, and never written back.

    Raises ValueError for a type that no adapter has.
    """
    with file_path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _view(content, start, entry) for name, entry in header.items() if name != "__metadata__"}


def _view(content: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"a tensor of the type {entry['dtype']}")
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    first, end = entry["data_offsets"]
    if first == end:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype, count=(end - first) // dtype.itemsize, offset=start + first)
    return flat.reshape(shape)
