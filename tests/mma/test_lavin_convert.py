"""LaVIN's checkpoints as adapter folders and back, on files made here in their layout."""

from __future__ import annotations

import argparse
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mma import AdapterError, MMAConfig
from mma.folder import read
from mma.lavin import from_lavin, load_lavin, to_lavin
from models.build import build_base
from tests.mma.lavin_files import ARGUMENTS, published, write


@pytest.fixture
def state(tiny_system) -> dict[str, Tensor]:
    """The tiny system's adapter as the public code would store it."""
    return published(tiny_system().model.adapters.trainable_parameters())


def open_checkpoint(path: Path) -> dict[str, object]:
    """A checkpoint as the public code opens it."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape, layout and bits."""
    if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
        return False
    return torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def come_back(path: Path, config: MMAConfig | None = None) -> dict[str, object]:
    """A checkpoint that was a folder in between; its tensors must be what they were, in their order."""
    folder, back = path.with_suffix(""), path.with_name(f"again-{path.name}")
    from_lavin(path, folder, config)
    to_lavin(folder, back)
    before, after = open_checkpoint(path)["model"], open_checkpoint(back)["model"]
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert same_bytes(tensor, after[name]), name
        assert after[name].untyped_storage().nbytes() == tensor.nbytes
    return open_checkpoint(back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, ("attn", "router")),
        ({"tower": "legacy_no_residual"}, ("attn", "normal")),
        ({"placement": "both", "tower_placement": "both"}, ("block", "router_block")),
    ],
)
def test_a_checkpoint_comes_back_bit_for_bit(tiny_system, tmp_path, settings, kinds, dtype):
    state = published(tiny_system(**settings).model.adapters.trainable_parameters())
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    arguments = {**ARGUMENTS, "hidden_proj": 8, "n_prompt": 6, "lr": None, "use_vicuna": False}
    arguments |= dict(zip(("adapter_type", "visual_adapter_type"), kinds, strict=True))
    back = come_back(write(tmp_path / "checkpoint-19.pth", state, **arguments))
    assert vars(back["args"]) == arguments
    assert set(back) == {"model", "epoch", "args"}
    assert back["epoch"] == 19
    description, tensors = read(tmp_path / "checkpoint-19")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert "order" not in description["provenance"]["lavin"]


def test_names_and_their_order_come_back(state, tmp_path):
    names = list(state)
    for order in (names, names[::-1], sorted(names), names[7:] + names[:7]):
        for prefix in ("module.", ""):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
            come_back(write(path, {f"{prefix}{name.removeprefix('module.')}": state[name] for name in order}))


def test_each_tensor_keeps_its_own_type(state, tmp_path):
    state["module.adapter_modality_embedding.weight"] = torch.ones(2, 32, dtype=torch.float64) / 3
    for leaf in ("weight", "bias"):
        state[f"module.layers.1.adapter_attn.conv_A.{leaf}"] = state[
            f"module.layers.1.adapter_attn.conv_A.{leaf}"
        ].half()
    come_back(write(tmp_path / "a.pth", state))


def test_what_was_stored_as_a_view_or_a_parameter_comes_back(state, tmp_path):
    odd = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    name = "module.adapter_proj.conv_B.weight"
    odd[name] = state[name].T.contiguous().T
    from_lavin(write(tmp_path / "a.pth", odd), tmp_path / "a")
    to_lavin(tmp_path / "a", tmp_path / "b.pth")
    assert all(torch.equal(x, state[n]) for n, x in open_checkpoint(tmp_path / "b.pth")["model"].items())


def test_a_converted_folder_gives_the_same_logits(tiny_system, tiny_base, state, batch, tmp_path):
    """With what the owner of a base knows of it, the folder is one like any other."""
    path = write(tmp_path / "checkpoint-19.pth", state)
    model = build_base(tiny_base).model
    from_lavin(path, tmp_path / "adapter", identity=model.adapters.identity)
    model.adapters.load_adapter(tmp_path / "adapter")
    model.eval()
    wanted = tiny_system().model.eval()
    with torch.no_grad():
        assert torch.equal(model(batch), wanted(batch))
    description, _ = read(tmp_path / "adapter")
    assert description["base_digest"] == model.adapters.identity["base_digest"]
    assert description["sites"] == [
        *(f"decoder.blocks.{i}.attn_norm" for i in range(2)),
        *(f"tower.visual.transformer.resblocks.{i}.ln_1" for i in range(4)),
    ]


