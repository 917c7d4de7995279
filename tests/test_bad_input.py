"""Whatever is wrong with what a user gives: one line that says it, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import train
from data.__main__ import main as data_main
from eval.__main__ import main as eval_main
from tests.small import World, cut, edit_json, edit_tensors

ROOT = Path(__file__).parents[1]

Spoil = Callable[[World], object]
Refused = Callable[[Callable[[Sequence[str]], int], list[str]], str]


@pytest.fixture
def refused(world: World, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must refuse, and gives its line."""

    def run(main: Callable[[Sequence[str]], int], arguments: list[str]) -> str:
        before = world.files()
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as stop:  # a wrong command, refused by argparse
            code = int(stop.code or 0)
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert world.files() == before
        return error

    return run


def training(world: World, *settings: str) -> list[str]:
    return [str(world.recipe), "--run.folder", str(world.root / "new"), *settings]


def evaluating(world: World, *options: str) -> list[str]:
    given = ["--data", str(world.data), "--adapter", str(world.run), "--out", str(world.root / "out.json")]
    return ["scienceqa", *given, "--device", "cpu", *options]


def bomb(path: Path, side: int) -> None:
    """A tiny file that says it is a picture of side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no picture"),
    "truncated": (cut, "cannot be decoded (image file is truncated); the file is broken, fetch it again"),
    "empty": (lambda path: path.write_bytes(b""), "is not a picture in a known format; replace the file"),
    "text": (lambda path: path.write_text("hello"), "is not a picture in a known format; replace the file"),
    "bomb": (lambda path: bomb(path, 60_000), "the limit is 50,000,000 pixels; scale it down"),
    "large": (lambda path: bomb(path, 8_000), "has 8000 x 8000 pixels, the limit is 50,000,000 pixels"),
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(world: World, refused: Refused, split: str, name: str) -> None:
    spoil, message = PICTURES[name]
    path = world.picture(split)
    spoil(path)
    main, arguments = (eval_main, evaluating) if split == "test" else (train.main, training)
    error = refused(main, arguments(world))
    assert str(path) in error
    assert message in error


def row(**values: object) -> Spoil:
    """Changes fields of the first problem."""
    return lambda world: edit_json(world.data / "problems.json", lambda rows: rows["1"].update(values))


def splits(change: Callable[[dict[str, list[object]]], object]) -> Spoil:
    return lambda world: edit_json(world.data / "pid_splits.json", change)


def text(name: str, content: str) -> Spoil:
    return lambda world: (world.data / name).write_text(content)


DATA: dict[str, tuple[Spoil, str]] = {
    "no problems": (lambda w: (w.data / "problems.json").unlink(), "there is no file {data}/problems.json"),
    "no splits": (lambda w: (w.data / "pid_splits.json").unlink(), "there is no file {data}/pid_splits"),
    "a folder": (lambda w: (w.data / "captions.json").mkdir(), "captions.json cannot be read"),
    "broken json": (text("problems.json", '{"1": {'), "problems.json is not JSON in UTF-8"),
    "nested json": (text("problems.json", "[" * 100_000), "problems.json is not JSON in UTF-8"),
    "a list": (text("problems.json", "[]"), "problems.json holds a list, not an object"),
    "broken splits": (text("pid_splits.json", '{"train"'), "pid_splits.json is not JSON in UTF-8"),
    "broken captions": (text("captions.json", "{"), "captions.json is not JSON in UTF-8"),
    "letter out of range": (row(answer=2), "problem 1 answer 2 is out of range for 2 choices (0 to 1)"),
    "negative letter": (row(answer=-1), "problem 1 answer -1 is out of range for 2 choices"),
    "letter for index": (row(answer="A"), "problem 1 answer is a text, not an index"),
    "one choice": (row(choices=["ice"]), "problem 1 has 1 choices; 2 to 26 are possible"),
    "27 choices": (row(choices=["ice"] * 27), "problem 1 has 27 choices; 2 to 26 are possible"),
    "empty question": (row(question=" "), "problem 1 question is empty"),
    "half a character": (row(question="a \ud800 b"), "problem 1 question holds half a character"),
    "path as picture": (row(image="../../x.png"), "image '../../x.png' is not a plain file name"),
    "id of no problem": (splits(lambda s: s["train"].append("77")), "are not in problems.json (77)"),
    "number as id": (splits(lambda s: s["train"].append(1)), "split 'train' is not a list of ids in quotes"),
    "long question": (row(question="x" * 3000), "1 of 4 samples exceed 200 tokens, the longest has 30"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_sets(world: World, refused: Refused, name: str) -> None:
    spoil, message = DATA[name]
    spoil(world)
    message = message.format(data=world.data)
    assert message in refused(train.main, training(world))
    if name not in ("long question", "id of no problem"):  # these two are about the training split
        assert message in refused(eval_main, evaluating(world))


ADAPTERS: dict[str, tuple[Spoil, str]] = {
    "none": (lambda w: w.adapter.rename(w.root / "elsewhere"), "neither an adapter folder"),
    "no tensors": (lambda w: tensors_of(w).unlink(), "has no adapter_model.safetensors; the folder is inc"),
    "truncated tensors": (lambda w: cut(tensors_of(w)), "it may be truncated"),
    "broken config": (lambda w: config_of(w).write_text("{"), "adapter_config.json is not JSON"),
    "nested config": (lambda w: config_of(w).write_text("[" * 100_000), "adapter_config.json is not JSON"),
    "missing": (lambda w: edit_tensors(tensors_of(w), lambda t: t.pop("modality.weight")), "lacks 1 tensors"),
    "extra": (
        lambda w: edit_tensors(tensors_of(w), lambda t: t.update(x=torch.ones(1))),
        "1 tensors too many",
    ),
    "misshapen": (
        lambda w: edit_tensors(tensors_of(w), lambda t: t.update({"modality.weight": torch.ones(2, 3)})),
        "modality.weight in {adapter} is (2, 3), but the settings ask for (2, 32)",
    ),
    "whole numbers": (
        lambda w: edit_tensors(
            tensors_of(w), lambda t: t.update({"modality.weight": torch.ones(2, 32).int()})
        ),
        "modality.weight in {adapter} is of torch.int32, not a floating type",
    ),
    "not numbers": (
        lambda w: edit_tensors(tensors_of(w), lambda t: t["modality.weight"].fill_(float("nan"))),
        "modality.weight in {adapter} is not finite",
    ),
    "other base": (
        lambda w: edit_tensors(w.decoder / "model.safetensors", lambda t: t["model.norm.weight"].add_(1)),
        "was made for another decoder",
    ),
    "other tower": (
        lambda w: edit_tensors(
            w.tower / "open_clip_model.safetensors", lambda t: t["visual.ln_post.weight"].add_(1)
        ),
        "was made for another tower",
    ),
    "base gone": (lambda w: w.decoder.rename(w.root / "moved"), "there is no folder {decoder}; set base.dec"),
}
# Values in the description -> what is said to them.
DESCRIPTIONS: list[tuple[dict[str, object], str]] = [
    ({"format_version": "2.0"}, "has format version 2.0, this program reads 1.2; install a newer version"),
    ({"peft_type": "IA3"}, "has peft_type 'IA3', not one of MMA, BOTTLENECK, LORA"),
    ({"r": "4"}, "r is '4'; it must be a whole number"),
    ({"ranks": 3}, "unknown setting 'ranks'"),
    ({"tokenizer_digest": "0"}, "was made for another tokenizer"),
    ({"template": "chat"}, "was trained with template 'chat', which this version does not have"),
    ({"preprocess": {"size": 8}}, "was trained with preprocess {'size': 8}, here it is"),
    ({"modalities": ["text", "sound"]}, "modalities are text, sound; this model also has image"),
    ({"base": None}, "does not say which base it was made for"),
    ({"base": {"decoder": 3}}, "base: decoder is 3; it must be a text"),
    ({"base": {"towr": ""}}, "names its base by unknown settings"),
    ({"provenance": 3}, "does not say with which prompt format it was trained; give one"),
    ({"provenance": {"format": "QCM-B"}}, "no prompt format 'QCM-B'; the nearest are QCM-A"),
]


def tensors_of(world: World) -> Path:
    return world.adapter / "adapter_model.safetensors"


def config_of(world: World) -> Path:
    return world.adapter / "adapter_config.json"


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(world: World, refused: Refused, name: str) -> None:
    spoil, message = ADAPTERS[name]
    spoil(world)
    error = refused(eval_main, evaluating(world))
    assert message.format(adapter=world.adapter, decoder=world.decoder) in error


@pytest.mark.parametrize(("values", "message"), DESCRIPTIONS, ids=lambda value: str(value)[:40])
def test_descriptions_of_adapters(
    world: World, refused: Refused, values: dict[str, object], message: str
) -> None:
    edit_json(config_of(world), lambda content: content.update(values))
    assert message in refused(eval_main, evaluating(world))


COMMANDS: list[tuple[Callable[[Sequence[str]], int], list[str], str]] = [
    (eval_main, [], "the following arguments are required: COMMAND; python -m eval --help"),
    (eval_main, ["rank"], "invalid choice: 'rank'"),
    (
        eval_main,
        ["score", "x", "--data", "x", "--splitt", "x"],
        "unknown argument '--splitt', did you mean --split; python -m",
    ),
    (eval_main, ["score", "none.json", "--data", "x"], "x/problems.json; name the folder that holds"),
    (eval_main, ["score", "{root}/p.json", "--data", "{root}/data", "--max-tokens=3"], "'--max-tokens'"),
    (eval_main, ["score", "{root}/p.json", "--data", "{root}/data"], "question '99' is not in the data set"),
    (eval_main, ["compare", "{root}/p.json", "{root}/none.json"], "holds no right answers; name the data"),
    (eval_main, ["score", "{root}", "--data", "{root}/data"], "cannot be read: Is a directory"),
    (data_main, ["chek", "{root}/data"], "invalid choice: 'chek'"),
    (data_main, ["check", "{root}/nowhere"], "there is no folder {root}/nowhere; name the one that holds"),
    (data_main, ["check", "{root}/data", "--fromat", "QCM-A"], "did you mean --format"),
    (data_main, ["check", "{root}/data", "--format", "QCMA"], "no prompt format 'QCMA'"),
    (
        data_main,
        ["check", "{root}/data", "--tokenizer", "{root}/recipe.yaml"],
        "is not a SentencePiece model",
    ),
    (data_main, ["mini", "{root}/data"], "is not empty and holds no mini data set: name a new"),
    (data_main, ["mini", "{root}/recipe.yaml/x"], "x cannot be written (File exists): make room or name"),
    (data_main, ["mini", "{root}/new", "--problems", "3"], "3 problems are too few"),
]


@pytest.mark.parametrize(("main", "arguments", "message"), COMMANDS)
def test_commands(
    world: World,
    refused: Refused,
    main: Callable[[Sequence[str]], int],
    arguments: list[str],
    message: str,
) -> None:
    (world.root / "p.json").write_text('{"99": 0}')
    error = refused(main, [argument.format(root=world.root) for argument in arguments])
    assert message.format(root=world.root) in error


EVALUATIONS: list[tuple[list[str], str]] = [
    (["--split", "dev"], "no split 'dev'; it has train, val, test, none"),
    (["--split", "none"], "split 'none' is empty; name another"),
    (["--format", "QCM"], "no prompt format 'QCM'; the nearest are"),
    (["--device", "cuda"], "--device cuda: PyTorch finds no CUDA device here; take --device cpu"),
    (["--base.precision", "fp8"], "precision is 'fp8'; choose fp32 or bf16"),
    (["--base.tower_every", "3"], "was trained with tower_every 2, not 3; set base.tower_every to 2"),
    (["--base.precision", "bf16"], "was made for another decoder"),
    (["--decode", "generate", "--max-new-tokens", "9999"], "leaves no room for its question in the 2048"),
    (["--max-new-tokens", "many"], "argument --max-new-tokens: invalid int value: 'many'"),
    (["--adapter", "nowhere"], "nowhere: neither an adapter folder (with adapter_config.json) nor a run"),
    (["--out", "."], "is a folder; name a file to write"),
    (["--out", "x" * 300], "cannot be written: File name too long; name another file"),
]


@pytest.mark.parametrize(("options", "message"), EVALUATIONS, ids=lambda value: str(value)[:40])
def test_evaluations(
    world: World,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refused(eval_main, evaluating(world, *options))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (["train.py", "{root}/none.yaml"], "there is no recipe {root}/none.yaml; recipes/ holds some"),
        (
            ["-m", "eval", "scienceqa", "--adapter", "x"],
            "the following arguments are required: --data, --out",
        ),
        (["-m", "data", "check", "{root}/none"], "there is no folder {root}/none; name the one that holds"),
    ],
)
def test_as_programs(world: World, program: list[str], message: str) -> None:
    before = world.files()
    command = [sys.executable, *(part.format(root=world.root) for part in program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message.format(root=world.root) in done.stderr
    assert world.files() == before


def test_a_good_evaluation_says_nothing_on_stderr(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_main(evaluating(world)) == 0
    assert capsys.readouterr().err == ""
    assert json.loads((world.root / "out.json").read_text())["predictions"].keys() == {"7", "8"}
