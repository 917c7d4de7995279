"""The entry point on a tiny base of its own: train, stop, resume, refuse."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from data.mini.generate import generate
from finetune.recipe import read_recipe, read_stages
from finetune.task import told as told_scores
from models.build import BaseSettings, load
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.export import write_hf
from models.tower import Features, Tower
from models.tower_spec import TowerSpec
from training.monitor import read_metrics

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "assets/mini/decoder/tokenizer.model"
VISION = {"image_size": 72, "layers": 2, "width": 32, "head_width": 16, "patch_size": 24}
TENSORS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, a data set, and a recipe for both."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    write_hf(
        Decoder(DecoderConfig(32, 2, 4, 2, 48, 2048, max_positions=400)), root / "decoder", torch.float32
    )
    shutil.copy(TOKENIZER, root / "decoder")
    config = {"embed_dim": 16, "vision_cfg": VISION}
    (root / "tower").mkdir()
    (root / "tower/open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    tower = Tower(TowerSpec(config, {}), Features(every=1))
    tensors = {f"visual.{name}": tensor.contiguous() for name, tensor in tower.visual.state_dict().items()}
    save_file(tensors, root / "tower/open_clip_model.safetensors")
    generate(root / "data", problems=180, seed=0)
    (root / "recipe.yaml").write_text(
        f"run: {{folder: {root}/whole, device: cpu, save_every: 2, validate_every: 3}}\n"
        f"base: {{decoder: {root}/decoder, tower: {root}/tower, tower_every: 1}}\n"
        "adapter: {r: 4, projector_hidden: 8}\n"
        f"data: {{root: {root}/data, format: QCM-A, validation_limit: 6, max_tokens: 400}}\n"
        "optim: {lr: 1e-2, max_steps: 6, warmup_steps: 1, batch: 4, tokens_per_batch: 400, threads: 1}\n"
    )
    return root


@pytest.fixture(scope="module")
def whole(world):
    """A run that nothing happened to."""
    assert train.main([str(world / "recipe.yaml")]) == 0
    return world / "whole"


def refused(capsys, *arguments):
    """The one line that a refused command prints."""
    assert train.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_run_leaves_everything_behind(whole, world):
    for name in ("recipe.yaml", "versions.json", "metrics.jsonl", "tensorboard", "loss.png", TENSORS):
        assert (whole / name).exists(), name
    assert [record["step"] for record in read_metrics(whole) if "validation" in record] == [3, 6]
    assert {"loss", "accuracy"} == read_metrics(whole)[-1]["validation"].keys()
    assert sorted(p.name for p in (whole / "checkpoints").iterdir())[-1] == "step-00000006"
    digests = json.loads((whole / "versions.json").read_text())["digests"]
    assert {"base_digest", "tower_digest", "tokenizer_digest", "data train", "data val"} == digests.keys()


def test_the_adapter_can_be_loaded_and_says_where_it_comes_from(whole, world):
    system = load(whole / "adapter")
    tensors = load_file(whole / TENSORS)
    for name, parameter in system.model.adapters.trainable_parameters().items():
        assert torch.equal(parameter, tensors[name])
    description = json.loads((whole / "adapter/adapter_config.json").read_text())
    provenance = description["provenance"]
    assert provenance["format"] == "QCM-A"
    assert provenance["seed"] == 0
    assert provenance["recipe"]["optim"]["lr"] == 1e-2
    assert provenance["scores"].keys() == {"loss", "accuracy", "accuracy_interval", "questions", "split"}
    low, high = provenance["scores"]["accuracy_interval"]
    assert 0 <= low <= provenance["scores"]["accuracy"] <= high <= 1
    assert "data_licence" not in provenance
    assert f"{provenance['scores']['questions']} questions" in (whole / "adapter/README.md").read_text()


def test_the_licence_of_the_data_is_told_and_scores_only_where_there_are_some(world):
    folder = world / "licensed"
    settings = ["--run.folder", str(folder), "--data.licence", "CC BY 4.0", "--data.validation", ""]
    assert train.main([str(world / "recipe.yaml"), *settings, "--optim.max_steps", "2"]) == 0
    provenance = json.loads((folder / "adapter/adapter_config.json").read_text())["provenance"]
    assert provenance["data_licence"] == "CC BY 4.0"
    assert provenance["scores"] is None
    card = (folder / "adapter/README.md").read_text()
    assert "| licence of the data | `CC BY 4.0` |" in card
    assert "None are recorded." in card
    assert str(world) not in card


def test_scores_are_told_with_their_interval():
    assert told_scores(None, "val", 300) is None
    told = told_scores({"loss": 0.5, "accuracy": 275 / 300}, "val", 300)
    assert told is not None
    assert [round(end, 4) for end in told.pop("accuracy_interval")] == [0.8799, 0.9429]  # as in the README
    assert told == {"loss": 0.5, "accuracy": 275 / 300, "questions": 300, "split": "val"}


def test_recipes_name_the_licence_of_their_data():
    licences = {Path("runs/mini-data"): "Apache-2.0", Path("scienceqa"): "CC BY-NC-SA 4.0"}
    for file in ROOT.rglob("recipes/**/*.yaml"):
        for recipe in read_stages(file).values():
            assert recipe.data.root is None or recipe.data.licence == licences[recipe.data.root]


def test_packing_does_not_change_the_order_of_the_samples(whole, world):
    folder = world / "packed"
    settings = ["--optim.tokens_per_batch", "4000", "--run.folder", str(folder), "--data.validation", ""]
    assert train.main([str(world / "recipe.yaml"), *settings]) == 0
    steps = [record for record in read_metrics(whole) if "loss" in record]
    for one, other in zip(steps, read_metrics(folder), strict=True):
        assert sorted(one["samples"]) == sorted(other["samples"])
        assert one["targets"] == other["targets"]


def test_a_stopped_process_is_resumed_to_the_same_bits(whole, world, capsys):
    folder = world / "stopped"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        str(world / "recipe.yaml"),
        "--run.folder",
        str(folder),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert re.search(rf"stopped after step \d: python train.py --resume {folder}\n", output)
    assert train.main(["--resume", str(folder)]) == 0
    assert (folder / TENSORS).read_bytes() == (whole / TENSORS).read_bytes()


def test_a_run_killed_before_its_first_step_is_resumed_or_begun_again(whole, world):
    for name, arguments in (
        ("resumed", ["--resume", str(world / "resumed")]),
        ("again", [str(world / "recipe.yaml"), "--run.folder", str(world / "again")]),
    ):
        (world / name).mkdir()
        shutil.copy(whole / "recipe.yaml", world / name)
        assert train.main(arguments) == 0
        assert (world / name / TENSORS).read_bytes() == (whole / TENSORS).read_bytes()


def test_a_finished_run_is_resumed_in_vain(whole, capsys):
    before = (whole / TENSORS).stat().st_mtime_ns
    assert train.main(["--resume", str(whole)]) == 0
    assert "finished after step 6" in capsys.readouterr().out
    assert (whole / TENSORS).stat().st_mtime_ns == before


def test_a_run_folder_is_not_overwritten(whole, world, capsys):
    assert f"resume it with --resume {whole}" in refused(capsys, world / "recipe.yaml")


def test_resuming_takes_a_run_and_nothing_else(whole, tmp_path, capsys):
    assert "holds no run to resume" in refused(capsys, "--resume", tmp_path)
    assert "nothing else" in refused(capsys, "--resume", whole, "--optim.lr", "1")
    assert "nothing else" in refused(capsys, "--resume")


def test_resuming_on_other_data_is_refused(whole, world, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.copytree(world / "data", tmp_path / "data")
    problems = json.loads((tmp_path / "data/problems.json").read_text())
    for problem in problems.values():
        problem["hint"] += "!"
    (tmp_path / "data/problems.json").write_text(json.dumps(problems))
    recipe = (folder / "recipe.yaml").read_text().replace(f"{world}/data", f"{tmp_path}/data")
    (folder / "recipe.yaml").write_text(recipe)
    assert "begun with another data train, data val" in refused(capsys, "--resume", folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--optim.lrr", "3"], "unknown setting 'optim.lrr', did you mean 'optim.lr'?"),
        (["--data.root", "/nowhere"], "/nowhere/pid_splits.json"),
        (["--data.format", "QCM-B"], "no prompt format 'QCM-B'"),
        (["--data.train", "trian"], "no split 'trian'"),
        (["--data.max_tokens", "20"], "exceed 20 tokens"),
        (["--optim.tokens_per_batch", "50"], "optim.tokens_per_batch is 50"),
        (["--optim.warmup_steps", "9"], "optim.warmup_steps gives 9 steps of warmup in a run of 6 steps"),
        (["--data.validation_limit", "0"], "data.validation_limit is 0"),
        (["--base.decoder", "/nowhere"], "/nowhere"),
        (["--adapter.placement", "everywhere"], "placement is 'everywhere'"),
        (["--run.folder", "/proc/run"], "/proc/run cannot be written"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(world, tmp_path, capsys, settings, message):
    folder = tmp_path / "run"
    error = refused(capsys, world / "recipe.yaml", "--run.folder", folder, *settings)
    assert message in error
    assert not folder.exists()


def test_a_missing_gpu_is_refused(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = ["--run.folder", tmp_path / "run", "--run.device", "cuda"]
    assert "finds no GPU" in refused(capsys, world / "recipe.yaml", *settings)


def test_without_arguments_it_helps(capsys):
    assert train.main([]) == 2
    assert "usage: python train.py RECIPE.yaml" in capsys.readouterr().err
    assert train.main(["--help"]) == 0
    assert "--data.root" in capsys.readouterr().out
    assert "the first argument must be a recipe" in refused(capsys, "--optim.lr", "3")


@pytest.mark.parametrize("file", sorted(ROOT.rglob("recipes/**/*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_can_be_read(file):
    stages = read_stages(file)
    text = file.read_text()
    assert f"python train.py recipes/{file.name}" in text.split("\n\n")[0]
    for name, recipe in stages.items():
        assert isinstance(recipe.base, BaseSettings)
        assert recipe.run.folder == Path("runs") / file.stem / name


def test_published_recipes_have_the_published_settings():
    for name, temperature in (("7b", 10.0), ("13b", 5.0)):
        recipe = read_recipe(ROOT / f"recipes/lavin-{name}.yaml")
        assert recipe.adapter.temperature == temperature
        assert recipe.optim.lr == pytest.approx(9e-3 * 32 / 256)
        assert (recipe.optim.epochs, recipe.optim.warmup, recipe.optim.batch) == (20, 2, 32)
        assert (recipe.optim.weight_decay, recipe.optim.betas, recipe.optim.clip) == (0.02, (0.9, 0.95), None)
