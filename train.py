"""Fine-tunes adapters on a frozen base, as a recipe says.

    python train.py recipes/mini-world.yaml --run.folder runs/first
    python train.py --resume runs/first
    python train.py recipes/llava-13b.yaml --variant qlora --plan
    torchrun --nproc-per-node 4 train.py recipes/mini-world.yaml

The run folder gets the final adapter (adapter/), periodic checkpoints (checkpoints/), the exact state
(state/), the whole recipe, versions and digests, metrics.jsonl, TensorBoard files and loss.png. A recipe with
stages runs them one after the other, each in a folder of its own below that one. --plan prints what would be
trained and what memory it takes, from descriptions alone.
Ctrl-C and SIGTERM end in a complete checkpoint, and a run that was killed resumes to the same bits.
A wrong input gives one line and exit code 2.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.commands import print_error
from data.errors import DataError
from eval.errors import EvalError
from finetune.foresee import foresee
from finetune.plan import plan
from finetune.recipe import METHODS, Recipe, read_recipe, read_stages, reader
from finetune.step_plan import step_plan
from finetune.task import RECIPE, build, check_new, discard, say, whole_or_split, write, write_recipe
from mma.errors import AdapterError
from mma.run_folder import STAGES
from models.errors import ModelError
from training.errors import RunError
from training.loop import Outcome, train
from training.parallel import World, joined, local_device

USER_ERRORS = (RunError, DataError, ModelError, AdapterError, EvalError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, resumes or plans; gives the exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or "-h" in arguments or "--help" in arguments:
        method = next((name for name in METHODS if name in arguments), "mma")
        print(reader(method, __doc__ or "").help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        if "--plan" in arguments:
            print_plan([word for word in arguments if word != "--plan"])
            return 0
        return run(arguments)
    except USER_ERRORS as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; what was saved before is kept", file=sys.stderr)
        return 130


def print_plan(arguments: Sequence[str]) -> None:
    """What the stages of a recipe would train, hold and compute."""
    for name, recipe in read_stages(recipe_file(arguments), arguments[1:]).items():
        absent = recipe.run.device == "cuda" and not torch.cuda.is_available()
        device = None if absent else choose_device(recipe.run.device)
        found = plan(recipe, name)
        print(found.table(), step_plan(recipe, found, device).table(), sep="\n", end="\n\n", flush=True)


def run(arguments: Sequence[str]) -> int:
    """The stages of a command line that are not finished yet; gives the exit code."""
    stages, folder = read_command(arguments)
    device = choose_device(next(iter(stages.values())).run.device)
    with joined(device) as world:
        for name, recipe in stages.items():
            if name and (recipe.run.folder / "adapter").exists():
                say(world, f"stage {name} is finished: {recipe.run.folder / 'adapter'}")
                continue
            if name:
                say(world, f"stage {name}")
            fresh = not name and "--resume" not in arguments
            outcome = fine_tune(recipe, fresh, local_device(device), world)
            if outcome.signal is not None:
                say(world, f"stopped after step {outcome.step}: python train.py --resume {folder}")
                return 128 + outcome.signal
            say(world, f"finished after step {outcome.step}: {outcome.adapter}")
    return 0


def recipe_file(arguments: Sequence[str]) -> Path:
    """The recipe that a command line begins with."""
    if not arguments or arguments[0].startswith("-"):
        given = arguments[0] if arguments else "missing"
        raise RunError(f"the first argument must be a recipe, it is {given}: see --help")
    return Path(arguments[0])


def read_command(arguments: Sequence[str]) -> tuple[Mapping[str, Recipe], Path]:
    """The stages of a command line by their names, and the folder that a stopped run is resumed by."""
    if "--resume" not in arguments:
        stages = read_stages(recipe_file(arguments), arguments[1:])
        folders = [recipe.run.folder for recipe in stages.values()]
        folder = folders[0] if "" in stages else folders[0].parent
        for each in folders:
            check_new(each)
        if "" not in stages:
            foresee(stages)
        if "" not in stages and first_process():
            write(folder / STAGES, "".join(f"{name}\n" for name in stages))
            for recipe in stages.values():
                write_recipe(recipe)
        return stages, folder
    if len(arguments) != 2 or arguments[0] != "--resume":
        raise RunError("--resume takes a run folder and nothing else: the run goes on with its own recipe")
    folder = Path(arguments[1])
    names = (folder / STAGES).read_text().split() if (folder / STAGES).exists() else [""]
    return {name: resumed_recipe(folder / name) for name in names}, folder


def resumed_recipe(folder: Path) -> Recipe:
    """The recipe that a run folder holds."""
    if not (folder / RECIPE).exists():
        raise RunError(f"{folder} holds no run to resume: there is no {folder / RECIPE}")
    recipe = read_recipe(folder / RECIPE)
    start = recipe.start
    if (
        start is not None and start.parent.parent == recipe.run.folder.parent
    ):  # a stage; the run may have moved
        start = folder.parent / start.parent.name / start.name
    return replace(recipe, run=replace(recipe.run, folder=folder), start=start)


def first_process() -> bool:
    """Whether this process writes what all of them share."""
    return os.environ.get("RANK", "0") == "0"


def fine_tune(recipe: Recipe, fresh: bool, device: torch.device, world: World) -> Outcome:
    """Trains what the recipe names; a run that cannot begin leaves no folder behind."""
    begun = False
    try:
        if fresh and world.first:
            # Before anything that takes time: from here on a killed run can be resumed.
            write_recipe(recipe)
        with whole_or_split(recipe, world) as place:
            task = build(recipe, device, place)
            begun = True
            return train(task, recipe.optim, recipe.run)
    except USER_ERRORS:
        if fresh and world.first and not begun:
            discard(recipe.run.folder)
        raise


def choose_device(name: str) -> torch.device:
    """The device to compute on; sums on a GPU are made repeatable."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RunError("run.device is cuda, but PyTorch finds no GPU here: take auto or cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for that
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # all of what is taken empty is written
    return torch.device("cuda")


if __name__ == "__main__":
    sys.exit(main())
