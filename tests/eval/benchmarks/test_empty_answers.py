"""A file without answers is refused, and an error in a file of answers says to write it anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmark import find
from eval.errors import EvalError

EMPTY = {
    "vqav2": ("a.json", "[]"),
    "gqa": ("a.json", "[]"),
    "textvqa": ("a.json", "[]"),
    "coco_captions": ("a.json", "[]"),
    "mmmu": ("a.json", "{}"),
    "mmvet": ("a.json", "{}"),
    "mathvista": ("a.json", "{}"),
    "scienceqa": ("a.json", "{}"),
    "pope": ("a.jsonl", ""),
    "mme": ("a.jsonl", ""),
    "mmbench": ("a.jsonl", ""),
    "ai2d": ("a.jsonl", "\n"),
    "llava_bench": ("a.jsonl", ""),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_answers(name: str, tmp_path: Path) -> None:
    file, text = EMPTY[name]
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(EvalError, match=f"{file}: holds no answers; name the file of a finished run"):
        find(name).read(tmp_path / file)


@pytest.mark.parametrize("name", EMPTY)
def test_a_broken_file_and_none(name: str, tmp_path: Path) -> None:
    path = tmp_path / EMPTY[name][0]
    with pytest.raises(EvalError, match="no such file; name a file of answers that there is"):
        find(name).read(path)
    path.write_text("[{", encoding="utf-8")
    with pytest.raises(EvalError, match="broken JSON at .*; write the file anew"):
        find(name).read(path)
