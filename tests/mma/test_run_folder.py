"""Paths of adapters, runs and runs with stages all lead to an adapter folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mma.errors import AdapterError
from mma.folder import CONFIG
from mma.run_folder import adapter_of


def finished(folder: Path) -> Path:
    """A run folder with its final adapter."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / CONFIG).touch()
    return folder / "adapter"


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A run whose recipe has two stages, none of them begun."""
    (tmp_path / "stages.txt").write_text("align\ntune\n")
    return tmp_path


def test_an_adapter_or_the_run_that_made_it(tmp_path):
    adapter = finished(tmp_path / "run")
    assert adapter_of(adapter) == adapter_of(tmp_path / "run") == adapter


def test_of_several_stages_it_is_the_last(staged):
    finished(staged / "align")
    last = finished(staged / "tune")
    assert adapter_of(staged) == last


def test_stages_before_the_last_may_be_gone(staged):
    last = finished(staged / "tune")
    assert adapter_of(staged) == last


def test_an_unfinished_run_with_stages_is_refused(staged):
    with pytest.raises(AdapterError, match="stage align of the run .* is not finished"):
        adapter_of(staged)
    finished(staged / "align")
    with pytest.raises(AdapterError, match=r"stage tune .* python train.py --resume [^ ]+, or name .*stage$"):
        adapter_of(staged)


def test_what_holds_no_adapter_is_given_back(tmp_path):
    assert adapter_of(tmp_path) == tmp_path
    (tmp_path / "stages.txt").touch()
    assert adapter_of(tmp_path) == tmp_path