def test_without_a_base_the_folder_says_nothing_of_one(state, tmp_path):
    from_lavin(write(tmp_path / "a.pth", state), tmp_path / "a")
    description, _ = read(tmp_path / "a")
    assert not description.keys() & {"base", "base_digest", "tower_digest", "tokenizer_digest", "template"}


def test_the_folder_keeps_what_is_plain_and_no_paths(state, tmp_path):
    told = {"llm_model": "7B", "bits": "4bit", "blr": 9e-3, "clip_grad": None, "use_caption": True}
    untold = {
        "output_dir": "/somewhere",
        "lr": float("nan"),
        "seed": torch.zeros(1),
        "prompt_format": "a" * 999,
    }
    from_lavin(write(tmp_path / "a.pth", state, **told, **untold), tmp_path / "a")
    description, _ = read(tmp_path / "a")
    assert description["provenance"] == {
        "converted_from": "a.pth",
        "epoch": 19,
        "lavin": {"prefix": "module.", "args": told},
    }


SILENT = [
    (None, "it holds no namespace"),
    ({"temperature": ..., "adapter_dim": ...}, "its namespace lacks adapter_dim, temperature"),
    ({"visual_adapter_type": "clip"}, "its visual_adapter_type is 'clip', not one of router, router_block"),
    ({"adapter_type": "repattn"}, "its adapter_type is 'repattn', not one of attn, block"),
    ({"temperature": torch.ones(1)}, "its temperature is no plain value but a Tensor"),
    ({"visual_adapter_type": ["router"]}, "its visual_adapter_type is no plain value but a list"),
    ({"adapter_scale": float("inf")}, "its adapter_scale is no plain value but a float"),
    ({"adapter_dim": "eight\n" * 9}, "its adapter_dim is no plain value but a str"),
    ({"adapter_dim": 2**600}, "its adapter_dim is no plain value but a int"),
    ({"adapter_dim": "8"}, "r is '8'; it must be a whole number"),
    ({"adapter_dim": True}, "r is True; it must be a whole number"),
    ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
    ({"adapter_scale": None}, "scale is None; it must be a number"),
]


