"""Recipes are typed, complete when dumped, and a wrong one is refused in one line."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from training.errors import RunError
from training.recipe import RecipeReader, nearest, stages_of, with_variants
from training.settings import OptimSettings, RunSettings


@dataclass(frozen=True)
class Toy:
    """A recipe"""

    run: RunSettings
    optim: OptimSettings = field(default_factory=OptimSettings)


@pytest.fixture
def reader():
    return RecipeReader(Toy, "Trains.")


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("run:\n  folder: runs/a\noptim:\n  lr: 9e-3\n  betas: [0.8, 0.9]\n")
    return file


def test_a_recipe_is_read_with_its_types(reader, file):
    recipe = reader.read(file)
    assert recipe.run.folder == Path("runs/a")
    assert recipe.optim == OptimSettings(lr=9e-3, betas=(0.8, 0.9))


def test_the_command_line_goes_over_the_file(reader, file):
    recipe = reader.read(file, ["--optim.lr", "1e-4", "--optim.clip=1", "--run.folder", "b"])
    assert recipe.optim == OptimSettings(lr=1e-4, betas=(0.8, 0.9), clip=1.0)
    assert recipe.run.folder == Path("b")


def test_a_dumped_recipe_is_complete_and_the_same(reader, file, tmp_path):
    recipe = reader.read(file, ["--run.patience", "3"])
    text = reader.dump(recipe)
    (tmp_path / "full.yaml").write_text(text)
    assert reader.read(tmp_path / "full.yaml") == recipe
    assert all(f"{name.split('.')[1]}:" in text for name in reader.known)


def test_help_says_what_every_setting_means(reader):
    text = reader.help()
    assert text.startswith("usage: python train.py RECIPE.yaml [--section.setting VALUE ...]")
    for name in reader.known:
        assert f"--{name}" in text
    assert "samples per optimizer step" in text
    assert "<class" not in text


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("optim: {lrr: 1}", [], "unknown setting 'optim.lrr', did you mean 'optim.lr'?"),
        ("optm: {lr: 1}", [], "unknown setting 'optm.lr', did you mean 'optim.lr'?"),
        ("lr: 1", [], "unknown setting 'lr', did you mean 'optim.lr'?"),
        (
            "run: {folder: a}",
            ["--optim.batchs", "3"],
            "unknown setting 'optim.batchs', did you mean 'optim.batch'?",
        ),
        ("run: {folder: a}", ["--zzzz=3"], "unknown setting 'zzzz', python train.py --help lists all"),
        ("run: {folder: a}", ["--optim", "x.yaml"], "'optim' is a section"),
        ("optim: 3", [], "'optim' is a section: give its settings, such as optim.lr"),
        ("run: {folder: a}\noptim:", [], "'optim' is a section"),
        ("run: {folder: a}", ["oops"], "unrecognized arguments: oops"),
        ("run: {folder: a}", ["--optim.lr"], "--optim.lr: expected one argument"),
        ("run: {folder: a}", ["--optim.epochs", "1.5"], '"optim.epochs": Expected a int. Got value: 1.5'),
        ("run: {folder: a, device: gpu}", [], '"run.device": Expected'),
        ("run: {folder: a}\noptim: {lr: -1}", [], "optim.lr is -1.0: it must be more than 0"),
        ("optim: {lr: 1}", [], "run.folder"),
        ("a: [b", [], "is not YAML"),
        ("", [], "must hold settings as 'name: value', it holds None"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(reader, file, content, overrides, message):
    file.write_text(content)
    with pytest.raises(RunError) as error:
        reader.read(file, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(reader, tmp_path):
    with pytest.raises(RunError, match=r"there is no recipe .*missing\.yaml"):
        reader.read(tmp_path / "missing.yaml")
    with pytest.raises(RunError, match="cannot be read"):
        reader.read(tmp_path)


def test_the_nearest_name_is_one_that_was_probably_meant():
    known = ["optim.lr", "optim.min_lr", "run.keep", "data.root"]
    assert nearest("optim.learning_rate", known) is None
    assert nearest("train.keep", known) == "run.keep"
    assert nearest("optim.minlr", known) == "optim.min_lr"
    assert nearest("optm.minlr", known) == "optim.min_lr"


def test_stages_are_the_whole_recipe_with_their_own_put_over():
    values = {"a": {"x": 1, "y": 2}, "stages": [{"name": "one", "a": {"x": 3}}, {"name": "two-b", "c": 4}]}
    assert stages_of(values, "f") == {
        "one": {"a": {"x": 3, "y": 2}},
        "two-b": {"a": {"x": 1, "y": 2}, "c": 4},
    }
    assert stages_of({"a": 1}, "f") == {}


@pytest.mark.parametrize("stages", [3, {"one": {}}, ["one"], [{"name": "one"}, 3]])
def test_stages_that_are_no_list_of_tables_are_refused(stages):
    with pytest.raises(RunError, match="f: 'stages' must be a list of stages, each with a name"):
        stages_of({"stages": stages}, "f")


@pytest.mark.parametrize("name", [None, 3, "", "a b", "../up", "-a", "one"])
def test_a_stage_needs_a_name_that_a_folder_can_have(name):
    with pytest.raises(RunError, match="f: a stage is named .*; give each a name of letters, digits and -"):
        stages_of({"stages": [{"name": "one"}, {"name": name}]}, "f")


def test_variants_are_put_over_in_their_order():
    values = {"a": {"x": 1, "y": 2}, "variants": {"p": {"a": {"x": 3}}, 224: {"a": {"x": 4}, "b": 5}}}
    assert with_variants(values, [], "f") == {"a": {"x": 1, "y": 2}}
    assert with_variants(values, ["p"], "f") == {"a": {"x": 3, "y": 2}}
    assert with_variants(values, ["224", "p"], "f") == {"a": {"x": 3, "y": 2}, "b": 5}


def test_a_variant_changes_single_stages_or_all_of_them():
    values = {
        "stages": [{"name": "one", "a": {"x": 1, "y": 2}}, {"name": "two", "b": 1}],
        "variants": {"p": {"stages": {"one": {"a": {"x": 3}}}}, "q": {"stages": [{"name": "three"}]}},
    }
    assert with_variants(values, ["p"], "f")["stages"] == [
        {"name": "one", "a": {"x": 3, "y": 2}},
        {"name": "two", "b": 1},
    ]
    assert with_variants(values, ["p", "q"], "f")["stages"] == [{"name": "three"}]
    assert values["stages"][0]["a"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("values", "names", "match"),
    [
        ({"variants": {"p": {}}}, ["q"], "f has no variant 'q': it has p"),
        ({}, ["q"], "f has no variant 'q': it has none"),
        ({"variants": ["p"]}, [], "f: 'variants' must be a table of variants"),
        ({"variants": {"p": 3}}, [], "f: 'variants' must be a table of variants"),
        ({"variants": {"p": {"stages": {"o": {}}}}}, ["p"], "'p' changes stage 'o', which there is not"),
        ({"stages": 3, "variants": {"p": {"stages": {"o": {}}}}}, ["p"], "'stages' must be a list of stages"),
        ({"stages": [{"name": "o"}], "variants": {"p": {"stages": {"o": 3}}}}, ["p"],
         "variant 'p' gives stage 'o' 3, which is no table of settings"),
    ],
)  # fmt: skip
def test_wrong_variants_are_refused(values, names, match):
    with pytest.raises(RunError, match=match):
        with_variants(values, names, "f")
