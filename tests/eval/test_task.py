"""From an adapter folder and a data set to a result file, with a small random model."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from data.pictures import picture_loader
from data.prompts import render
from data.scienceqa import load_split
from eval import columns
from eval.__main__ import main
from eval.benchmark import Prompting
from eval.choice import choose
from eval.columns import adapter_folder, base_of, prompting_of
from eval.errors import EvalError
from eval.results import read_result
from eval.run_command import BASE
from eval.settings import Settings
from eval.task import evaluate
from models.build import BaseSettings, System
from tests.eval.tiny import asker, tiny_system

KNOWN = ("text", "image")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with the adapter of the small model, which is what loading it gives."""
    system = tiny_system()
    folder = tmp_path / "run"
    system.model.adapters.save_pretrained(folder / "adapter", {"format": "QCM-A"})

    def load(path: Path, settings: BaseSettings | None, device: str) -> System:
        assert path == folder / "adapter"
        assert device == "cpu"
        return tiny_system()

    monkeypatch.setattr(columns, "load", load)
    return folder


def evaluated(run: Path, root: Path, out: Path, *options: str) -> int:
    return main(
        [
            "scienceqa",
            "--data",
            str(root),
            "--adapter",
            str(run),
            "--out",
            str(out),
            "--device",
            "cpu",
            *options,
        ]
    )


def test_a_result_file_is_written_and_can_be_rescored(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "test.json"
    assert evaluated(run, root, out) == 0
    printed = capsys.readouterr().out
    result = read_result(out)
    assert printed == f"{result.scores.table()}\nwrote {out}\n"
    assert list(result.predictions) == [str(number) for number in range(1, 9)]
    assert result.scores.unparsable == 0
    assert result.settings["format"] == "QCM-A"
    assert result.settings["decode"] == "choice"
    assert result.digests.keys() == {
        "base_digest", "tower_digest", "tokenizer_digest", "adapter", "data", "prompts",
    }  # fmt: skip
    assert main(["score", str(out), "--data", str(root), "--split", "test"]) == 0
    assert capsys.readouterr().out == result.scores.table() + "\n"


def test_batch_size_leaves_the_predictions_alone(run: Path, root: Path, tmp_path: Path) -> None:
    for name, budget in (("a", "1"), ("b", "4096")):
        assert evaluated(run, root, tmp_path / name, "--tokens-per-batch", budget) == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a", "b"))
    assert a["scores"] == b["scores"]
    assert [made["option"] for made in a["predictions"].values()] == [
        made["option"] for made in b["predictions"].values()
    ]


def test_blind_changes_pictures_only_and_is_repeatable(run: Path, root: Path, tmp_path: Path) -> None:
    for name, options in (("seen", []), ("blind", ["--blind"]), ("again", ["--blind"])):
        assert evaluated(run, root, tmp_path / name, *options) == 0
    seen, blind, again = (read_result(tmp_path / name).predictions for name in ("seen", "blind", "again"))
    assert blind == again
    changed = {pid for pid in seen if seen[pid].likelihoods != blind[pid].likelihoods}
    assert changed == {"2", "3", "5"}  # those with a picture


def test_without_adapter_it_is_the_base(run: Path, root: Path, tmp_path: Path) -> None:
    assert evaluated(run, root, tmp_path / "tuned") == 0
    assert evaluated(run, root, tmp_path / "base", "--no-adapter") == 0
    tuned, base = read_result(tmp_path / "tuned"), read_result(tmp_path / "base")
    assert "adapter" not in base.digests
    assert all(
        tuned.predictions[pid].likelihoods != made.likelihoods for pid, made in base.predictions.items()
    )


def test_the_texts_of_options_can_be_compared(run: Path, root: Path, tmp_path: Path) -> None:
    assert evaluated(run, root, tmp_path / "texts", "--options", "texts") == 0
    found = read_result(tmp_path / "texts").predictions
    system = tiny_system()
    problems = load_split(root, "test")
    samples = [render(problem, "QCM-A", problem.picture(root)) for problem in problems]
    texts = [
        replace(sample, options=problem.choices) for sample, problem in zip(samples, problems, strict=True)
    ]
    wanted = choose(asker(system, picture_loader(system.preprocess)), texts).predictions
    for pid, made in found.items():
        assert made.likelihoods == pytest.approx(wanted[pid].likelihoods, abs=2e-4)
        assert made.option == wanted[pid].option


def test_generated_answers_keep_their_text(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(run, root, tmp_path / "out", "--decode", "generate", "--max-new-tokens", "5") == 0
    result = read_result(tmp_path / "out")
    assert result.scores.unparsable == 8
    assert all(made.text is not None and made.likelihoods is None for made in result.predictions.values())
    assert "unparsable answers: 8 (counted as wrong)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "no split 'dev'; it has test, half, none"),
        (["--split", "none"], "split 'none' is empty"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--tokens-per-batch", "-5"], "--tokens-per-batch is -5; it must be at least 1"),
        (["--format", "QCM-B"], "no prompt format 'QCM-B'"),
        (["--base.precision", "fp8"], "precision is 'fp8'"),
    ],
)
def test_refusals_leave_no_file(
    run: Path,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert evaluated(run, root, tmp_path / "out.json", *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_out_may_not_be_a_folder(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(run, root, tmp_path) == 2
    assert "is a folder; name a file to write" in capsys.readouterr().err


def test_adapter_folder(run: Path, tmp_path: Path) -> None:
    assert adapter_folder(run) == adapter_folder(run / "adapter") == run / "adapter"
    with pytest.raises(EvalError, match=r"neither an adapter folder .* nor a run folder"):
        adapter_folder(tmp_path)
    (tmp_path / "stages.txt").write_text("align\ntune\n")
    (tmp_path / "tune").symlink_to(run)
    assert adapter_folder(tmp_path) == tmp_path / "tune" / "adapter"


def test_prompt_format_is_the_adapters_unless_given(run: Path, root: Path, tmp_path: Path) -> None:
    adapters = tiny_system().model.adapters
    adapters.save_pretrained(tmp_path / "with", {"format": "CQM-A", "captions": True})
    adapters.save_pretrained(tmp_path / "without", {})
    assert prompting_of(tmp_path / "with", None) == Prompting("lavin", "CQM-A", True, KNOWN)
    assert prompting_of(tmp_path / "with", "QCM-A") == Prompting("lavin", "QCM-A", True, KNOWN)
    assert prompting_of(tmp_path / "without", "llava") == Prompting("lavin", "llava", False, KNOWN)
    with pytest.raises(EvalError, match="without: does not say with which prompt format it was trained"):
        evaluate(Settings(root, (tmp_path / "without",), device="cpu"))


def test_the_base_is_the_adapters_unless_given() -> None:
    recorded = {"base": {"decoder": "a", "precision": "bf16"}}
    assert base_of(recorded, {}) is None
    assert base_of(recorded, {"decoder": "b"}) == BaseSettings(decoder="b", precision="bf16")
    assert base_of({}, {"decoder": "b"}) == BaseSettings(decoder="b")


def test_the_command_line_offers_every_setting_of_the_base() -> None:
    assert set(BASE) == {field.name for field in fields(BaseSettings)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(run: Path, root: Path) -> None:
    with pytest.raises(EvalError, match="--device cuda: PyTorch finds no CUDA device"):
        evaluate(Settings(root, (run,), device="cuda"))
