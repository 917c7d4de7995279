from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.__main__ import main


def row(name: str, question: str = "What?", **fields: object) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]
    return {"id": name, "conversations": turns, **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_clean_files_are_counted(
    folder: Path, tokenizer_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(folder / "one.jsonl", [row("1", "<image> What?", image="good.png"), row("2")])
    two = write(folder / "two.jsonl", [{"instruction": "Add.", "output": "3"}])
    arguments = ["check", one, two, "--template", "vicuna_v1", "--tokenizer", str(tokenizer_path)]
    assert main([*arguments, "--slots", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tokens mean" in lines[0] and "p95" in lines[0]
    assert lines[1].split()[1:4] == ["2", "1", "2"] and lines[2].split()[1:4] == ["1", "0", "1"]
    assert lines[-1] == "no problems found"
    assert main(arguments) == 0
    longest = [int(text.splitlines()[1].split()[-1]) for text in ("\n".join(lines), capsys.readouterr().out)]
    assert longest[0] == longest[1] + 3


def test_all_faults_come_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row("1", image="broken.png"),
        row("2", image="missing.png"),
        row("2", " "),
        row("4", "<image>"),
        row("5", image="http://x.org/a.png"),
        row("1", image="broken.png"),
    ]
    path = folder / "rows.jsonl"
    write(path, rows)
    with path.open("a") as file:
        file.write("\n{broken\n")
    assert main(["check", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    found = [" ".join(line.split()).removeprefix(f"{path}") for line in lines[1 : lines.index("")]]
    expected = [
        (", row 3", "question 1 is empty"),
        (", row 4", "has 1 <image> marks for 0 pictures"),
        (", row 5", "is an address; fetch it"),
        (", row 7", "is not JSON in UTF-8"),
        (", row 1 (id 1)", "broken.png"),
        (", row 2 (id 2)", "there is no picture"),
    ]
    assert len(found) == len(expected)
    assert all(
        line.startswith(start) and what in line for line, (start, what) in zip(found, expected, strict=True)
    )
    assert lines[-1] == "6 problems found"  # an id that two rows have is none


def test_lengths_and_what_a_template_refuses(
    folder: Path, tokenizer_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder / "rows.jsonl", [row("1"), row("2", image="good.png")])
    measure = ["check", path, "--tokenizer", str(tokenizer_path)]
    assert main([*measure, "--max-tokens", "3"]) == 2
    assert "2 of 2 rows exceed 3 tokens as lavin (1, 2)" in capsys.readouterr().out
    assert main([*measure, "--template", "plain"]) == 2
    assert "sample 1: this template is for captions of pictures" in capsys.readouterr().out


def test_another_folder_of_pictures_and_a_scienceqa_folder_beside(
    folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "rows.jsonl"
    write(path, [row("1", image="rows/good.png")])
    (folder / "pictures/rows").mkdir(parents=True)
    (folder / "good.png").rename(folder / "pictures/rows/good.png")
    assert main(["check", str(path), str(root), "--images", str(folder / "pictures")]) == 0
    output = capsys.readouterr().out
    assert "trainval" in output and output.count("no problems found") == 2


def test_an_unknown_template_is_refused(folder: Path, tokenizer_path: Path, capsys: Any) -> None:
    path = write(folder / "rows.jsonl", [row("1")])
    assert main(["check", path, "--tokenizer", str(tokenizer_path), "--template", "none"]) == 2
    assert "error: template 'none' is unknown; choose one of" in capsys.readouterr().err
