"""`python -m eval report`: which files it reads, what it calls the columns, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.scienceqa import Problem
from eval.errors import EvalError
from eval.report_command import find_results, grouped
from eval.results import Result, write_result
from mma.errors import AdapterError
from tests.eval.report_files import ROUTES, Page, report_main, scienceqa_result


def written(path: Path, problems: dict[str, Problem], **settings: Any) -> Path:
    """A result file whose answers are all the first option."""
    made = scienceqa_result(problems, dict.fromkeys(problems, 0))
    told = {"benchmark": "scienceqa", "split": "test", **settings}
    write_result(path, replace(made, settings=told))
    return path


def labels(*paths: Path) -> list[list[str]]:
    """The columns of every part."""
    return [list(columns) for columns in grouped(find_results(paths)).values()]


def test_report_of_two_files(
    tmp_path: Path, root: Path, problems: dict[str, Problem], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (written(tmp_path / f"{name}.json", problems) for name in ("ours", "theirs"))
    out = tmp_path / "made" / "page.html"
    report_main(str(ours), str(theirs), "--data", str(root), "--out", str(out), "--title", "Mine")
    page = Page(out.read_text(encoding="utf-8"))
    assert "Mine" in page.said
    assert "ours 25.00 %" in page.said
    assert "theirs 25.00 %" in page.said
    assert "What is in picture 3?" in page.said
    assert capsys.readouterr().out == f"wrote {out} (0.0 MB)\n"


def test_questions_come_from_the_folder_that_the_result_names(
    tmp_path: Path, root: Path, problems: dict[str, Problem]
) -> None:
    path = written(tmp_path / "ours.json", problems, data=str(root))
    report_main(str(path), "--out", str(tmp_path / "page.html"))
    assert "What is in picture 3?" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("change", ["gone", "broken"])
def test_without_data_answers_are_shown_alone(
    tmp_path: Path,
    root: Path,
    problems: dict[str, Problem],
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    path = written(tmp_path / "ours.json", problems, data=str(root if change == "broken" else root / "no"))
    (root / "problems.json").write_text("{")
    report_main(str(path), "--out", str(tmp_path / "page.html"))
    assert "ScienceQA, test: without its questions, which --data scienceqa=DIR would show" in (
        capsys.readouterr().out
    )
    assert "What is in picture 3?" not in (tmp_path / "page.html").read_text()


def test_how_many_questions_are_shown(tmp_path: Path, root: Path, problems: dict[str, Problem]) -> None:
    path = written(tmp_path / "ours.json", problems)
    out = tmp_path / "page.html"
    report_main(str(path), "--data", f"scienceqa={root}", "--questions", "3", "--out", str(out))
    assert out.read_text().count("<article") == 3


def test_a_folder_gives_adapters_first_and_leaves_other_files_alone(
    tmp_path: Path, problems: dict[str, Problem]
) -> None:
    written(tmp_path / "a-base.json", problems, adapter=None)
    written(tmp_path / "b-blind.json", problems, adapter="x", blind=True)
    written(tmp_path / "c-tuned.json", problems, adapter="x")
    written(tmp_path / "d-off.json", problems, no_adapter=True)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    assert labels(tmp_path) == [["c-tuned", "b-blind", "a-base", "d-off"]]


def test_splits_are_parts_of_their_own(tmp_path: Path, problems: dict[str, Problem]) -> None:
    test = written(tmp_path / "a.json", problems)
    val = written(tmp_path / "b.json", problems, split="val")
    assert labels(test, val) == [["a"], ["b"]]


def test_files_of_one_name_are_called_like_their_folders(
    tmp_path: Path, problems: dict[str, Problem]
) -> None:
    first, second = (written(tmp_path / name / "scienceqa.json", problems) for name in ("seed0", "seed1"))
    assert labels(first, second) == [["seed0", "seed1"]]
    third, fourth = (written(tmp_path / name / "base.json", problems) for name in ("seed0", "seed1"))
    assert labels(third, fourth) == [["seed0/base", "seed1/base"]]


def test_a_file_that_names_no_benchmark_is_of_scienceqa(tmp_path: Path, problems: dict[str, Problem]) -> None:
    made = scienceqa_result(problems, {"1": 0})
    write_result(tmp_path / "old.json", Result(made.scores, made.predictions, {}, {}, {}))
    assert list(grouped(find_results([tmp_path / "old.json"]))) == [("scienceqa", "test")]


def test_routes_are_read_from_the_adapter_folder_alone(
    tmp_path: Path, root: Path, problems: dict[str, Problem]
) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "stages.txt").write_text("")
    description = {"peft_type": "MMA", "format_version": "1.2", "routing_table": ROUTES}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(description))
    path, out = written(tmp_path / "ours.json", problems), tmp_path / "page.html"
    report_main(str(path), "--adapter", str(run), "--out", str(out))
    assert "decoder.blocks.1.attn_norm, image, route 2: 0.900" in out.read_text()
    del description["routing_table"]
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(description))
    with pytest.raises(EvalError, match="its adapter has no routing table; leave the option out"):
        report_main(str(path), "--adapter", str(run), "--out", str(out))


def test_no_adapter_there(tmp_path: Path, problems: dict[str, Problem]) -> None:
    path = written(tmp_path / "ours.json", problems)
    with pytest.raises(AdapterError, match="has no adapter_config.json; name an adapter folder"):
        report_main(str(path), "--adapter", str(tmp_path / "none"), "--out", str(tmp_path / "page.html"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "pope=x"], "--data pope=x: there is no result of pope; leave it out"),
        (["--loss", "none.png"], "--loss none.png: no such file"),
        (["--questions", "-1"], "--questions is -1; it must be at least 0"),
        (["--out", "."], "is a folder; name a file to write"),
    ],
)
def test_wrong_options(
    tmp_path: Path, problems: dict[str, Problem], arguments: list[str], message: str
) -> None:
    path = written(tmp_path / "ours.json", problems)
    with pytest.raises(EvalError, match=message):
        report_main(str(path), "--out", str(tmp_path / "page.html"), *arguments)


def test_data_of_several_benchmarks_has_to_be_named(tmp_path: Path, problems: dict[str, Problem]) -> None:
    first = written(tmp_path / "a.json", problems)
    second = written(tmp_path / "b.json", problems, benchmark="mme")
    with pytest.raises(
        EvalError, match="the results are of mme, scienceqa; say whose data it is, as NAME=DIR"
    ):
        report_main(str(first), str(second), "--data", "x", "--out", str(tmp_path / "page.html"))


def test_broken_data_that_was_named_is_an_error(
    tmp_path: Path, root: Path, problems: dict[str, Problem]
) -> None:
    path = written(tmp_path / "ours.json", problems)
    rows = json.loads((root / "pid_splits.json").read_text())
    (root / "pid_splits.json").write_text(json.dumps({**rows, "test": ["1"]}))
    with pytest.raises(EvalError, match="question 2 of 'ours' is not in the data given for scienceqa"):
        report_main(str(path), "--data", str(root), "--out", str(tmp_path / "page.html"))


def test_two_files_of_one_name_in_one_folder_name(tmp_path: Path, problems: dict[str, Problem]) -> None:
    paths = [written(tmp_path / name / "x" / "scienceqa.json", problems) for name in ("a", "b")]
    with pytest.raises(EvalError, match="a second result called 'x'; give one of the files another name"):
        labels(*paths)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="holds no results of `python -m eval`"):
        labels(tmp_path)


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(EvalError, match="not a result of `python -m eval`"):
        labels(tmp_path / "x.json")


def test_an_unknown_benchmark(tmp_path: Path, problems: dict[str, Problem]) -> None:
    path = written(tmp_path / "ours.json", problems, benchmark="nonsense", split="test")
    with pytest.raises(EvalError, match="there is no benchmark 'nonsense'"):
        report_main(str(path), "--out", str(tmp_path / "page.html"))
