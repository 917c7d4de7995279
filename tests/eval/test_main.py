"""The commands that need no model, and what they say to wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.scienceqa import Problem
from eval.__main__ import main
from eval.results import Prediction, Result, write_result
from eval.scienceqa import score

PROJECT = Path(__file__).parents[2]


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def result_file(path: Path, problems: dict[str, Problem], wrong: tuple[str, ...] = ()) -> str:
    options = {pid: problem.answer for pid, problem in problems.items()}
    options |= {pid: (options[pid] + 1) % 2 for pid in wrong}
    predictions = {pid: Prediction(option, problems[pid].answer) for pid, option in options.items()}
    write_result(path, Result(score(problems, options), predictions, {}, {}, {}))
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command refuses."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_rescoring_a_result_gives_its_scores(
    root: Path, problems: dict[str, Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result_file(tmp_path / "a.json", problems, wrong=("1", "5"))
    options = {pid: problem.answer for pid, problem in problems.items()} | {"1": 1, "5": 1}
    assert main(["score", path, "--data", str(root)]) == 0
    assert capsys.readouterr().out == score(problems, options).table() + "\n"


def test_score_of_published_predictions(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "p.json", {"1": 0, "2": 1, "6": -1})
    assert main(["score", path, "--data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "66.67" in out
    assert "unparsable answers: 1" in out


def test_score_of_one_split(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "p.json", {"1": 0, "2": 1, "3": 3, "4": 1, "5": 0})
    assert main(["score", path, "--data", str(root), "--split", "half"]) == 0
    values, counts = capsys.readouterr().out.splitlines()[1:5:3]
    assert values.split()[-1] == "100.00"
    assert counts.split()[-1] == "4"


@pytest.mark.parametrize(
    ("predictions", "options", "message"),
    [
        ({"99": 0}, [], "question '99' is not in the data set"),
        ({"1": 2}, [], "question '1' has the options 0 to 1, but the prediction is 2"),
        ({"1": 0, "2": 1}, ["--split", "half"], "2 of 4 questions of split 'half' have no prediction"),
        ({"1": 0}, ["--split", "dev"], "no split 'dev'; it has test, half, none"),
        ({"1": "A"}, [], "'1' has 'A'"),
    ],
)
def test_score_refuses(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    predictions: dict[str, Any],
    options: list[str],
    message: str,
) -> None:
    path = write(tmp_path / "p.json", predictions)
    assert message in refused(capsys, "score", path, "--data", str(root), *options)


def test_score_refuses_a_result_of_other_data(
    root: Path, problems: dict[str, Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result_file(tmp_path / "a.json", problems)
    rows = json.loads((root / "problems.json").read_text())
    rows["1"]["answer"] = 1
    write(root / "problems.json", rows)
    message = refused(capsys, "score", path, "--data", str(root))
    assert "question '1' was scored with the right answer 0, the data set has 1" in message


def test_score_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "p.json", {"1": 0})
    assert "problems.json" in refused(capsys, "score", path, "--data", str(tmp_path))


def test_compare_of_results(
    problems: dict[str, Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = result_file(tmp_path / "a.json", problems)
    b = result_file(tmp_path / "b.json", problems, wrong=("1", "4"))
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "only A right  2" in out
    assert "p = 0.5 (" in out


def test_compare_of_predictions_needs_data(
    root: Path, problems: dict[str, Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = result_file(tmp_path / "a.json", problems)
    b = write(tmp_path / "b.json", {"1": 0, "2": 0})
    assert "b.json: holds no right answers; name the data set with --data" in refused(capsys, "compare", a, b)
    assert main(["compare", a, b, "--data", str(root)]) == 0
    assert "only A right  1" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["score"], ["scienceqa", "--decode", "guess"], ["rank"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "python -m eval" in error


def python_m_eval(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "eval", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_as_a_command(root: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", {"1": 0})
    good = python_m_eval("score", path, "--data", str(root))
    assert (good.returncode, good.stderr) == (0, "")
    assert "100.00" in good.stdout
    bad = python_m_eval("score", str(tmp_path / "none.json"), "--data", str(root))
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert (
        bad.stderr
        == f"error: {tmp_path}/none.json: no such file; name a result file or published predictions\n"
    )


def test_help_names_every_command() -> None:
    printed = python_m_eval("--help").stdout
    assert all(name in printed for name in ("scienceqa", "score", "compare"))
    assert "--no-adapter" in python_m_eval("scienceqa", "--help").stdout
