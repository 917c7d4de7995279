"""An evaluation on the embedded base that is killed, resumed, shared among processes, or asked of several."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import asking, runner
from eval.__main__ import main
from eval.stream import Part

PROJECT = Path(__file__).parents[2]


def arguments(root: Path, out: Path, *rest: str | Path) -> list[str]:
    fixed = ["scienceqa", "--data", str(root), "--out", str(out), "--device", "cpu", "--long", "truncate"]
    return [*fixed, *map(str, rest)]


def answers(out: Path) -> dict[str, Any]:
    """The content of a result file that an evaluation of the same must share."""
    content: dict[str, Any] = json.loads(out.read_text())
    return {name: content[name] for name in ("scores", "predictions", "unparsable", "checks", "digests")}


def assert_same(one: Path, other: Path) -> None:
    """Two evaluations answer alike; the last of a likelihood's four decimals may be that of another batch."""
    a, b = answers(one), answers(other)
    for pid, made in a["predictions"].items():
        mine, theirs = made.pop("likelihoods"), b["predictions"][pid].pop("likelihoods")
        assert mine == (None if theirs is None else pytest.approx(theirs, abs=1.01e-4))
    assert a == b


GENERATE = ("--decode", "generate", "--max-new-tokens", "12")


@pytest.mark.parametrize("decode", [(), GENERATE], ids=["choice", "generate"])
def test_answers_are_the_same_in_one_process_and_in_three(
    root: Path, adapters: list[Path], tmp_path: Path, decode: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(PROJECT)
    rest = ("--adapter", adapters[0], *decode)
    assert main(arguments(root, tmp_path / "one.json", *rest)) == 0
    assert main(arguments(root, tmp_path / "three.json", *rest, "--processes", "3")) == 0
    assert_same(tmp_path / "one.json", tmp_path / "three.json")
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_answers_are_the_same_at_every_batch_size(
    root: Path, adapters: list[Path], tmp_path: Path, rows: int
) -> None:
    rest = ("--adapter", adapters[0], *GENERATE)
    for name, tokens in (("one", 1), ("some", 512 * rows)):
        out = tmp_path / f"{name}.json"
        assert main(arguments(root, out, *rest, "--tokens-per-batch", str(tokens))) == 0
    assert_same(tmp_path / "one.json", tmp_path / "some.json")


def test_three_runs_give_the_same(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    found = []
    for name in "abc":
        assert main(arguments(root, tmp_path / name, "--adapter", adapters[1], "--decode", "both")) == 0
        found.append([answers(path) for path in sorted((tmp_path / name).iterdir())])
    assert found[0] == found[1] == found[2]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to it"
        time.sleep(0.005)


def test_a_killed_evaluation_goes_on(
    root: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = ("--adapter", adapters[0], "--decode", "generate", "--tokens-per-batch", "1")
    out, whole = tmp_path / "out.json", tmp_path / "whole.json"
    part = tmp_path / "out.json.parts" / "part-0-of-1.jsonl"
    command = [sys.executable, "-m", "eval", *arguments(root, out, *rest)]
    running = subprocess.Popen(command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") >= 3)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not out.exists()
    before = part.read_bytes()
    begun = before[: before.rfind(b"\n") + 1]
    assert 2 <= begun.count(b"\n") - 1 < 8
    part.write_bytes(begun + b'{"column": "adap')  # what a kill leaves of a line
    asked: list[str] = []
    add = Part.add
    monkeypatch.setattr(Part, "add", lambda part, line: (asked.append(line.id), add(part, line))[1])
    assert main(arguments(root, out, *rest)) == 0
    assert len(asked) == 8 - (begun.count(b"\n") - 1)
    assert main(arguments(root, whole, *rest)) == 0
    assert_same(out, whole)


def stopped_after(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every evaluation stop behind so many answers."""
    add, made = Part.add, []

    def stop(part: Part, line: Any) -> None:
        if len(made) == answers:
            raise KeyboardInterrupt
        made.append(add(part, line))

    monkeypatch.setattr(Part, "add", stop)


def test_without_an_answer_nothing_is_left_behind(
    root: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(0, monkeypatch)
    assert main(arguments(root, tmp_path / "out.json", "--adapter", adapters[0])) == 130
    assert not list(tmp_path.glob("out*"))


def test_answers_to_something_else_are_not_taken(
    root: Path,
    adapters: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    with monkeypatch.context() as patched:
        stopped_after(1, patched)
        assert main(arguments(root, out, "--adapter", adapters[0])) == 130
    assert capsys.readouterr().err == "the answers so far are kept; the same command goes on\nstopped\n"
    for rest, message in (
        (
            ["--adapter", adapters[1]],
            r"other settings \(adapter-.*: null there, .* remove it, or name another --out",
        ),
        (["--adapter", adapters[0], "--blind"], r"\(blind: false there, true now\)"),
    ):
        assert main(arguments(root, out, *rest)) == 2
        assert re.search(message, capsys.readouterr().err)
    part = tmp_path / "out.json.parts" / "part-0-of-1.jsonl"
    part.write_text(part.read_text() + "nonsense\n")
    assert main(arguments(root, out, "--adapter", adapters[0])) == 2
    assert "part-0-of-1.jsonl: line 3 is damaged; remove the file" in capsys.readouterr().err
    part.write_text(part.read_text().replace("nonsense", '{"text": "x"}'))
    assert main(arguments(root, out, "--adapter", adapters[0])) == 2
    assert "holds a line that is no answer" in capsys.readouterr().err


def test_a_share_is_written_and_the_rest_is_missed(
    root: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    for share in ("0/2", "1/2"):
        assert main(arguments(root, out, "--adapter", adapters[0], "--shard", share)) == 0
        assert not out.exists()
    files = sorted(path.name for path in (tmp_path / "out.json.parts").iterdir())
    assert files == ["part-0-of-2.jsonl", "part-1-of-2.jsonl"]
    assert main(arguments(root, out, "--adapter", adapters[0])) == 0
    assert len(answers(out)["predictions"]) == 8
    for share in ("2/2", "a", "1"):
        with pytest.raises(SystemExit):
            main(arguments(root, out, "--adapter", adapters[0], "--shard", share))
        assert "is no share; write I/N" in capsys.readouterr().err


def test_a_process_that_fails_is_told_and_answers_are_kept(
    root: Path, adapters: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rest = ("--adapter", adapters[0])
    assert main(arguments(root, tmp_path / "out.json", *rest, "--shard", "0/2")) == 0
    part = tmp_path / "out.json.parts" / "part-0-of-2.jsonl"
    before = part.read_bytes()
    (root / "images" / "test" / "2" / "image.png").write_bytes(b"broken")  # of the second share
    assert main(arguments(root, tmp_path / "out.json", *rest, "--processes", "2")) == 2
    error = capfd.readouterr().err
    assert "is not a picture in a known format" in error
    assert "one of the processes has failed, see above" in error
    assert part.read_bytes() == before


def test_noise_does_not_depend_on_who_asks_which(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    rest = ("--adapter", adapters[0], "--blind")
    assert main(arguments(root, tmp_path / "whole.json", *rest)) == 0
    for share in ("0/3", "1/3", "2/3"):
        assert main(arguments(root, tmp_path / "out.json", *rest, "--shard", share)) == 0
    assert main(arguments(root, tmp_path / "out.json", *rest)) == 0
    assert_same(tmp_path / "out.json", tmp_path / "whole.json")


def test_a_picture_that_cannot_be_decoded_may_be_grey(
    root: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "images" / "test" / "2" / "image.png").write_bytes(b"broken")
    words = arguments(root, tmp_path / "out.json", "--adapter", adapters[0])
    assert main(words) == 2
    assert "--unreadable grey shows grey instead" in capsys.readouterr().err
    assert main([*words, "--unreadable", "grey"]) == 0
    checks = answers(tmp_path / "out.json")["checks"]
    assert checks["unreadable_pictures"] == 1
    assert checks["leaks"]["in_training"] is None and checks["leaks"]["why_unknown"]


def test_half_a_character_is_written(
    root: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(*_: Any) -> Iterator[tuple[int, str]]:
        yield from ((index, "x\ud83d") for index in range(8))

    monkeypatch.setattr(runner, "answer_all", written)
    assert main(arguments(root, tmp_path / "out.json", "--adapter", adapters[0], *GENERATE)) == 0
    assert answers(tmp_path / "out.json")["predictions"]["1"]["text"] == "x?"


def test_a_large_set_is_asked_in_slices(
    root: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = ("--adapter", *adapters, "--with-base", "--decode", "both")
    assert main(arguments(root, tmp_path / "whole", *rest)) == 0
    monkeypatch.setattr(asking, "SLICE", 5)
    assert main(arguments(root, tmp_path / "sliced", *rest)) == 0
    for path in sorted((tmp_path / "whole").iterdir()):
        one, other = answers(path)["predictions"], answers(tmp_path / "sliced" / path.name)["predictions"]
        assert {k: (v["option"], v["text"]) for k, v in one.items()} == {
            k: (v["option"], v["text"]) for k, v in other.items()
        }


def test_children_end_with_a_parent_that_is_killed(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    parts = tmp_path / "out.json.parts"
    rest = ("--adapter", adapters[0], "--decode", "generate", "--tokens-per-batch", "1", "--processes", "2")
    command = [sys.executable, "-m", "eval", *arguments(root, tmp_path / "out.json", *rest)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=PROJECT, env=environment, start_new_session=True)
    wait_for(lambda: sum(path.read_bytes().count(b"\n") > 1 for path in parts.glob("part-*")) == 2)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_for(lambda: not _group(running.pid), seconds=20)
    assert main(arguments(root, tmp_path / "out.json", *rest[:-2])) == 0
    assert len(answers(tmp_path / "out.json")["predictions"]) == 8


def _group(leader: int) -> list[str]:
    """The living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == leader and state != "Z":
            found.append(path.parent.name)
    return found


def test_two_do_not_write_the_same_answers(
    root: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tmp_path / "out.json.parts"
    parts.mkdir()
    with (parts / "part-0-of-1.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(arguments(root, tmp_path / "out.json", "--adapter", adapters[0])) == 2
        assert "another process is writing answers there" in capsys.readouterr().err
        assert main([*arguments(root, tmp_path / "out.json", "--adapter", adapters[0]), "--split", "no"]) == 2
        assert (parts / "part-0-of-1.jsonl").exists(), "it belongs to the other"


def test_a_disk_that_is_full_in_the_middle(
    root: Path,
    adapters: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(root, tmp_path / "out.json", "--adapter", adapters[0], *GENERATE)
    part = tmp_path / "out.json.parts" / "part-0-of-1.jsonl"
    with monkeypatch.context() as patched:
        stopped_after(2, patched)
        assert main(words) == 130
    capsys.readouterr()
    limit = part.stat().st_size + 20  # in the middle of the next line
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    error = capsys.readouterr().err
    assert "part-0-of-1.jsonl: cannot be written: File too large; make room" in error
    assert error.count("\n") == 1
    assert part.stat().st_size == limit
    assert main(words) == 0


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (
            ["--processes", "2", "--shard", "0/2"],
            "--processes shares the questions itself; leave --shard out",
        ),
        (["--beams", "5"], "--beams is for answers that are written"),
        (["--beams", "1", "0", "--decode", "generate"], "--beams is 0; it must be at least 1"),
    ],
)
def test_settings_that_say_nothing(
    root: Path,
    adapters: list[Path],
    tmp_path: Path,
    rest: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(root, tmp_path / "out", "--adapter", adapters[0], *rest)) == 2
    assert message in capsys.readouterr().err


def test_a_lecture_that_has_changed_is_another_prompt(
    root: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(root, tmp_path / "out.json", "--adapter", adapters[0], "--format", "QCML-A")
    assert main([*words, "--shard", "0/2"]) == 0
    rows = json.loads((root / "problems.json").read_text())
    rows["1"]["lecture"] = "Something else."
    (root / "problems.json").write_text(json.dumps(rows))
    assert main(words) == 2
    assert "other settings (prompts: " in capsys.readouterr().err
