"""A folder of weights is read once, and reading it takes the memory of what comes out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import hf_folder, tensor_files
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.export import write_hf
from models.hf_folder import TensorFolder
from models.weight_names import meta_name
from models.weights import load_decoder

MIB = 2**20
CLEAR = Path("/proc/self/clear_refs")
CONFIG = DecoderConfig(1024, 6, 8, 8, 2752, vocab_size=2000)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 160 MiB in half precision."""
    folder = tmp_path_factory.mktemp("decoder")
    write_hf(Decoder(CONFIG), folder, torch.float16)
    return folder


@pytest.fixture(params=["safetensors", "pytorch"])
def folder(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> Path:
    """The same as safetensors and as a PyTorch file."""
    return written if request.param == "safetensors" else _pytorch(written, tmp_path)


def _pytorch(written: Path, folder: Path) -> Path:
    tensors = TensorFolder(written)
    torch.save({name: tensors.read(name) for name in tensors.files}, folder / "pytorch_model.bin")
    (folder / "config.json").write_bytes((written / "config.json").read_bytes())
    return folder


@pytest.fixture(params=["safetensors", "pytorch", "meta"])
def any_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Hugging Face's layouts, and Meta's."""
    if request.param != "meta":
        return (
            request.getfixturevalue("written")
            if request.param == "safetensors"
            else _pytorch(request.getfixturevalue("written"), tmp_path)
        )
    tensors = {meta_name(name): p.detach().half() for name, p in Decoder(CONFIG).named_parameters()}
    torch.save(tensors, tmp_path / "consolidated.00.pth")
    params = {"dim": 1024, "n_layers": 6, "n_heads": 8, "vocab_size": 2000, "multiple_of": 32}
    (tmp_path / "params.json").write_text(json.dumps(params))
    return tmp_path


def memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest since it was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux tells the highest memory since a moment")
def test_a_cast_while_loading_costs_the_memory_of_the_result(any_folder, monkeypatch):
    folder = any_folder
    size = sum(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(tensor_files, "MAPPED", 2 * MIB)  # the file is small: what stays mapped must be too
    # A first load brings more than weights into memory, and freed memory would be taken again.
    held = load_decoder(folder, dtype=torch.bfloat16)
    CLEAR.write_text("5")
    before = memory("VmRSS")
    decoder = load_decoder(folder, dtype=torch.bfloat16)
    assert memory("VmHWM") - before < 1.2 * size
    for one, other in zip(held.parameters(), decoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_files_are_opened_again_after_some_bytes_and_their_tensors_stay(folder, monkeypatch):
    whole = TensorFolder(folder)
    wanted = {name: whole.read(name).clone() for name in whole.files}
    opened: list[Path] = []
    real = hf_folder._open
    monkeypatch.setattr(hf_folder, "_open", lambda path: opened.append(path) or real(path))
    monkeypatch.setattr(tensor_files, "MAPPED", 40 * MIB)
    tensors = TensorFolder(folder)
    opened.clear()
    found = {name: tensors.read(name) for name in tensors.files}
    assert 3 <= len(opened) <= 4, "once at first, and after every 40 of 160 MiB"
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_weights_of_the_same_type_are_the_mapped_file(written):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(written))

    decoder = load_decoder(written, dtype=torch.float16)
    assert mapped(), "no copy was made"
    del decoder
    assert not mapped(), "the file is closed with its last tensor"
