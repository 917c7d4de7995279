"""Recipes of every method: what a file says, what the command line says, stages and variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import DataError
from finetune.recipe import METHODS, LoraRecipe, MMARecipe, PartsRecipe, read_recipe, read_stages, reader
from mma import AdapterError, LoraConfig, MMAConfig
from training.errors import RunError

COMMON = "run: {folder: runs/a}\ndata: {root: d}\n"
STAGED = """
run: {folder: runs/a}
data: {root: d}
optim: {lr: 1.0e-3, epochs: 1}
stages:
  - {name: pretrain, method: parts, adapter: {projector: linear}, optim: {lr: 2.0e-3}}
  - {name: tune, method: lora, adapter: {projector: linear, r: 4}}
variants:
  small: {base: {quantise: nf4}, stages: {tune: {adapter: {r: 2}}}}
  slow: {optim: {epochs: 5}}
  other: {stages: [{name: only, method: mma}]}
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path / "recipe.yaml"

    return write


def test_the_method_decides_what_settings_there_are(file):
    assert isinstance(read_recipe(file(COMMON)), MMARecipe)
    lora = read_recipe(file(COMMON + "method: lora\nadapter: {r: 3}\n"))
    assert isinstance(lora, LoraRecipe) and lora.settings == LoraConfig(r=3)
    with pytest.raises(RunError, match="unknown setting 'adapter.routes'"):
        read_recipe(file(COMMON + "method: lora\nadapter: {routes: 3}\n"))
    with pytest.raises(RunError, match=r"method is 'prefix'; choose mma, lora, bottleneck, parts"):
        read_recipe(file(COMMON + "method: prefix\n"))


@pytest.mark.parametrize("words", [["--method", "lora"], ["--method=lora"]])
def test_the_command_line_may_choose_the_method(file, words):
    assert isinstance(read_recipe(file(COMMON), words), LoraRecipe)


@pytest.mark.parametrize("method", METHODS)
def test_a_dumped_recipe_is_the_same(file, method, tmp_path):
    recipe = read_recipe(file(COMMON + f"method: {method}\n"))
    assert read_recipe(file(reader(method).dump(recipe))) == recipe


def test_a_file_without_stages_is_one(file):
    assert list(read_stages(file(COMMON))) == [""]
    assert read_stages(file(COMMON))[""].settings == MMAConfig()


def test_stages_share_settings_and_start_from_the_one_before(file):
    stages = read_stages(file(STAGED))
    assert list(stages) == ["pretrain", "tune"]
    first, second = stages.values()
    assert isinstance(first, PartsRecipe) and isinstance(second, LoraRecipe)
    assert (first.optim.lr, second.optim.lr, second.optim.epochs) == (2e-3, 1e-3, 1)
    assert first.run.folder == Path("runs/a/pretrain") and first.start is None
    assert second.run.folder == Path("runs/a/tune") and second.start == Path("runs/a/pretrain/adapter")


def test_the_command_line_counts_for_every_stage(file):
    stages = read_stages(file(STAGED), ["--run.folder", "runs/b", "--optim.epochs", "3"])
    assert [stage.run.folder for stage in stages.values()] == [Path("runs/b/pretrain"), Path("runs/b/tune")]
    assert [stage.optim.epochs for stage in stages.values()] == [3, 3]
    assert stages["tune"].start == Path("runs/b/pretrain/adapter")


@pytest.mark.parametrize("words", [["--variant", "small,slow"], ["--variant=small", "--variant", "slow"]])
def test_variants_go_over_the_recipe_in_their_order(file, words):
    stages = read_stages(file(STAGED), words)
    assert {stage.base.quantise for stage in stages.values()} == {"nf4"}
    assert stages["tune"].settings.r == 2 and stages["tune"].optim.epochs == 5
    assert stages["tune"].settings.projector == "linear"
    assert stages["tune"].run.folder == Path("runs/a-small-slow/tune")
    named = read_stages(file(STAGED), [*words, "--run.folder", "runs/b"])
    assert named["tune"].run.folder == Path("runs/b/tune")


def test_a_variant_may_bring_stages_of_its_own(file):
    assert list(read_stages(file(STAGED), ["--variant", "other"])) == ["only"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--variant", "smal"], "has no variant 'smal': it has small, slow, other"),
        (["--variant"], "--variant takes the names of variants, separated by commas"),
        (["--variant=small", "slow"], "--variant takes the names of variants"),
        (["--optim.lrr", "1"], "unknown setting 'optim.lrr', did you mean 'optim.lr'"),
    ],
)
def test_a_wrong_command_line_is_refused(file, words, match):
    with pytest.raises(RunError, match=match):
        read_stages(file(STAGED), words)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("run: {folder: a}\n", RunError, "nothing to train on: set data.root to a data set, or data.mix"),
        (COMMON.replace("d}", "d, template: lavn}"), RunError, "data.template is 'lavn': choose .*lavin"),
        (COMMON.replace("d}", "d, format: QCM}"), DataError, "QCM"),
        (COMMON.replace("d}", "d, max_tokens: 0}"), RunError, "data.max_tokens is 0: it must be at least 1"),
        (COMMON.replace("d}", "d, train: ''}"), RunError, "data.train is empty: name the split"),
        ("run: {folder: a, patience: 2}\ndata: {root: d, validation: ''}\n", RunError, "no validation"),
        (COMMON + "adapter: {r: 0}\n", AdapterError, "r is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_in_one_line(file, text, error, match):
    with pytest.raises(error, match=match) as found:
        read_recipe(file(text))
    assert "\n" not in str(found.value)


def test_an_error_names_its_stage(file):
    with pytest.raises(RunError, match=r"recipe.yaml, stage tune: unknown setting 'adapter.rank'"):
        read_stages(file(STAGED.replace("r: 4", "rank: 4")))


def test_the_settings_of_one_method_do_not_go_by_the_name_of_another():
    with pytest.raises(RunError, match="method is 'mma', but this is a LoraRecipe: name its own"):
        reader("lora").read_values({"run": {"folder": "a"}, "data": {"root": "a"}}, "a")
