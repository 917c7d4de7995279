"""The command line `python -m mma`: every command on a small world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers

from mma.__main__ import COMMANDS, main
from models.build import load
from tests.small import World, edit_json

ROOT = Path(__file__).parents[2]

Says = Callable[..., str]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    """Runs a command that must end with this code, and gives what it printed."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def other(world: World) -> Path:
    """The world's adapter with other numbers."""
    system = load(world.adapter)
    with torch.no_grad():
        for parameter in system.model.adapters.trainable_parameters().values():
            parameter.add_(0.01)
    system.model.adapters.save_pretrained(world.root / "other", {"step": 5})
    return world.root / "other"


def run_module(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mma", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_arguments_it_lists_its_commands():
    result = run_module()
    assert result.returncode == 2
    for name, (_, _, meaning) in COMMANDS.items():
        assert any(line.split() == [name, *meaning.split()] for line in result.stderr.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"python -m mma {name}" in capsys.readouterr().out


def test_it_runs_as_a_module(trained_world, tmp_path):
    good = run_module("inspect", trained_world.adapter)
    assert (good.returncode, good.stderr) == (0, "")
    assert "Mixture-of-modality adapter" in good.stdout
    wrong = run_module("inspect", tmp_path / "nowhere")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert wrong.stderr.startswith("error: adapter: there is no folder")


def test_what_needs_no_base_imports_no_model(trained_world):
    code = """
import sys
from mma.__main__ import main
_, path = sys.argv
for command in (["inspect", path], ["routes", path], ["diff", path, path]):
    assert main(command) == 0
print([name for name in ("models", "open_clip", "torchvision", "matplotlib") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(trained_world.adapter)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_alone_it_says_which_commands_need_the_checkout(trained_world, tmp_path):
    (tmp_path / "mma").symlink_to(ROOT / "mma")
    assert run_module("inspect", trained_world.adapter, cwd=tmp_path, PYTHONPATH="").returncode == 0
    result = run_module("verify", trained_world.adapter, cwd=tmp_path, PYTHONPATH="")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: adapter: there is no models")
    assert "run it in a checkout" in result.stderr


def test_inspect_in_one_screen(world, says):
    screen = says("inspect", world.run)
    lines = screen.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[2:])) <= 80
    assert screen.startswith(f"{world.adapter}\n") or str(world.adapter) in screen.replace("\n", "")
    told = json.loads(says("inspect", world.run, "--json"))
    assert told["kind"] == "MMA"
    assert f"{told['parameters']:,} parameters in {told['tensors']} tensors" in screen


def test_routes_from_the_folder_and_anew(world, says, tmp_path):
    stored = says("routes", world.adapter)
    assert "decoder.blocks.*.attn_norm" in stored
    anew = says("routes", world.adapter, "--base", world.root / "base", "--png", tmp_path / "r.png")
    assert anew == f"{stored}wrote {tmp_path}/r.png\n"
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_routes_of_a_folder_without_a_table(world, says, refused):
    stored = says("routes", world.adapter)
    edit_json(
        world.adapter / "adapter_config.json",
        lambda d: (d.pop("routing_table"), d.update(format_version="1.0")),
    )
    assert (
        f"stores no routing table (older folders and averages have none); pass --base {world.decoder}"
        in refused("routes", world.adapter)
    )
    assert says("routes", world.adapter, "--base", world.decoder) == stored


def test_verify_says_what_it_checked_and_what_it_costs(world, says):
    printed = says("verify", world.run)
    assert "WRONG" not in printed
    assert "all 10 checks passed: it loads on this base" in printed
    assert "In memory" in printed


def test_verify_on_another_base(world, says):
    other = world.root / "moved"
    (world.root / "base").rename(other)
    assert "all 10 checks passed" in says("verify", world.adapter, "--base", other)
    wrong = says("verify", world.adapter, "--base", other, "--precision", "bf16", code=2)
    assert "WRONG  decoder" in wrong
    assert "WRONG  tower" in wrong
    assert "ok     tokenizer" in wrong
    assert "2 of 8 checks failed: it does not load on this base" in wrong


def test_merge_writes_what_transformers_loads(world, says, tmp_path):
    printed = says("merge", world.run, "--modality", "image", "--out", tmp_path / "hf")
    assert "merged default for image at 2 sites" in printed
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path}/hf")' in printed
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    system = load(world.adapter)
    system.model.adapters.merge_adapter("image")
    weight = system.model.decoder.blocks[0].attn.q_proj.weight
    assert torch.equal(merged.model.layers[0].self_attn.q_proj.weight, weight)
    assert "all 2 checks" not in says("verify", world.adapter, "--base", tmp_path / "hf", code=2)


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed:peft.PeftWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_export_writes_what_peft_loads(world, says, tmp_path):
    printed = says("export", world.run, "--modality", "text", "--out", tmp_path / "lora")
    assert printed.startswith(f"wrote {tmp_path}/lora\nIt is a LoRA for the modality text. Load it with\n")
    base = transformers.AutoModelForCausalLM.from_pretrained(world.decoder)
    peft.PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    assert "LoRA adapter (LORA)" in says("inspect", tmp_path / "lora")
    assert "checks passed" in says(
        "verify", tmp_path / "lora", "--base", world.root / "base", "--tower-every", 2
    )


def test_convert_both_ways(world, checkpoint, says, tmp_path):
    printed = says("convert", checkpoint, tmp_path / "unbound")
    assert printed.startswith(f"wrote {tmp_path}/unbound\nIt is bound to no base")
    assert "convert it again" in says("verify", tmp_path / "unbound", "--base", world.root / "base", code=2)
    given = ("--base", world.root / "base", "--tower-every", 2)
    assert f"It is bound to the base {world.decoder}" in says(
        "convert", checkpoint, tmp_path / "bound", *given
    ).replace("\n", " ")
    assert "it loads on this base" in says("verify", tmp_path / "bound")
    back = says("convert", tmp_path / "unbound", tmp_path / "back.pth")
    assert back.startswith(f"wrote {tmp_path}/back.pth")
    with torch.serialization.safe_globals([__import__("argparse").Namespace]):
        one, two = (
            torch.load(path, weights_only=True)["model"] for path in (checkpoint, tmp_path / "back.pth")
        )
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_convert_takes_settings_that_the_file_does_not_hold(world, checkpoint, says, refused, tmp_path):
    tensors = torch.load(checkpoint, weights_only=False)["model"]
    torch.save({"model": tensors}, tmp_path / "bare.pth")
    line = refused("convert", tmp_path / "bare.pth", tmp_path / "a", "--r", 4)
    assert (
        "does not say its settings (it holds no namespace); pass --scale, --temperature, --tower-rule" in line
    )
    given = ("--r", 4, "--scale", 1, "--temperature", 5, "--tower-rule", "token")
    says("convert", tmp_path / "bare.pth", tmp_path / "a", *given)
    settings = json.loads(says("inspect", tmp_path / "a", "--json"))["settings"]
    assert (settings["r"], settings["temperature"], settings["projector_hidden"]) == (4, 5.0, 8)


def test_diff_has_the_exit_codes_of_diff(world, other, says, refused):
    assert "identical" in says("diff", world.run, world.adapter)
    assert "cosine similarity" in says("diff", world.run, other, code=1)
    told = json.loads(says("diff", world.run, other, "--json", code=1))
    assert not told["identical"]
    assert json.loads(says("diff", world.run, world.run, "--json"))["identical"]
    assert "there is no folder" in refused("diff", world.run, world.root / "nothing")


def test_average_says_whether_it_is_exact(world, other, says, tmp_path):
    printed = says("average", world.run, other, "--out", tmp_path / "mean").replace("\n", " ")
    assert printed.startswith(f"wrote {tmp_path}/mean ")
    assert "not exact: the adapters also differ in down" in printed
    exact = says("average", world.run, world.run, "--out", tmp_path / "same", "--weights", "0.25,0.75")
    assert "exact: it adds to every site the weighted mean" in exact
    doubled = says("average", world.run, world.run, "--out", tmp_path / "sum", "--weights", "1,1", "--sum")
    assert "exact: it adds to every site the weighted sum" in doubled


def test_a_repository_of_the_hub_is_a_folder_too(world, says, monkeypatch):
    asked = []
    monkeypatch.setattr("mma.__main__.find", lambda name: asked.append(name) or world.adapter)
    assert "Mixture-of-modality" in says("inspect", "owner/name")
    assert asked == ["owner/name"]


def test_a_run_with_stages_stands_for_the_adapter_of_its_last(world, says, refused, tmp_path):
    (tmp_path / "stages.txt").write_text("align\ntune\n")
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "adapter").symlink_to(world.adapter)
    assert "stage tune of the run" in refused("inspect", tmp_path)
    (tmp_path / "align").rename(tmp_path / "tune")
    assert "Mixture-of-modality" in says("inspect", tmp_path)


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("mma.__main__.find", interrupted)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "stopped\n"
