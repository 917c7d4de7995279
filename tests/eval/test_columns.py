"""Who is asked: several adapters, the base, and several ways to answer, side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.columns import _names
from eval.run_command import _paths
from mma import MMAConfig
from models.build import BaseSettings, build_base
from tests.eval.test_resume import GENERATE, answers, arguments, assert_same


@pytest.mark.parametrize("decode", [("--decode", "choice"), GENERATE])
def test_several_adapters_and_the_base_in_one_go(
    root: Path, adapters: list[Path], tmp_path: Path, decode: tuple[str, ...]
) -> None:
    together = tmp_path / "together"
    assert main(arguments(root, together, "--adapter", *adapters, "--with-base", *decode)) == 0
    names = [*(path.name for path in adapters), "base"]
    assert sorted(path.name for path in together.iterdir()) == sorted(f"{name}.json" for name in names)
    for place, name in enumerate(names):
        alone = tmp_path / f"{name}.json"
        rest = ("--adapter", adapters[place % 2], *(["--no-adapter"] if name == "base" else []), *decode)
        assert main(arguments(root, alone, *rest)) == 0
        one, other = (json.loads(path.read_text()) for path in (alone, together / f"{name}.json"))
        assert one["scores"] == other["scores"] and one["digests"] == other["digests"]
        for pid, made in one["predictions"].items():
            assert made["text"] == other["predictions"][pid]["text"]
            assert made["likelihoods"] == pytest.approx(other["predictions"][pid]["likelihoods"], abs=2e-4)


def test_adapters_of_one_name_stay_apart(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    assert main(arguments(root, tmp_path / "out", "--adapter", adapters[0], adapters[0])) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{adapters[0].name}-2.json", f"{adapters[0].name}.json",
    ]  # fmt: skip


def test_greedy_beams_and_choice_side_by_side(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    rest = ("--adapter", adapters[0], "--max-new-tokens", "12")
    together = tmp_path / "together"
    assert main(arguments(root, together, *rest, "--decode", "both", "--beams", "1", "3")) == 0
    name, texts = adapters[0].name, {}
    for label, alone in (
        ("choice", ("--decode", "choice")),
        ("generate", ("--decode", "generate")),
        ("generate-3-beams", ("--decode", "generate", "--beams", "3")),
    ):
        assert main(arguments(root, tmp_path / "alone.json", *rest, *alone)) == 0
        assert_same(tmp_path / "alone.json", together / f"{name}-{label}.json")
        texts[label] = [made["text"] for made in answers(tmp_path / "alone.json")["predictions"].values()]
    assert len(list(together.iterdir())) == 3
    assert texts["generate"] != texts["generate-3-beams"]


def test_adapters_get_names_that_no_other_has() -> None:
    assert _names([Path("/x/a-2"), Path("/x/a"), Path("/y/a"), Path("/x/base")]) == [
        "a-2", "a", "a-3", "base-2",
    ]  # fmt: skip


def test_files_of_columns_do_not_overwrite_each_other() -> None:
    found = _paths(Path("out"), ["my run", "my-run", "b, choice"], several=True)
    assert [path.name for path in found] == ["my-run.json", "my-run-2.json", "b-choice.json"]


def test_adapters_of_different_bases_are_not_asked_together(
    root: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_base(BaseSettings(tower_every=1)).model
    model.adapters.add_adapter("default", MMAConfig(r=4))
    model.adapters.save_pretrained(tmp_path / "other", {"format": "QCM-A"})
    assert main(arguments(root, tmp_path / "out", "--adapter", adapters[0], tmp_path / "other")) == 2
    error = capsys.readouterr().err
    assert re.search(r"other: was trained with tower_every 1, .* with \d; only adapters of one base", error)
