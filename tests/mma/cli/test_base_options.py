"""Which base a command works on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mma import AdapterError
from mma.cli.base_options import OPTIONS, add_base_options, base_settings, named, with_options
from mma.cli.terminal import Parser
from models.build import BaseSettings

RECORDED = {
    "decoder": "old/decoder",
    "tokenizer": "old/decoder/tokenizer.model",
    "tower": "ViT-L-14",
    "tower_weights": "openai",
    "tower_every": 4,
    "precision": "bf16",
}


def settings(*arguments: object, recorded: dict[str, object] | None = None) -> dict[str, object]:
    parser = Parser()
    add_base_options(parser, "what holds")
    options = parser.parse_args([str(argument) for argument in arguments])
    assert named(options) == bool(arguments)
    return base_settings(options, RECORDED if recorded is None else recorded, Path("an/adapter"))


def test_the_options_are_the_settings_of_a_base():
    assert {"decoder", *OPTIONS} == set(BaseSettings.__dataclass_fields__)
    assert BaseSettings(**settings()) == BaseSettings(**RECORDED)


def test_another_decoder_brings_its_tokenizer(tmp_path):
    assert settings("--base", tmp_path) == {**RECORDED, "decoder": str(tmp_path)}
    (tmp_path / "tokenizer.model").touch()
    assert settings("--base", tmp_path) == {**RECORDED, "decoder": str(tmp_path), "tokenizer": ""}
    given = settings("--base", tmp_path, "--tokenizer", "x.model")
    assert given == {**RECORDED, "decoder": str(tmp_path), "tokenizer": "x.model"}


def test_a_folder_of_both_is_both(tmp_path):
    (tmp_path / "decoder").mkdir()
    assert settings("--base", tmp_path) == {**RECORDED, "decoder": str(tmp_path / "decoder")}
    (tmp_path / "tower").mkdir()
    both = {"decoder": str(tmp_path / "decoder"), "tower": str(tmp_path / "tower"), "tower_weights": ""}
    assert settings("--base", tmp_path) == {**RECORDED, **both}


def test_another_tower_does_not_have_the_weights_of_the_old_one():
    assert settings("--tower", "x") == {**RECORDED, "tower": "x", "tower_weights": ""}
    given = settings("--tower", "x", "--tower-weights", "w", "--tower-every", 2, "--precision", "fp32")
    wanted = {"tower": "x", "tower_weights": "w", "tower_every": 2, "precision": "fp32"}
    assert given == {**RECORDED, **wanted}


def test_without_any_base_it_says_so():
    with pytest.raises(
        AdapterError, match="an/adapter does not say which base it was made for; name one with --base"
    ):
        settings(recorded={})
    assert settings("--base", "x", recorded={}) == {"decoder": "x"}


def test_an_unknown_setting_is_refused():
    with pytest.raises(
        AdapterError, match="an/adapter names its base by the unknown setting 'decoders'; it was"
    ):
        settings(recorded={**RECORDED, "decoders": 1})


def test_messages_name_the_options():
    assert (
        with_options("set base.decoder to it, base.tower_every to 1")
        == "set --base to it, --tower-every to 1"
    )
    assert (
        with_options("my.base.decoder, base.other, /x/base.tower")
        == "my.base.decoder, base.other, /x/base.tower"
    )
