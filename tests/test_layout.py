"""The rules of the tree: short files and functions, imports that point down, no paths of one machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_OURS = {"build", "runs", "__pycache__"}
MACHINE_PATH = re.compile(r"(?<![\w.}*])/(?:home|root|Users|work|mnt|scratch)/\w+")


def tracked() -> list[Path]:
    """The files of the project: those git knows, or all where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(part in NOT_OURS or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


FILES = tracked()
SOURCES = [path for path in FILES if path.suffix == ".py"]


def test_there_is_something_to_check() -> None:
    assert {"train.py", "tests/test_layout.py"} <= {path.relative_to(ROOT).as_posix() for path in SOURCES}


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_no_function_is_longer_than_50_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        if "tests" not in path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= 50
    ]
    assert long == []


def test_no_file_is_a_drawer_for_everything() -> None:
    assert [path for path in SOURCES if path.name == "utils.py"] == []


def test_imports_point_down() -> None:
    script = shutil.which("lint-imports", path=Path(sys.executable).parent)
    if script is None:
        pytest.skip("import-linter is not installed")
    result = subprocess.run([script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_no_file_names_a_place_on_one_machine() -> None:
    found = []
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights and tokenizers
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert found == []
