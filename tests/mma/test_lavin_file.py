"""Checkpoints that are damaged, or made to do harm: one line each, and nothing happens."""

from __future__ import annotations

import argparse
import os
import random
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mma import AdapterError
from mma.lavin import from_lavin, read_lavin
from mma.lavin_file import read
from tests.mma.lavin_files import published, write

PROTOCOL = b"\x80\x02"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


def archive(path: Path, code: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    """A file as torch writes it around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", code)
        for name, content in {"version": b"3\n", "byteorder": b"little", **records}.items():
            file.writestr(f"a/{name}", content)
    return path


def refuse(path: Path, message: str) -> None:
    """Reading is refused at once, in one short line with this message."""
    start = time.monotonic()
    with pytest.raises(AdapterError, match=message) as caught:
        read_lavin(path)
    assert time.monotonic() - start < 10
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


def bomb(levels: int) -> bytes:
    """A dictionary whose one key is a pair of pairs of pairs, each the same pair twice."""
    code = b"})q\x00"
    for level in range(levels):
        code += b"h%ch%c\x86q%c" % (level, level, level + 1)
    return code + b"K\x01s."


CODES = {
    "a call": (
        b"cos\nsystem\nX\x05\x00\x00\x00touch\x85R.",
        "it names 'os system', which no checkpoint does",
    ),
    "an old call": (b"(X\x02\x00\x00\x00idios\nsystem\n.", "torch's restricted loader refuses it"),
    "a new call": (b"\x8c\x02os\x8c\x06system\x93.", "torch's restricted loader refuses it"),
    "another protocol": (b"\x80\x04}.", "it is a pickle of protocol 4, torch writes 2"),
    "an allocation": (
        b"c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
        "'__builtin__ bytearray'",
    ),
    "another allocation": (b"ctorch\nTensor\nJ\x00\x00\x00\x7f\x85R.", "it names 'torch Tensor'"),
    "a long name": (b"cos\n" + b"a" * 99999 + b"\n.", "it names 'os aaaa.* characters"),
    "pairs of pairs": (bomb(60), "it unfolds beyond measure"),
    "deep": (b"})" + b"\x85" * 500_000 + b"K\x01s.", "it unfolds beyond measure"),
    "a list of itself": (b"]q\x00" + b"h\x00a" * 60 + b".", "it unfolds beyond measure"),
    "long": (b"N" * 2**21 + b".", "its pickle is too long"),
    "an empty stack": (b"s.", "pop from empty list"),
    "a lone mark": (b"}(K\x01s.", "a mark stands where a value should"),
    "an empty memo": (b"h\x07.", "cannot be read"),
    "no end": (b"}", "pickle exhausted"),
    "a class built of a number": (b"cargparse\nNamespace\n)\x81K\x01b.", "cannot be read"),
    "a class called": (b"cargparse\nNamespace\nK\x01\x85R.", "cannot be read"),
    "a storage elsewhere": (
        STORAGE.replace(b"\x01\x00\x00\x000", b"\x09\x00\x00\x00../../../") + b"K\x01tQ.",
        "cannot be read.*failed locating file",
    ),
    "only a storage": (STORAGE + b"J\xff\xff\xff\x7ftQ.", "holds no LaVIN model"),
    "a number": (b"K\x01.", "holds no LaVIN model"),
}


@pytest.mark.parametrize("case", CODES)
def test_a_harmful_pickle_is_refused(tmp_path, case):
    code, message = CODES[case]
    refuse(archive(tmp_path / "a.pth", PROTOCOL + code, **{"data/0": b"1234"}), message)


def test_nothing_in_a_checkpoint_is_called(state, tmp_path):
    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "called"),)

    refuse(write(tmp_path / "a.pth", state, output_dir=Call()), "it names '.* mkdir', which no")
    assert not (tmp_path / "called").exists()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    code = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE
        + b"J\xff\xff\xff\x7ftQK\x00J\xff\xff\xff\x7f\x85K\x01\x85"
    )
    code += b"\x89ccollections\nOrderedDict\n)RtR"
    model = PROTOCOL + b"}X\x05\x00\x00\x00model}X\x01\x00\x00\x00x" + code + b"ss."
    refuse(archive(tmp_path / "a.pth", model, **{"data/0": b"1234"}), "cannot be read.*resiz")


def test_a_file_that_unpacks_to_more_is_refused(tmp_path):
    refuse(
        archive(tmp_path / "a.pth", PROTOCOL + b"}.", zipfile.ZIP_DEFLATED, zeros=bytes(10**7)),
        "it unpacks to more than it is",
    )


def test_an_archive_of_another_kind_is_refused(tmp_path):
    refuse(archive(tmp_path / "a.pth", PROTOCOL + b"}.", **{"constants.pkl": b""}), "a TorchScript archive")
    refuse(archive(tmp_path / "b.pth", PROTOCOL + b"}.", **{"more/data.pkl": b""}), "it holds 2 pickles")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as file:
        file.writestr("text", "hello")
    refuse(tmp_path / "c.pth", "it holds 0 pickles")
    torch.save({"model": {}}, tmp_path / "d.pth", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "d.pth", "not a zip file")
    refuse(tmp_path, "there is no file")
    refuse(tmp_path / ("a" * 300), "there is no file")


def test_a_flipped_bit_is_found(state, tmp_path):
    path = write(tmp_path / "a.pth", state)
    content = bytearray(path.read_bytes())
    place = content.index(state["module.adapter_modality_embedding.weight"].numpy().tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    refuse(path, r"/data/\d+ does not have its checksum")


EMBEDDING = "module.adapter_modality_embedding.weight"
ODD: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[object, object]], str]] = {
    "a name that is a number": (lambda state: {**state, 3: torch.zeros(1)}, "has tensors without a name"),
    "a name without the prefix": (
        lambda state: {**state, EMBEDDING.removeprefix("module."): torch.zeros(1)},
        "has names with and without 'module.': adapter_modality_embedding.weight",
    ),
    "a name of several lines": (lambda state: {**state, "module.a\nb\r" + "c" * 9999: 1}, r"'a\\nb\\rccc"),
    "another number": (
        lambda state: {**state, "module.layers.٣.adapter_attn.conv_A.bias": torch.zeros(1)},
        "tensors LaVIN does not train",
    ),
    "whole numbers": (
        lambda state: {**state, EMBEDDING: torch.zeros(2, 32, dtype=torch.int64)},
        "tensors of no floating type: adapter_modality_embedding.weight",
    ),
    "one value a billion times": (
        lambda state: {**state, EMBEDDING: torch.zeros(1).expand(2, 10**9)},
        "are larger than the file",
    ),
    "no axis": (lambda state: dict.fromkeys(state, torch.tensor(1.0)), "missing or misshapen"),
    "routes of two types": (
        lambda state: {
            name: tensor.half() if name.endswith("conv_D.weight") else tensor
            for name, tensor in state.items()
        },
        "the routes of decoder.blocks.0.attn_norm differ in shape or type",
    ),
    "routes of two widths": (
        lambda state: {
            **state,
            "module.layers.0.adapter_attn.conv_B.bias": torch.zeros(31),
            "module.layers.0.adapter_attn.conv_D.bias": torch.zeros(33),
        },
        "the routes of decoder.blocks.0.attn_norm differ in shape or type",
    ),
    "nothing": (lambda state: {}, "missing or misshapen"),
    "a convolution of three": (
        lambda state: {**state, "module.layers.0.adapter_attn.conv_A.weight": torch.zeros(8, 32, 3)},
        r"layers\.0\.adapter_attn\.conv_A\.weight is \(8, 32, 3\), not a 1x1 convolution",
    ),
}


@pytest.fixture
def state(tiny_system) -> dict[str, torch.Tensor]:
    """The tiny system's adapter as the public code would store it."""
    return published(tiny_system().model.adapters.trainable_parameters())


@pytest.mark.parametrize("case", ODD)
def test_odd_tensors_are_refused(state, tmp_path, case):
    change, message = ODD[case]
    refuse(write(tmp_path / "a.pth", change(state)), message)


def test_what_a_run_leaves_in_a_checkpoint_is_let_in(state, tmp_path):
    """Optimizer states of all types, sets, devices: they are not kept, but nothing is wrong with them."""
    path = tmp_path / "a.pth"
    moments = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    counts = {"step": torch.tensor(7), "codes": torch.zeros(9, dtype=torch.uint8)}
    content = {
        "model": OrderedDict(state),
        "optimizer": {"state": {0: {**moments, **counts}}, "param_groups": [{"betas": (0.9, 0.95)}]},
        "args": argparse.Namespace(device=torch.device("cuda"), options=list("ABCDE"), seen={1, 2}),
    }
    torch.save(content, path)
    assert read(path)["args"].device == torch.device("cuda")
    assert read_lavin(path).missing.startswith("its namespace lacks")


def test_mutated_checkpoints_give_one_line_or_are_read(state, tmp_path):
    """The pickle is changed and its checksum made right again, so that the change is met further in."""
    path = write(tmp_path / "a.pth", state)
    with zipfile.ZipFile(path) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    code = records.pop("data.pkl")
    chance = random.Random(0)
    messages = []
    for _ in range(300):
        mutated = bytearray(code)
        for _ in range(chance.choice((1, 1, 2, 5))):
            place = chance.randrange(len(mutated))
            end = min(len(mutated), place + chance.randrange(60))
            kind = chance.randrange(4)
            if kind == 0:
                mutated[place] = chance.randrange(256)
            elif kind == 1:
                del mutated[place:end]
            elif kind == 2:
                mutated[place:place] = mutated[place:end]
            else:
                mutated[place] = chance.choice(b"()]}.NtqhKRsubQae0\x85\x86\x87\x81\x88\x89")
        archive(path, bytes(mutated), **records)
        try:
            from_lavin(path, tmp_path / "folder")
        except AdapterError as error:
            messages.append(str(error))
    assert 200 < len(messages) < 300
    assert all(len(message.splitlines()) == 1 and len(message) < 600 for message in messages)
