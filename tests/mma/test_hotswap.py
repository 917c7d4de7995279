"""A swap copies into what is there: nothing moves, grows or recompiles, and no answer is half of each."""

from __future__ import annotations

import gc
import json
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mma import AdapterError, MMAConfig
from mma.bank import AdapterBank
from models.build import BaseSettings, System, build_new
from models.generate import Sampling, generate
from tests.mma.test_adapters import config, logits, shake
from tests.mma.test_turns import prompt

STATM = Path("/proc/self/statm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_base) -> tuple[Path, Path]:
    """Two adapters with the same settings; do not write there."""
    root, adapters = tmp_path_factory.mktemp("swapped"), build_new(tiny_base, config()).model.adapters
    for seed in (0, 1):
        shake(adapters, seed)
        adapters.save_pretrained(root / str(seed))
    return root / "0", root / "1"


def tensors_of(adapters) -> list[torch.Tensor]:
    """Everything that a swap writes to: what is trained, and the tables."""
    tables = [module.table for module in adapters.places.routed("default")]
    return [*adapters.trainable_parameters("default").values(), *tables]


@pytest.mark.parametrize("training", [False, True])
def test_a_swap_is_a_load_in_place(tiny_system, folders, batch, training):
    model = tiny_system().model
    adapters = model.adapters
    model.train(training)
    adapters.hotswap_adapter(folders[0])
    places = [tensor.data_ptr() for tensor in tensors_of(adapters)]
    answers = [logits(model, batch)]
    adapters.hotswap_adapter(folders[1])
    answers.append(logits(model, batch))
    routes = adapters.routes()
    assert [tensor.data_ptr() for tensor in tensors_of(adapters)] == places
    assert model.training is training
    assert all(p.requires_grad for p in adapters.trainable_parameters().values())
    for folder, answer in zip(folders, answers, strict=True):
        adapters.load_adapter(folder, "loaded")
        assert torch.equal(logits(model, batch), answer)
        assert (adapters.routes() == routes) is (folder == folders[1])
        adapters.delete_adapter("loaded")
    assert not torch.allclose(*answers)


def test_a_held_adapter_is_swapped_without_becoming_active(tiny_system, folders, batch):
    model = tiny_system().model
    model.adapters.add_adapter("other", config())
    before = logits(model, batch)
    model.adapters.hotswap_adapter(folders[0], "default")
    assert model.adapters.active == "other"
    assert torch.equal(logits(model, batch), before)


def test_the_bank_follows_a_swap(tiny_system, folders, batch):
    model = tiny_system().model
    bank = AdapterBank(model.adapters, 2)
    bank.put("default")
    model.adapters.hotswap_adapter(folders[0])
    wanted = logits(model, batch)
    batch.adapters = ("default",) * 2
    with model.adapters.disable_adapter():  # so that the slot answers, not the adapter's own tensors
        assert (logits(model, batch) - wanted).abs().max() < 1e-5


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(STATM.read_text().split()[1]) * 4096


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell how much memory a process holds")
def test_a_thousand_swaps_take_no_memory(tiny_system, folders):
    adapters = tiny_system().model.adapters

    def swap(times: int) -> None:
        for index in range(times):
            adapters.hotswap_adapter(folders[index % 2])

    swap(60)
    gc.collect()
    held = resident()
    swap(1000)
    gc.collect()
    assert resident() - held < 2**20  # 1,000 copies of this adapter would be 30 MB
    tracemalloc.start()
    try:
        swap(300)
        grown = []
        for _ in range(3):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            swap(500)
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
        # 40 bytes a swap; a reader that keeps 60 bytes of every tensor would take 2,000. Python's own free
        # lists fill up for a while, longer in a process that has done much; a leak is in every round.
        assert min(grown) < 20_000, grown
    finally:
        tracemalloc.stop()


def test_every_answer_is_made_by_one_adapter(tiny_system, folders):
    """Threads ask without pause while another swaps to and fro, and asks itself after every swap."""
    system = tiny_system()
    adapters, sampling = system.model.adapters, Sampling(max_new_tokens=6)
    batch = prompt(system, "How warm is it?", "Which word names it?")
    possible = []
    for folder in folders:
        adapters.hotswap_adapter(folder)
        possible.append(generate(system, batch, sampling))
    assert possible[0] != possible[1]
    stop, seen, errors = threading.Event(), [], []

    def ask() -> None:
        try:
            while not stop.is_set():
                seen.append(generate(system, batch, sampling))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    wrong = []
    for index in range(30):
        adapters.hotswap_adapter(folders[index % 2])
        if generate(system, batch, sampling) != possible[index % 2]:
            wrong.append(index)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not errors and not wrong
    assert all(answer in possible for answer in seen)
    assert {possible.index(answer) for answer in seen} == {0, 1}


# -- refusals


def refused(system: System, message: str, folder: Path, name: str = "default") -> None:
    """It raises, and every tensor of the adapter is as it was, in its place."""
    adapters = system.model.adapters
    before = [(p.data_ptr(), p.detach().clone()) for p in adapters.trainable_parameters("default").values()]
    with pytest.raises(AdapterError, match=message):
        adapters.hotswap_adapter(folder, name)
    after = adapters.trainable_parameters("default").values()
    assert all(
        p.data_ptr() == place and torch.equal(p, x) for p, (place, x) in zip(after, before, strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "told"), [({"r": 4}, "r"), ({"temperature": 3.0}, "temperature"), ({"scale": 2.0}, "scale")]
)
def test_other_settings(tiny_system, folders, settings, told):
    system = tiny_system(**settings)
    refused(system, f"cannot be swapped into 'default': .*{told}.*; load it instead", folders[0])


def test_another_base(tiny_system, folders, tmp_path):
    changed(folders[0], tmp_path / "a", base_digest="0" * 64)
    refused(tiny_system(), "was made for another (base|decoder)", tmp_path / "a")


def changed(folder: Path, to: Path, **keys: object) -> None:
    """A copy of a folder with other values in its configuration."""
    to.mkdir()
    content = json.loads((folder / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps({**content, **keys}))
    save_file(load_file(folder / "adapter_model.safetensors"), to / "adapter_model.safetensors")


def test_a_missing_tensor(tiny_system, folders, tmp_path):
    changed(folders[0], tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    del tensors["modality.weight"]
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    refused(tiny_system(), r"modality\.weight", tmp_path / "a")


def test_a_merged_adapter(tiny_system, folders):
    system = tiny_system(tower="modality")
    adapters = system.model.adapters
    adapters.save_pretrained(folders[0].parent / "modality")
    adapters.merge_adapter("text")
    refused(
        system, "cannot swap an adapter while default is merged; call unmerge", folders[0].parent / "modality"
    )


def test_no_folder_and_no_such_adapter(tiny_system, folders, tmp_path):
    system = tiny_system()
    refused(system, "missing", tmp_path / "missing")
    refused(system, r"none named 'x'; held are \['default'\]", folders[0], "x")


# -- compiled


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(system: System, backend: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for wrapper in system.model.adapters.places.wrapped.values():
        wrapper.compile(backend=backend)


def check_nothing_recompiles(system: System, folders: tuple[Path, Path], batch, backend: str) -> None:
    model = system.model
    wanted = []
    for folder in folders:
        model.adapters.hotswap_adapter(folder)
        wanted.append(logits(model, batch))
    compiled(system, backend)
    for folder in folders:
        model.adapters.hotswap_adapter(folder)
        logits(model, batch)
        model.adapters.hotswap_adapter(folder)
    graphs = compiled_graphs()
    assert graphs > 0
    for folder, want in (*zip(folders, wanted, strict=True),) * 2:
        model.adapters.hotswap_adapter(folder)
        torch.testing.assert_close(logits(model, batch), want, atol=1e-4, rtol=1e-4)
    assert compiled_graphs() == graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_not_compiled_again(tiny_system, folders, batch):
    check_nothing_recompiles(tiny_system(), folders, batch, "eager")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_on_the_device_nothing_grows_or_is_compiled_again(tiny_base: BaseSettings, folders, batch):
    system = build_new(tiny_base, config(), "cuda")
    assert isinstance(system.model.adapters.config, MMAConfig)
    check_nothing_recompiles(system, folders, batch.to("cuda"), "inductor")
    for index in range(20):
        system.model.adapters.hotswap_adapter(folders[index % 2])
    gc.collect()
    held = torch.cuda.memory_allocated()
    for index in range(1000):
        system.model.adapters.hotswap_adapter(folders[index % 2])
    gc.collect()
    assert torch.cuda.memory_allocated() == held
