from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data.__main__ import main


def test_a_clean_set_exits_with_0(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(root)]) == 0
    assert capsys.readouterr().out.endswith("no problems found\n")


def test_faults_exit_with_2(root: Path, tokenizer_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokenizer", str(tokenizer_path), "--max-tokens", "9", "--format", "CQM-A"]
    assert main(["check", str(root), *arguments]) == 2
    output = capsys.readouterr().out
    assert "3 of 3 problems exceed 9 tokens in CQM-A (2, 1, 3)" in output
    assert "tokens p50" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "QCM-ALA"], "error: there is no prompt format 'QCM-ALA'; the nearest are QCM-"),
        (["--max-tokens", "9"], "error: --max-tokens needs lengths; name a tokenizer"),
        (["--tokenizer", "nothing.model"], "error: tokenizer: there is no file nothing.model"),
        (["--tokenizer", "nothing.model", "--slots", "-1"], "error: --slots is -1; give the tokens"),
        (["--tokenizer", __file__], "is not a SentencePiece model"),
    ],
)
def test_wrong_arguments_are_one_line_on_stderr(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["check", str(root), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data", "check", str(tmp_path / "nowhere")]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no folder")


def test_mini_hands_its_settings_to_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("data.__main__.generate", lambda *given: calls.append(given))
    assert main(["mini", str(tmp_path), "--problems", "20", "--seed", "4"]) == 0
    assert calls == [(tmp_path, 20, 4)]
