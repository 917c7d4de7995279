"""Recipes, bases and run folders that are wrong, and disks that are full in the middle of a run."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from data.__main__ import main as data_main
from eval.__main__ import main as eval_main
from mma import folder as adapter_folder
from models.weight_names import HF_NAMES, META_NAMES
from tests.small import World, cut, edit_json, edit_tensors
from training import run_state

Spoil = Callable[[World], object]
Refused = Callable[..., str]


@pytest.fixture
def refused(world: World, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Trains or resumes where that must be refused, and gives the line."""

    def run(*settings: str, resume: bool = False) -> str:
        before = world.files()
        capsys.readouterr()
        new = [str(world.recipe), "--run.folder", str(world.root / "new")]
        code = train.main(["--resume", str(world.run)] if resume else [*new, *settings])
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert world.files() == before
        return error

    return run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"optim: {lrr: 3}", "unknown setting 'optim.lrr', did you mean 'optim.lr'?"),
        (b"optm: {lr: 3}", "unknown setting 'optm.lr', did you mean 'optim.lr'?"),
        (b"optim: 3", "'optim' is a section: give its settings, such as optim.lr"),
        (b"run: {folder: x}", "there is nothing to train on: set data.root to a data set, or data.mix"),
        (b"run: {folder: [", "is not YAML"),
        (b"run:\n\tfolder: x", "is not YAML"),
        (b"x: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"", "must hold settings as 'name: value', it holds None"),
        (b"[" * 5000, "is nested too deep, or holds itself"),
        (b"&a {run: *a}", "is nested too deep, or holds itself"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_recipes(world: World, refused: Refused, content: bytes, message: str) -> None:
    world.recipe.write_bytes(content)
    error = refused()
    assert message in error
    assert str(world.recipe) in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--optim.lr", "fast"], 'with the settings of the command line: "optim.lr": Expected a float. Got'),
        (["--optim.max_steps", "1.5"], '"optim.max_steps": Expected int or null. Got value: 1.5'),
        (["--run.device", "tpu"], "\"run.device\": Expected one of 'auto', 'cpu', 'cuda'. Got value: tpu"),
        (["--run.fodler", "x"], "the command line: unknown setting 'run.fodler', did you mean 'run.folder'?"),
        (["extra"], "unrecognized arguments: extra"),
        (["--run.device", "cuda"], "run.device is cuda, but PyTorch finds no GPU here: take auto or cpu"),
        (["--base.precision", "fp8"], "precision is 'fp8'; choose fp32 or bf16"),
        (["--base.tower_every", "9"], "set base.tower_every to 1 to 4"),
        (
            ["--base.tower", "ViT-X"],
            "'ViT-X' is neither a folder with open_clip_config.json or config.json nor a model",
        ),
        (["--base.decoder", "nowhere"], "there is no folder nowhere; set base.decoder to the decoder's"),
        (["--adapter.modalities", "[text]"], "this model also has image in its samples, name it too"),
        (["--adapter.r", "3"], "r 3 is not a multiple of groups 2"),
        (["--data.train", "none"], "there are no samples to train on; choose another split"),
        (["--data.train", ""], "data.train is empty: name the split to train on"),
        (["--data.validation", "none"], "there is no sample to validate on in data.validation 'none'"),
        (["--data.validation", "", "--run.patience", "1"], "name a split in data.validation"),
        (["--data.captions", "true"], "problem 1 has a picture but no caption; add it to captions.json"),
        (["--optim.seed", str(2**64)], "it must be at least 0 and below 2^63"),
        (["--optim.threads", "100000"], "optim.threads is 100000: it must be 1 to 1024"),
        (["--run.folder", "x" * 300], "cannot be written (File name too long): make room or choose another"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, settings: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused(*settings)


def config(**values: object) -> Spoil:
    """Changes the description of the decoder."""
    return lambda world: edit_json(world.decoder / "config.json", lambda content: content.update(values))


def vision(**values: object) -> Spoil:
    """Changes the description of the tower."""
    path = "open_clip_config.json"
    return lambda w: edit_json(
        w.tower / path, lambda content: content["model_cfg"]["vision_cfg"].update(values)
    )


def preprocess(value: object) -> Spoil:
    path = "open_clip_config.json"
    return lambda w: edit_json(w.tower / path, lambda content: content.update(preprocess_cfg=value))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Changes the tensors of the decoder."""
    return lambda world: edit_tensors(world.decoder / "model.safetensors", change)


def index(content: object) -> Spoil:
    return lambda w: (w.decoder / "model.safetensors.index.json").write_text(json.dumps(content))


def small_vocabulary(world: World) -> None:
    """The decoder of another tokenizer."""
    config(vocab_size=100)(world)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights(lambda tensors, name=name: tensors.update({name: tensors[name][:100].clone()}))(world)


def meta(change: Callable[[dict[str, Any], list[dict[str, torch.Tensor]]], object]) -> Spoil:
    """Puts the decoder into two shards of Meta's layout and changes its description or shards."""
    names = {name: META_NAMES[ours] for ours, name in HF_NAMES.items()}
    by_rows = re.compile(r"wq|wk|wv|w1|w3|output")

    def spoil(world: World) -> None:
        shards: list[dict[str, torch.Tensor]] = [{}, {}]
        for name, tensor in load_file(world.decoder / "model.safetensors").items():
            layer = re.match(r"model\.layers\.(\d+)\.(.*)", name)
            there = f"layers.{layer[1]}.{names[layer[2]]}" if layer else names[name]
            parts = tensor.chunk(2, 0 if by_rows.search(there) else 1) if tensor.ndim > 1 else [tensor] * 2
            for shard, part in zip(shards, parts, strict=True):
                shard[there] = part.clone()
        params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
        params |= {"multiple_of": 48, "ffn_dim_multiplier": 0.5, "vocab_size": -1}
        change(params, shards)
        (world.decoder / "config.json").unlink()
        (world.decoder / "params.json").write_text(json.dumps(params))
        for number, shard in enumerate(shards):
            torch.save(shard, world.decoder / f"consolidated.{number:02}.pth")

    return spoil


def cut_shard(world: World) -> None:
    meta(lambda params, shards: None)(world)
    cut(world.decoder / "consolidated.01.pth")


BASES: dict[str, tuple[Spoil, str]] = {
    "no weights": (lambda w: (w.decoder / "model.safetensors").unlink(), "but no model.safetensors and no"),
    "truncated weights": (lambda w: cut(w.decoder / "model.safetensors"), "may be truncated"),
    "missing tensor": (weights(lambda t: t.pop("model.norm.weight")), "has no tensor model.norm.weight"),
    "extra tensor": (
        weights(lambda t: t.update(x=torch.ones(1))),
        "has 1 tensors no LLaMA decoder has: ['x']",
    ),
    "integers": (
        weights(lambda t: t.update({"model.norm.weight": torch.ones(32).int()})),
        "is torch.int32; unquantised weights are needed",
    ),
    "other shape": (config(hidden_size=64), "is (1700, 32), but config.json asks for (1700, 64)"),
    "word for width": (config(hidden_size="32"), "has dim '32', which is no number above 0"),
    "odd heads": (config(num_attention_heads=5), "dim 32 is not a multiple of n_heads 5"),
    "no heads": (config(num_attention_heads=0), "has n_heads 0, which is no number above 0"),
    "half a block": (config(intermediate_size=1.5), "has ffn_dim 1.5, which is no int"),
    "other model": (config(model_type="gpt2"), "describes a 'gpt2' model, not a LLaMA"),
    "odd rotary": (config(rope_scaling=3), "asks for scaled rotary positions"),
    "broken index": (index({"weight_map": [1]}), "has no table weight_map of tensor to file"),
    "missing shard": (index({"weight_map": {"model.embed_tokens.weight": "b.safetensors"}}), "b.safetensors"),
    "shards of other models": (
        meta(lambda params, shards: shards[1]["norm.weight"].add_(1)),
        "differ in norm.weight; they are of different models",
    ),
    "shard of another size": (
        meta(lambda params, shards: shards[1].update({"layers.0.attention.wq.weight": torch.ones(8, 32)})),
        "a shard is missing or of another model",
    ),
    "shard of other tensors": (
        meta(lambda params, shards: shards[1].pop("norm.weight")),
        "holds other tensors than consolidated.00.pth: ['norm.weight']",
    ),
    "one shard of two": (meta(lambda params, shards: shards.pop()), "a shard is missing or of another model"),
    "truncated shard": (cut_shard, "consolidated.01.pth cannot be read, it may be truncated"),
    "shard with code": (
        meta(lambda params, shards: shards[1].update(x=cut)),  # type: ignore[call-overload]
        "consolidated.01.pth cannot be read: it holds more than tensors",
    ),
    "odd multiple": (meta(lambda params, shards: params.update(multiple_of=0)), "multiple_of 0, which is no"),
    "no tokenizer": (
        lambda w: (w.decoder / "tokenizer.model").unlink(),
        "has none of tokenizer.model, tokenizer.json; fetch one of them",
    ),
    "truncated tokenizer": (lambda w: cut(w.decoder / "tokenizer.model"), "is not a SentencePiece model"),
    "wrong tokenizer": (
        small_vocabulary,
        "has 1700 pieces, but the decoder in {decoder} embeds 100; name the",
    ),
    "truncated tower": (lambda w: cut(w.tower / "open_clip_model.safetensors"), "may be truncated"),
    "broken tower": (lambda w: cut(w.tower / "open_clip_config.json"), "open_clip_config.json is not JSON"),
    "another tower": (vision(layers=2), "does not fit the tower: 0 tensors missing [], 24 unexpected"),
    "odd tower": (vision(head_width=0), "vision_cfg describes no tower"),
    "unknown vision": (vision(foo=1), "vision_cfg has an unknown setting"),
    "odd preprocessing": (preprocess({"std": [0, 0, 0]}), "preprocess_cfg cannot prepare a picture"),
    "list of preprocessing": (preprocess([]), "has preprocess_cfg [], not a table of settings"),
}


@pytest.mark.parametrize("name", BASES)
def test_bases(world: World, refused: Refused, name: str) -> None:
    spoil, message = BASES[name]
    spoil(world)
    assert message.format(decoder=world.decoder) in refused()


RUNS: dict[str, tuple[Spoil, str]] = {
    "other base": (weights(lambda t: t["model.norm.weight"].add_(1)), "begun with another base_digest"),
    "broken versions": (lambda w: cut(w.run / "versions.json"), "versions.json cannot be read"),
    "broken recipe": (lambda w: (w.run / "recipe.yaml").write_text("{"), "is not YAML"),
    "no recipe": (lambda w: (w.run / "recipe.yaml").unlink(), "holds no run to resume"),
    "broken state": (lambda w: cut(w.state / "state.json"), "cannot be read"),
    "list for state": (lambda w: (w.state / "state.json").write_text("[]"), "cannot be read"),
    "newer state": (
        lambda w: edit_json(w.state / "state.json", lambda content: content.update(format=2)),
        "has format 2, this version reads 1; use the newer one",
    ),
    "truncated state": (lambda w: cut(w.state / "trainables.safetensors"), "start the run anew"),
    "part of a state": (
        lambda w: (w.state / "optimizer.safetensors").unlink(),
        "it has best, trainables, not",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_resuming(world: World, refused: Refused, name: str) -> None:
    spoil, message = RUNS[name]
    spoil(world)
    assert message in refused(resume=True)


def test_only_an_empty_folder_becomes_a_run(world: World, refused: Refused) -> None:
    assert f"resume it with --resume {world.run}" in refused("--run.folder", str(world.run))
    (world.data / "notes.part").write_text("mine")  # what a run would take for its own leftover
    assert "is not empty and holds no run: choose another" in refused("--run.folder", str(world.data))


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, whole_writes: int) -> Iterator[None]:
    """A disk that takes so many files more, and of the next one the first half."""
    left = whole_writes

    def write(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        path.write_bytes(data if left >= 0 else data[: len(data) // 2])
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_state, "write_file", write)
        patch.setattr(adapter_folder, "_write_file", write)
        yield


# A run writes 2 files at its beginning, with every save 4 of its state and 3 of the adapter, 3 at the end.
@pytest.mark.parametrize("writes", [0, 1, 2, 6, 8, 13, 23, 30, 33])
def test_a_full_disk_loses_nothing(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    writes: int,
) -> None:
    run = world.root / "new"
    start = [str(world.recipe), "--run.folder", str(run)]
    with full_disk(monkeypatch, writes):
        assert train.main(start) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "disk is full" in lines[-1] or "No space left on device" in lines[-1]
    assert not [path for path in run.rglob("*") if re.search(r"\.(part|old)$", path.name)]
    if not run.exists():
        assert writes < 2  # nothing had begun
        assert train.main(start) == 0
    else:
        newest = run_state.newest_state(run / "state")
        assert (newest is None) == (writes < 6)
        if newest is not None:
            assert f"is kept in {newest}: python train.py --resume {run}" in lines[-1]
            run_state.read_state(newest)
        for folder in (run / "checkpoints").glob("step-*"):
            adapter_folder.read(folder)
        assert train.main(["--resume", str(run)]) == 0
    file = "adapter/adapter_model.safetensors"
    assert (run / file).read_bytes() == (world.run / file).read_bytes()


def test_a_full_disk_keeps_the_old_result(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = world.root / "out.json"
    out.write_text("old")
    before = world.files()

    def write_text(path: Path, content: str, **_: object) -> int:
        with path.open("wb") as file:
            file.write(content[:9].encode())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_bytes(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    given = ["--data", str(world.data), "--adapter", str(world.run), "--out", str(out), "--device", "cpu"]
    assert eval_main(["scienceqa", *given]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"error: {out}: cannot be written: No space left on device; make room or name another file\n"
    )
    assert out.read_text() == "old"
    # The answers are kept: asking is what takes hours.
    parts = out.with_name("out.json.parts")
    assert [path.name for path in parts.iterdir()] == ["part-0-of-1.jsonl"]
    shutil.rmtree(parts)
    assert data_main(["mini", str(world.root / "mini"), "--problems", "180"]) == 2
    assert "mini cannot be written (No space left on device): make room" in capsys.readouterr().err
    assert world.files() == before
