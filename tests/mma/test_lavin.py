"""Published LaVIN checkpoints, on files made here in their layout."""

from __future__ import annotations

import pathlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mma import AdapterError, MMAConfig
from mma.lavin import load_lavin, read_lavin
from models.build import build_base
from tests.mma.lavin_files import published, write


@pytest.fixture
def state(tiny_system) -> dict[str, Tensor]:
    """The tiny system's adapter as the public code would store it."""
    return published(tiny_system().model.adapters.trainable_parameters())


@pytest.fixture
def adapters(tiny_base):
    """The adapters of a system that has none yet."""
    return build_base(tiny_base).model.adapters


@pytest.mark.parametrize(("kind", "rule"), [("router", "token"), ("normal", "legacy_no_residual")])
def test_a_published_file_gives_the_same_logits(tiny_system, tiny_base, batch, tmp_path, kind, rule):
    wanted = tiny_system(tower=rule).model
    state = published(wanted.adapters.trainable_parameters())
    path = write(tmp_path / "checkpoint-19.pth", state, visual_adapter_type=kind)
    model = build_base(tiny_base).model
    load_lavin(model.adapters, path)
    assert model.adapters.config == MMAConfig(r=8, temperature=1.0, tower=rule, projector_hidden=8)
    model.eval()
    wanted.eval()
    with torch.no_grad():
        assert torch.equal(model(batch), wanted(batch))


def test_names_without_the_prefix_are_read_too(state, tmp_path):
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    one = read_lavin(write(tmp_path / "a.pth", state)).tensors
    other = read_lavin(write(tmp_path / "b.pth", plain)).tensors
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_before_the_mlp_are_read_too(tiny_system, tiny_base, tmp_path):
    """`block` in the decoder and `router_block` in the tower: a second adapter in every block."""
    trained = tiny_system(placement="both", tower_placement="both").model.adapters.trainable_parameters()
    settings = {"adapter_type": "block", "visual_adapter_type": "router_block"}
    path = write(tmp_path / "a.pth", published(trained), **settings)
    adapters = build_base(tiny_base).model.adapters
    load_lavin(adapters, path)
    assert adapters.config.placement == adapters.config.tower_placement == "both"
    for name, parameter in adapters.trainable_parameters().items():
        assert torch.equal(parameter, trained[name]), name


def test_settings_come_from_outside_where_the_file_has_none(state, tmp_path, adapters):
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(AdapterError, match="does not say its settings; pass the MMAConfig"):
        load_lavin(adapters, tmp_path / "a.pth")
    load_lavin(adapters, tmp_path / "a.pth", MMAConfig(projector_hidden=8, temperature=5.0))
    assert adapters.config.temperature == 5.0


@pytest.mark.parametrize("change", [{"visual_adapter_type": "other"}, {"llm_model": "7B"}])
def test_a_kind_that_is_not_known_counts_as_no_settings(state, tmp_path, change):
    checkpoint = read_lavin(write(tmp_path / "a.pth", state, **change))
    assert (checkpoint.config is None) == ("visual_adapter_type" in change)


def refuse(adapters, path: Path, message: str) -> None:
    """Loading is refused with this message in one line, and no adapter is held afterwards."""
    with pytest.raises(AdapterError, match=message) as caught:
        load_lavin(adapters, path)
    assert "\n" not in str(caught.value)
    assert adapters.names == ()
    assert adapters.active is None


def test_a_missing_file(adapters, tmp_path):
    refuse(adapters, tmp_path / "none.pth", r"there is no file .*none\.pth")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(adapters, state, tmp_path, share):
    path = write(tmp_path / "a.pth", state)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(adapters, path, "cannot be read, it may be truncated")


def test_a_file_with_other_classes(adapters, state, tmp_path):
    path = write(tmp_path / "a.pth", state, output_dir=pathlib.PurePosixPath("/"))
    refuse(adapters, path, "cannot be read")
    torch.save({"model": state, "hook": print}, path)
    refuse(adapters, path, "cannot be read")


def test_something_else_than_a_checkpoint(adapters, tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    refuse(adapters, tmp_path / "a.pth", "holds no LaVIN model")
    torch.save({"weights": {}}, tmp_path / "a.pth")
    refuse(adapters, tmp_path / "a.pth", "holds no LaVIN model")


@pytest.mark.parametrize(
    "name", ["module.layers.0.attention.wq.weight", "module.layers.0.adapter_attn.gate.weight", "module.x"]
)
def test_a_foreign_tensor(adapters, state, tmp_path, name):
    path = write(tmp_path / "a.pth", {**state, name: torch.zeros(1)})
    refuse(adapters, path, f"tensors LaVIN does not train: {name.removeprefix('module.')}")


def test_something_that_is_no_tensor(adapters, state, tmp_path):
    path = write(tmp_path / "a.pth", {**state, "module.adapter_proj.conv_A.bias": 3})
    refuse(adapters, path, r"holds no tensor under adapter_proj\.conv_A\.bias")


@pytest.mark.parametrize(
    "name",
    [
        "layers.1.adapter_attn.conv_A.weight",
        "layers.1.adapter_attn.conv_D.bias",
        "adapter_proj.conv_A.weight",
    ],
)
def test_a_missing_tensor(adapters, state, tmp_path, name):
    del state[f"module.{name}"]
    refuse(adapters, write(tmp_path / "a.pth", state), "a tensor is missing or misshapen|lacks")


def test_misshapen_tensors(adapters, state, tmp_path):
    name = "module.layers.0.adapter_attn.conv_B.weight"
    path = write(tmp_path / "a.pth", {**state, name: torch.zeros(5, 4, 1)})
    refuse(adapters, path, "a tensor is missing or misshapen")
    path = write(
        tmp_path / "a.pth", {**state, "module.adapter_modality_embedding.weight": torch.zeros(3, 32)}
    )
    refuse(adapters, path, r"modality\.weight in .* is \(3, 32\), but the settings ask for \(2, 32\)")


def test_another_base(adapters, tiny_system, tmp_path):
    trained = tiny_system().model.adapters.trainable_parameters()
    refuse(adapters, write(tmp_path / "a.pth", published(trained, layers=1)), r"lacks 6 tensors: decoder")
    path = write(tmp_path / "a.pth", published(trained), adapter_dim=4)
    refuse(adapters, path, "but the settings ask for")
    path = write(tmp_path / "a.pth", published(trained), adapter_dim="8")
    refuse(adapters, path, "r is '8'; it must be a whole number")


def test_a_refused_file_leaves_the_held_adapter(tiny_system, state, batch, tmp_path):
    model = tiny_system(r=4).model
    with torch.no_grad():
        before = model(batch)
        with pytest.raises(AdapterError, match="already one named 'default'"):
            load_lavin(model.adapters, write(tmp_path / "a.pth", state))
        assert torch.equal(model(batch), before)