@pytest.mark.parametrize(("change", "message"), SILENT, ids=[message for _, message in SILENT])
def test_settings_are_asked_for_by_what_is_missing(state, tmp_path, change, message):
    path = tmp_path / "a.pth"
    kept = {name: value for name, value in {**ARGUMENTS, **(change or {})}.items() if value is not ...}
    torch.save({"model": state, **({} if change is None else {"args": argparse.Namespace(**kept)})}, path)
    with pytest.raises(AdapterError, match="does not say its settings; pass the MMAConfig") as caught:
        from_lavin(path, tmp_path / "a")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "a").exists()
    back = come_back(path, MMAConfig(temperature=5.0, projector_hidden=8))
    assert back["args"].temperature == 5.0
    assert "epoch" not in back


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("layers.0.adapter_attn", r"lacks 6 tensors: decoder\.blocks\.0\.attn_norm"),
        ("layers", "has no sites in its decoder, or in its tower"),
        ("backbone", "has no sites in its decoder, or in its tower"),
        ("adapter_modality", r"has no modality\.weight to tell a width by"),
        (
            "backbone.visual.transformer.resblocks.2.adapter_attn.conv_D",
            r"resblocks\.2\.ln_1\.up in .* is \(1, ",
        ),
    ],
)
def test_an_incomplete_checkpoint_is_not_converted(state, tmp_path, gone, message):
    state = {name: tensor for name, tensor in state.items() if not name.startswith(f"module.{gone}")}
    with pytest.raises(AdapterError, match=message):
        from_lavin(write(tmp_path / "a.pth", state), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_settings_that_do_not_fit_are_not_converted(state, tmp_path):
    for change in ({"adapter_dim": 4}, {"visual_adapter_type": "normal"}, {"adapter_type": "block"}):
        with pytest.raises(AdapterError, match="but the settings ask for|tensors too many|lacks"):
            from_lavin(write(tmp_path / "a.pth", state, **change), tmp_path / "a")


def test_an_adapter_trained_here_becomes_a_checkpoint(tiny_system, tiny_base, batch, tmp_path):
    wanted = tiny_system(scale=0.5).model.eval()
    wanted.adapters.identity = {}
    wanted.adapters.save_pretrained(tmp_path / "adapter", {"epoch": 3})
    to_lavin(tmp_path / "adapter", tmp_path / "new" / "a.pth")
    to_lavin(tmp_path / "adapter", tmp_path / "b.pth")
    assert (tmp_path / "new" / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    content = open_checkpoint(tmp_path / "b.pth")
    stored = published(wanted.adapters.trainable_parameters())
    assert content["model"].keys() == {name.removeprefix("module.") for name in stored}
    assert content.keys() == {"model", "args"}
    theirs = {"adapter_scale": 0.5, "adapter_type": "attn", "visual_adapter_type": "router"}
    theirs |= {"adapter_dim": 8, "temperature": 1.0, "hidden_proj": 8, "n_prompt": 1}
    assert vars(content["args"]) == theirs
    model = build_base(tiny_base).model
    load_lavin(model.adapters, tmp_path / "b.pth")
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(batch), wanted(batch))


REFUSED = [
    ({"routes": 3}, "routes is 3, LaVIN has 2 only"),
    ({"groups": 1}, "groups is 1, LaVIN has 2 only"),
    (
        {"modalities": ("image", "text")},
        r"modalities is \('image', 'text'\), LaVIN has \('text', 'image'\) only",
    ),
    ({"modalities": ("text", "image", "audio")}, "modalities is .*'audio'"),
    ({"layers": (1,)}, r"layers is \(1,\), LaVIN has \(\) only"),
    ({"placement": "mlp"}, "placement is 'mlp', LaVIN has 'attn' or 'both' only"),
    ({"tower": "modality"}, r"tower and tower_placement is \('modality', 'attn'\)"),
    ({"tower": "none"}, r"tower and tower_placement is \('none', 'attn'\)"),
    ({"tower_placement": "mlp"}, r"tower and tower_placement is \('token', 'mlp'\)"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_lavin_has_no_word_for_is_refused(tiny_system, tmp_path, settings, message):
    adapters = tiny_system(**settings).model.adapters
    adapters.identity = {}
    adapters.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=f"cannot be written as LaVIN's: {message}") as caught:
        to_lavin(tmp_path / "adapter", tmp_path / "a.pth")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "a.pth").exists()


@pytest.fixture
def converted(state, tmp_path) -> Path:
    """A folder made of a checkpoint."""
    from_lavin(write(tmp_path / "a.pth", state), tmp_path / "converted")
    return tmp_path / "converted"


def damage(folder: Path, **values: object) -> None:
    """Changes what a folder says."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "BOTTLENECK"}, "has peft_type 'BOTTLENECK'; LaVIN has MMA adapters only"),
        ({"peft_type": "OTHER"}, "has peft_type 'OTHER'"),
        ({"base": {"tower_every": 2}}, r"base\.tower_every is 2, LaVIN has 4 only"),
        ({"r": "8"}, "r is '8'; it must be a whole number .*converted"),
        ({"r": 4}, "but the settings ask for"),
        ({"placement": "both"}, r"lacks 12 tensors: decoder\.blocks\.0\.mlp_norm"),
        ({"provenance": {"lavin": {"order": [0, 0]}}}, "has lost the order of LaVIN's tensors"),
        ({"provenance": {"lavin": {"order": "abc"}}}, "has lost the order of LaVIN's tensors"),
        ({"provenance": {"lavin": {"order": [[], {}]}}}, "has lost the order of LaVIN's tensors"),
    ],
)
def test_a_folder_that_is_damaged_or_another_is_refused(converted, tmp_path, values, message):
    damage(converted, **values)
    with pytest.raises(AdapterError, match=message) as caught:
        to_lavin(converted, tmp_path / "b.pth")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize(
    "provenance", [None, 3, {"lavin": 3}, {"lavin": {"prefix": 3, "args": []}, "epoch": "x"}]
)
def test_a_folder_that_has_forgotten_where_it_comes_from_is_written(converted, tmp_path, provenance):
    damage(converted, provenance=provenance)
    to_lavin(converted, tmp_path / "b.pth")
    assert open_checkpoint(tmp_path / "b.pth").keys() == {"model", "args"}


def test_nothing_is_written_over_or_half(converted, tmp_path, monkeypatch):
    before = (tmp_path / "a.pth").read_bytes()
    with pytest.raises(AdapterError, match=r"a\.pth exists and would be lost; choose another name"):
        to_lavin(converted, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == before
    with pytest.raises(AdapterError, match=r"a\.pth/b\.pth cannot be written \("):
        to_lavin(converted, tmp_path / "a.pth" / "b.pth")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterError, match=r"b\.pth cannot be written \(No space left"):
        to_lavin(converted, tmp_path / "b.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "converted"}
