"""The adapter folder: written whole or not at all, read strictly, and nothing changes when it is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mma import AdapterError, MMAConfig
from mma import folder as adapter_folder
from mma.folder import CARD, CONFIG, TENSORS
from models.build import build_base

FILES = {CONFIG, TENSORS, CARD}


def logits(model, batch):
    with torch.no_grad():
        return model(batch)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, **changes) -> None:
    """Changes settings in a folder; None removes one."""
    content = json.loads((folder / CONFIG).read_text())
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(content))


@pytest.fixture
def saved(tiny_system, tmp_path) -> Path:
    """An adapter folder of random values."""
    tiny_system().model.adapters.save_pretrained(tmp_path / "adapter", {"seed": 7})
    return tmp_path / "adapter"


@pytest.fixture
def fresh(tiny_base):
    """A system without any adapter."""
    return build_base(tiny_base)


@pytest.mark.parametrize("placement", ["attn", "both"])
@pytest.mark.parametrize("tower", ["token", "modality", "none", "legacy_no_residual"])
def test_a_fresh_system_gives_the_same_logits(tiny_system, fresh, batch, tmp_path, tower, placement):
    model = tiny_system(tower=tower, placement=placement, temperature=3.0, scale=0.5, r=4).model
    model.adapters.save_pretrained(tmp_path / "adapter")
    fresh.model.adapters.load_adapter(tmp_path / "adapter")
    assert fresh.model.adapters.config == model.adapters.config
    assert torch.equal(logits(fresh.model, batch), logits(model, batch))
    assert all(p.requires_grad for p in fresh.model.adapters.trainable_parameters().values())


def test_what_a_folder_holds(tiny_system, saved):
    adapters = tiny_system().model.adapters
    assert {path.name for path in saved.iterdir()} == FILES
    tensors = load_file(saved / TENSORS)
    trained = adapters.trainable_parameters()
    assert tensors.keys() == trained.keys()
    assert all(torch.equal(tensors[name], trained[name]) for name in trained)
    text = (saved / CONFIG).read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"
    settings = adapters.config.to_dict()
    assert content.keys() == {*settings, *adapter_folder.ABOUT}
    assert {key: content[key] for key in settings} == settings
    assert content["provenance"] == {"seed": 7}
    assert content["sites"] == [line.name for line in adapters.report() if line.channels]
    assert sum(path.stat().st_size for path in saved.iterdir()) < 100_000


def test_saving_twice_gives_the_same_bytes(tiny_system, saved, tmp_path):
    tiny_system().model.adapters.save_pretrained(tmp_path / "again", {"seed": 7})
    assert content_of(saved) == content_of(tmp_path / "again")


def test_an_old_folder_is_replaced(tiny_system, saved, fresh, batch):
    model = tiny_system(r=4).model
    model.adapters.save_pretrained(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    fresh.model.adapters.load_adapter(saved)
    assert torch.equal(logits(fresh.model, batch), logits(model, batch))


def test_an_old_folder_is_replaced_where_folders_cannot_be_exchanged(tiny_system, saved, monkeypatch):
    monkeypatch.setattr(adapter_folder, "_exchange", lambda *_: False)
    before = content_of(saved)
    tiny_system(r=4).model.adapters.save_pretrained(saved)
    assert content_of(saved) != before
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_parents_are_made_and_an_empty_folder_is_filled(tiny_system, tmp_path):
    adapters = tiny_system().model.adapters
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        adapters.save_pretrained(path)
        assert {file.name for file in path.iterdir()} == FILES


def test_through_a_link_its_target_is_replaced(tiny_system, saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    tiny_system(r=4).model.adapters.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert json.loads((saved / CONFIG).read_text())["r"] == 4


def test_a_folder_of_something_else_is_kept(tiny_system, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("thesis", "file"):
        with pytest.raises(AdapterError, match=f"{name} exists and is not an adapter folder; choose another"):
            tiny_system().model.adapters.save_pretrained(tmp_path / name)
    assert content_of(tmp_path / "thesis") == {"chapter.txt": b"years of work"}


def test_a_place_that_cannot_be_written_is_named(tiny_system, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match=r"file/adapter cannot be written \(Not a directory\)"):
        tiny_system().model.adapters.save_pretrained(tmp_path / "file" / "adapter")


@pytest.mark.parametrize("first", [True, False], ids=["nothing there", "old folder there"])
@pytest.mark.parametrize("step", [0, 1, 2], ids=["tensors", "card", "description"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_folder(tiny_system, tmp_path, monkeypatch, number, step, first):
    model = tiny_system(r=4).model
    if not first:
        tiny_system().model.adapters.save_pretrained(tmp_path / "adapter")
    before = {path.name: content_of(path) for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == step + 1:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterError, match=r"the disk is full, .*adapter was not written; free some space"):
        model.adapters.save_pretrained(tmp_path / "adapter")
    assert {path.name: content_of(path) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("step", ["_write_file", "model_card", "_put_in_place", "_exchange", "rename"])
def test_a_crash_between_two_steps_leaves_the_old_folder(tiny_system, saved, monkeypatch, step):
    model = tiny_system(r=4).model
    before = content_of(saved)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    if step == "rename":  # where folders cannot be exchanged; the old one can still be put back
        monkeypatch.setattr(adapter_folder, "_exchange", lambda *_: False)
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda self, to: crash() if self.name.endswith("part") else rename(self, to)
        )
    else:
        monkeypatch.setattr(adapter_folder, step, crash)
    with pytest.raises(KeyboardInterrupt):
        model.adapters.save_pretrained(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    assert content_of(saved) == before


def damage_tensors(change):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return damage


def truncate(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: len(content) // 2])


REFUSALS = {
    "no folder": (shutil.rmtree, "there is no folder .* and it is no repository id"),
    "no config": (lambda f: (f / CONFIG).unlink(), r"has no adapter_config\.json; name an adapter folder"),
    "no tensors": (
        lambda f: (f / TENSORS).unlink(),
        r"has no adapter_model\.safetensors; the folder is incomplete",
    ),
    "broken JSON": (lambda f: (f / CONFIG).write_text("{"), "is not JSON"),
    "not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "is not JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "holds no table of settings"),
    "another kind": (
        lambda f: edit(f, peft_type="IA3"),
        "has peft_type 'IA3', not one of MMA, BOTTLENECK, LORA, PARTS; name one made here",
    ),
    "no kind": (lambda f: edit(f, peft_type=None), "has peft_type None, not one of MMA"),
    "called a LoRA": (
        lambda f: edit(f, peft_type="LORA"),
        r"has a tensor for decoder\.blocks\.0\.attn_norm\.down\.bias, which is no linear layer of this base",
    ),
    "newer": (
        lambda f: edit(f, format_version="2.0"),
        r"has format version 2\.0, this program reads 1\.2; install a newer version",
    ),
    "no version": (lambda f: edit(f, format_version=None), "has format version None"),
    "other decoder": (
        lambda f: edit(f, base_digest="0123456789abcdef"),
        r"was made for another decoder \(0123456789ab, here is .*\); load the base it names: .*tower_every",
    ),
    "other tower": (lambda f: edit(f, tower_digest="0" * 64), "was made for another tower"),
    "other tokenizer": (lambda f: edit(f, tokenizer_digest="0" * 64), "was made for another tokenizer"),
    "no digest": (lambda f: edit(f, tower_digest=None), r"was made for another tower \(None, here is "),
    "unknown setting": (
        lambda f: edit(f, temprature=1.0),
        r"unknown setting 'temprature', did you mean 'temperature'\? \(in .*adapter_config\.json\)",
    ),
    "missing setting": (lambda f: edit(f, temperature=None), r"the settings lack temperature \(in .*json\)"),
    "word for number": (lambda f: edit(f, r="8"), r"r is '8'; it must be a whole number \(in .*json\)"),
    "number for word": (lambda f: edit(f, tower=3), r"tower is 3; it must be a word"),
    "word for list": (lambda f: edit(f, modalities="text"), "modalities is 'text'; it must be several"),
    "fraction": (lambda f: edit(f, r=7.5), r"r is 7\.5; it must be a whole number"),
    "impossible setting": (lambda f: edit(f, placement="ffn"), "placement is 'ffn'; choose attn, mlp, both"),
    "groups": (lambda f: edit(f, r=9, groups=3), "32 channels do not divide into 3 groups"),
    "missing tensor": (
        damage_tensors(lambda t: t.pop("modality.weight")),
        r"lacks 1 tensors: modality\.weight",
    ),
    "extra tensor": (
        damage_tensors(lambda t: t.update({"projector.extra": torch.zeros(1)})),
        r"has 1 tensors too many: projector\.extra",
    ),
    "misshapen tensor": (
        damage_tensors(lambda t: t.update({"modality.weight": torch.zeros(3, 32)})),
        r"modality\.weight in .* is \(3, 32\), but the settings ask for \(2, 32\)",
    ),
    "whole numbers": (
        damage_tensors(lambda t: t.update({"modality.weight": torch.zeros(2, 32, dtype=torch.int64)})),
        r"modality\.weight in .* is of torch\.int64, not a floating type",
    ),
    "other rank": (lambda f: edit(f, r=4), r"is \(8, 32\), but the settings ask for \(4, 32\)|\(2, 32, 4\)"),
    "other placement": (lambda f: edit(f, placement="mlp"), r"lacks \d+ tensors: .*mlp_norm"),
    "truncated": (truncate, r"adapter_model\.safetensors cannot be read, it may be truncated"),
    "not safetensors": (lambda f: (f / TENSORS).write_bytes(b""), "cannot be read, it may be truncated"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_and_changes_nothing(tiny_system, saved, batch, name):
    damage, message = REFUSALS[name]
    model = tiny_system(r=2).model
    before, held = logits(model, batch), dict(model.named_parameters())
    trained = [key for key, parameter in held.items() if parameter.requires_grad]
    damage(saved)
    with pytest.raises(AdapterError, match=message) as caught:
        model.adapters.load_adapter(saved, "other")
    assert "\n" not in str(caught.value)
    assert model.adapters.names == ("default",)
    assert model.adapters.active == "default"
    after = dict(model.named_parameters())
    assert after.keys() == held.keys()
    assert all(after[key] is held[key] for key in held)
    assert [key for key, parameter in after.items() if parameter.requires_grad] == trained
    assert torch.equal(logits(model, batch), before)


def test_a_refused_load_can_be_mended(tiny_system, saved, fresh, batch):
    whole = (saved / CONFIG).read_text()
    edit(saved, r=4)
    with pytest.raises(AdapterError):
        fresh.model.adapters.load_adapter(saved)
    assert fresh.model.adapters.names == ()
    assert fresh.model.adapters.active is None
    (saved / CONFIG).write_text(whole)
    fresh.model.adapters.load_adapter(saved)
    assert torch.equal(logits(fresh.model, batch), logits(tiny_system().model, batch))


def test_a_held_name_is_not_loaded_over(tiny_system, saved, batch):
    model = tiny_system(r=2).model
    before = logits(model, batch)
    with pytest.raises(AdapterError, match="already one named 'default'"):
        model.adapters.load_adapter(saved)
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_read(saved, fresh, kind):
    tensors = {name: tensor.to(kind) for name, tensor in load_file(saved / TENSORS).items()}
    save_file(tensors, saved / TENSORS)
    fresh.model.adapters.load_adapter(saved)
    for name, parameter in fresh.model.adapters.trainable_parameters().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, tensors[name].float())


def test_a_newer_minor_version_may_know_more(saved, fresh):
    edit(saved, format_version="1.7", warmth=3)
    fresh.model.adapters.load_adapter(saved)
    assert isinstance(fresh.model.adapters.config, MMAConfig)


def test_an_unreadable_config_is_named(saved, monkeypatch):
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read \(Permission denied\)"):
        adapter_folder.read_description(saved)


def test_a_save_removes_what_killed_saves_left_and_nothing_else(tiny_system, tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead, alive = tmp_path / f".a.{done.pid}.part", tmp_path / f".a.{os.getppid()}.part"
    other = tmp_path / f".b.{done.pid}.part"
    for folder in (dead, alive, other):
        folder.mkdir()
    tiny_system().model.adapters.save_pretrained(tmp_path / "a")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()
    assert (tmp_path / "a" / "adapter_config.json").is_file()
