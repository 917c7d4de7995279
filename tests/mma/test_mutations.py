"""Spoilt adapter folders, some hundred of them; and the campaign that loads them would notice a fault."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mma import AdapterError, LoraConfig, MMAConfig
from mma.folder import CONFIG, TENSORS, check_tensors, read_description, read_tensors
from tests.mma import mutations
from tests.mma.mutation_kinds import KINDS, LOADS
from tests.mma.mutations import Lab, Outcome, campaign, main, table


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("mutations") / "lab")


@pytest.fixture
def saved(lab, tmp_path) -> Path:
    """A real adapter folder."""
    (tmp_path / "adapter").mkdir()
    for file in (lab.root / "saved" / "token").iterdir():
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "adapter"


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.__name__ for kind in KINDS])
def test_a_spoilt_folder_is_refused_in_one_line_or_loaded_as_it_is(lab, number):
    outcomes = [lab.run(number + turn * len(KINDS)) for turn in range(8)]
    assert [outcome for outcome in outcomes if outcome.violations] == []


def refuse(path: Path) -> None:
    raise AdapterError(f"adapter: {path} is refused")


def key_error(lab: Lab, path: Path, name: str) -> None:
    raise KeyError("r")


def long_message(lab: Lab, path: Path, name: str) -> None:
    raise AdapterError(f"adapter: {path} {'x' * 1000}")


def two_lines(lab: Lab, path: Path, name: str) -> None:
    raise AdapterError(f"adapter: {path}\nis refused")


def no_path(lab: Lab, path: Path, name: str) -> None:
    raise AdapterError("adapter: it is refused")


def loads_nothing(lab: Lab, path: Path, name: str) -> None:
    pass


def loads_another(lab: Lab, path: Path, name: str) -> None:
    lab.adapters.load_adapter(lab.root / "saved" / "token", name)


def other_values(lab: Lab, path: Path, name: str) -> None:
    lab.adapters.load_adapter(path, name)
    with torch.no_grad():
        next(iter(lab.adapters.trainable_parameters().values())).view(-1)[0] += 1e-3


def other_setting(lab: Lab, path: Path, name: str) -> None:
    lab.adapters.load_adapter(path, name)
    lab.adapters.configs[name] = replace(lab.adapters.config, dropout=0.5)


def refuses_all(lab: Lab, path: Path, name: str) -> None:
    refuse(path)


def leaves_a_module(lab: Lab, path: Path, name: str) -> None:
    lab.adapters.model.add_module(f"left_{time.monotonic_ns()}", torch.nn.Identity())
    refuse(path)


def unfreezes(lab: Lab, path: Path, name: str) -> None:
    parameter = next(iter(lab.adapters.base.values()))
    parameter.requires_grad_(not parameter.requires_grad)
    refuse(path)


def writes(lab: Lab, path: Path, name: str) -> None:
    with torch.no_grad():
        next(iter(lab.adapters.base.values())).add_(1)
    refuse(path)


def unpickles(lab: Lab, path: Path, name: str) -> None:
    for file in path.glob("adapter_*"):
        with contextlib.suppress(Exception):
            pickle.loads(file.read_bytes())
        with contextlib.suppress(Exception):
            torch.load(file, weights_only=False)
    refuse(path)


def hangs(lab: Lab, path: Path, name: str) -> None:
    time.sleep(60)


def computes(lab: Lab, path: Path, name: str) -> None:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    refuse(path)


def fills_memory(lab: Lab, path: Path, name: str) -> None:
    _ = b"x" * 2**28
    refuse(path)


FAULTS: dict[Callable[[Lab, Path, str], None], str] = {
    key_error: "KeyError: \"'r'\"",
    long_message: "the message has 10",
    two_lines: "the message is not one printable line",
    no_path: "the message does not name the folder",
    loads_nothing: "loaded nothing",
    loads_another: "loaded what should be refused",
    other_values: "has other values than the file",
    other_setting: "dropout is 0.5, the file has 0.0",
    refuses_all: "refused, but such a folder must be loaded",
    leaves_a_module: "refused, and the model is not as it was",
    unfreezes: "refused, and the model is not as it was",
    writes: "refused, and the model is not as it was",
    unpickles: "executed code in the folder",
    hangs: "Slow: 'no end after 0.2 s'",
    computes: r"took 0\.[1-9] s",
    fills_memory: "of memory",
}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_fault_of_the_loader_is_noticed(lab, monkeypatch, fault):
    if fault in (hangs, computes):
        monkeypatch.setattr(mutations, "SECONDS", 0.05)
    if fault is fills_memory and not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is counted on Linux only")
    monkeypatch.setattr(lab, "load", lambda path, name: fault(lab, path, name))
    found = (text for seed in range(len(LOADS) + 6) for text in lab.run(seed).violations)
    assert any(re.search(FAULTS[fault], text) for text in found)
    assert not lab.sentinel.exists()
    monkeypatch.undo()
    assert lab.run(0) == Outcome(0, "untouched", "loaded", ())


def test_the_command_prints_what_came_of_it(monkeypatch, capsys):
    good = [Outcome(seed, "untouched", "loaded", ()) for seed in (3, 4)]
    bad = Outcome(5, "no file", "broken", ("KeyError: 'r'",))
    monkeypatch.setattr(mutations, "campaign", lambda seeds, workers, root: iter(good))
    assert main(["--count", "2", "--seed", "3"]) == 0
    assert "2 folders in 0 s, 0 with a violation" in capsys.readouterr().out
    monkeypatch.setattr(mutations, "campaign", lambda seeds, workers, root: iter([*good, bad]))
    assert main(["--count", "3", "--seed", "3"]) == 1
    told = capsys.readouterr().out
    assert "seed 5 (no file): KeyError: 'r'" in told
    assert "3 folders in 0 s, 1 with a violation" in told


def test_the_table_counts_by_kind_and_end():
    lines = table(
        [Outcome(0, "a", "refused", ()), Outcome(1, "a", "loaded", ()), Outcome(2, "b", "refused", ("x",))]
    )
    assert [line.split() for line in lines.split("\n")[1:]] == [
        ["a", "1", "1", "0", "0", "0"],
        ["b", "1", "0", "0", "0", "1"],
        ["all", "2", "1", "0", "0", "1"],
    ]


class Deadly:
    """Takes the process down that unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (3,)


