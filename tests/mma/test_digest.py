"""The digest of a base: of its bytes, whatever lies between them in memory, read where they are."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from mma import digest as module
from mma.digest import digest


def test_it_is_the_sha256_of_names_types_shapes_and_bytes():
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(2, dtype=torch.bfloat16)}
    told = b"a torch.bfloat16 (2,)\n\x80?\x80?b torch.float32 (2, 3)\n" + np.arange(6, dtype="<f4").tobytes()
    assert digest(tensors.items()) == hashlib.sha256(told).hexdigest()


def test_the_layout_in_memory_does_not_matter():
    x = torch.randn(4, 5)
    assert digest([("x", x)]) == digest([("x", x.t().contiguous().t())])
    assert digest([("x", x)]) != digest([("x", x.t().contiguous())])


def test_tensors_are_read_in_place(monkeypatch):
    seen: list[int] = []

    class Hash:
        def update(self, data) -> None:
            if isinstance(data, memoryview):
                seen.append(np.frombuffer(data, dtype=np.uint8).ctypes.data)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr(module.hashlib, "sha256", Hash)
    tensors = {name: torch.nn.Parameter(torch.randn(64, 64)) for name in "ab"}
    digest(tensors.items())
    assert seen == [tensor.data_ptr() for tensor in tensors.values()]