def test_a_worker_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "run_batch", Deadly())
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "seed").write_text("9")
    (outcome,) = campaign(range(5, 10), 1, tmp_path)
    assert outcome.verdict == "broken"
    assert "abruptly" in outcome.violations[0]
    assert "One of the seeds 9 did it." in outcome.violations[0]


# --- each found by a campaign


def write_json(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)


JSON = {
    "twice": (b'{"r": 8, "\\u0072": 9}', r"is not JSON \('r' is there twice\)"),
    "deep": (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", r"is not JSON \(nested deeper than 32\)"),
    "deeper": (b"[" * 100_000, r"is not JSON \(maximum recursion depth"),
    "long": (b" " * 2**21 + b"{}", r"is not JSON \(2097154 bytes are too many for settings\)"),
    "digits": (b'{"r": ' + b"9" * 5000 + b"}", r"is not JSON \(Exceeds the limit"),
    "a kind of many letters": (
        json.dumps({"peft_type": "x" * 9999}).encode(),
        r"has peft_type 'x+\.\.\. \(10001 characters\), not one of",
    ),
    "no word for a kind": (b'{"peft_type": ["MMA"]}', r"has peft_type \['MMA'\], not one of MMA"),
    "a version of two lines": (
        b'{"peft_type": "MMA", "format_version": "1\\n.0"}',
        r"has format version '1\\n.0', this program reads",
    ),
    "a number for a version": (
        b'{"peft_type": "MMA", "format_version": 1.1}',
        "has format version 1.1, this",
    ),
}


@pytest.mark.parametrize("name", JSON)
def test_odd_settings_are_refused(saved, name):
    content, message = JSON[name]
    write_json(saved, content)
    with pytest.raises(AdapterError, match=message) as caught:
        read_description(saved)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 65538}, "r is 65538; it must be at most 65536"),
        ({"r": 10**400}, r"r is 10+\.\.\. \(401 characters\); it must be at most 65536"),
        ({"scale": 10**400}, r"scale is 10+\.\.\. \(401 characters\); it must be a number, at most 1e18"),
        ({"temperature": 1e-320}, "temperature is 1e-320; it must be positive, at least 1e-6"),
        ({"modalities": tuple(map(str, range(65)))}, "there are 65 modalities; name at most 64"),
        (
            {"modalities": ("x" * 999, "x" * 999)},
            r"modalities are \('x+\.\.\. \(2006 characters\); name each once",
        ),
    ],
)
def test_odd_values_are_refused(values, message):
    with pytest.raises(AdapterError, match=message):
        MMAConfig(**values)


def test_a_swap_that_does_not_fit_is_told_in_a_line():
    odd = LoraConfig(modalities=("text", "x" * 9999))
    assert len(odd.differences(LoraConfig())) < 200


HEADERS = {
    "too long": (struct.pack("<Q", 2**60), r"cannot be read, .*\(a header of 1152921504606846976 bytes\)"),
    "twice": (b'{"a": 1, "a": 1}', r"cannot be read, .*\('a' is there twice\)"),
    "two lines": (b'{"a": {"dtype": "F\\n2", "shape": [0], "data_offsets": [0, 0]}}', "cannot be read"),
    "overflow": (
        b'{"a": {"dtype": "F32", "shape": [9223372036854775808, 0], "data_offsets": [0, 0]}}',
        "be read",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_are_refused(tmp_path, name):
    content, message = HEADERS[name]
    file = tmp_path / TENSORS
    file.write_bytes(content if name == "too long" else struct.pack("<Q", len(content)) + content)
    with pytest.raises(AdapterError, match=message) as caught:
        read_tensors(file)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_tensor_that_is_not_finite_is_named(saved, value):
    tensors = {name: tensor.double() for name, tensor in load_file(saved / TENSORS).items()}
    tensors["modality.weight"][1, 3] = value
    with pytest.raises(AdapterError, match=r"modality\.weight in .* is not finite, its training has failed"):
        check_tensors(saved, tensors, {name: tensor.shape for name, tensor in tensors.items()})


def test_numbers_of_eight_bits_are_not_read(saved):
    tensors = {"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    with pytest.raises(
        AdapterError, match=r"a in .* is of torch\.float8_e4m3fn, not a floating type of 16 bits"
    ):
        check_tensors(saved, tensors, {"a": torch.Size([2])})


def test_a_name_of_two_lines_is_told_in_one(lab, saved):
    save_file({**load_file(saved / TENSORS), "a\nb": torch.zeros(1)}, saved / TENSORS)
    with pytest.raises(AdapterError, match=r"has 1 tensors too many: 'a\\nb'; save or fetch it again"):
        lab.adapters.load_adapter(saved, "odd")


def test_settings_that_no_memory_holds_are_refused_by_the_shapes(lab, saved):
    content = json.loads((saved / CONFIG).read_text())
    write_json(saved, json.dumps({**content, "r": 65536, "routes": 65536}).encode())
    with pytest.raises(
        AdapterError, match=r"is \(8, 32\), but the settings ask for \(65536, 32\)|\(65536, 32, 32768\)"
    ):
        lab.adapters.load_adapter(saved, "huge")
