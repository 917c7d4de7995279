"""Fine-tunes adapters on a frozen base, as a recipe says.

    python train.py recipes/mini-world.yaml --run.folder runs/first
    python train.py --resume runs/first

The run folder gets the final adapter (adapter/), periodic checkpoints (checkpoints/), the exact state
(state/), the whole recipe, versions and digests, metrics.jsonl, TensorBoard files and loss.png.
Ctrl-C and SIGTERM end in a complete checkpoint, and a run that was killed resumes to the same bits.
A wrong input gives one line and exit code 2.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.commands import print_error
from data.epochs import EpochOrder, micro_batches
from data.errors import DataError
from data.lengths import Long, fit
from data.packing import PackedBatch, collate, pack
from data.pictures import check_pictures, picture_loader
from data.prompts import render, require_format
from data.sample import Sample, Tokens
from data.scienceqa import digest, load_split
from data.template import LavinTemplate
from eval.errors import EvalError
from eval.results import versions
from eval.runner import Asker, accuracy
from eval.statistics import wilson
from mma import MMAConfig
from mma.errors import AdapterError
from models.build import BaseSettings, System, build_base
from models.errors import ModelError
from training.errors import RunError
from training.loop import Outcome, Task, train
from training.recipe import RecipeReader
from training.run_state import PARTIAL, replace_file
from training.settings import OptimSettings, RunSettings

RECIPE, VERSIONS = "recipe.yaml", "versions.json"
USER_ERRORS = (RunError, DataError, ModelError, AdapterError, EvalError)


@dataclass(frozen=True)
class DataSettings:
    """What is learned, and how it is put to the model"""

    root: Path
    """folder of the data set in ScienceQA's layout (problems.json)"""
    format: str = "QCM-ALE"
    """prompt format: the parts of the prompt, a dash, the parts of the response"""
    captions: bool = False
    """add the picture's caption to the context"""
    train: str = "train"
    """split to train on"""
    validation: str = "val"
    """split to validate on; empty for no validation"""
    validation_limit: int | None = None
    """validate on the first so many samples only"""
    max_tokens: int = 512
    """longest sample, in tokens"""
    long: Long = "error"
    """what to do with longer ones: error, truncate (shortens the prompt) or drop"""
    pictures_in_memory: int = 0
    """number of prepared pictures to keep in memory"""
    licence: str = ""
    """licence of the data, told in the adapter's model card; empty if it is not known"""

    def __post_init__(self) -> None:
        require_format(self.format)
        if not self.train:
            raise RunError("data.train is empty: name the split to train on")
        for name, least in (("max_tokens", 1), ("validation_limit", 1), ("pictures_in_memory", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RunError(f"data.{name} is {value}: it must be at least {least}")


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run"""

    run: RunSettings
    data: DataSettings
    base: BaseSettings = field(default_factory=BaseSettings)
    adapter: MMAConfig = field(default_factory=MMAConfig)
    optim: OptimSettings = field(default_factory=OptimSettings)

    def __post_init__(self) -> None:
        if self.run.patience is not None and not self.data.validation:
            raise RunError("run.patience is set, but there is no validation: name a split in data.validation")


@dataclass(frozen=True)
class Data:
    """The samples of both splits, as text and as tokens."""

    train: tuple[Tokens, ...]
    validation: tuple[Tokens, ...]
    questions: list[Sample]  # those of the validation that fit


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or resumes; gives the exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    reader = recipe_reader()
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(reader.help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        recipe, resumed = read_command(reader, arguments)
        outcome = fine_tune(recipe, resumed)
    except USER_ERRORS as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; what was saved before is kept", file=sys.stderr)
        return 130
    if outcome.signal is not None:
        print(f"stopped after step {outcome.step}: python train.py --resume {recipe.run.folder}")
        return 128 + outcome.signal
    print(f"finished after step {outcome.step}: {outcome.adapter}")
    return 0


def recipe_reader() -> RecipeReader[Recipe]:
    """Reads this program's recipes."""
    return RecipeReader(Recipe, __doc__ or "")


def read_command(reader: RecipeReader[Recipe], arguments: Sequence[str]) -> tuple[Recipe, bool]:
    """The recipe of the command line, and whether its run is resumed."""
    if "--resume" not in arguments:
        if arguments[0].startswith("-"):
            raise RunError(f"the first argument must be a recipe, it is {arguments[0]}: see --help")
        recipe = reader.read(Path(arguments[0]), arguments[1:])
        check_new(recipe.run.folder)
        return recipe, False
    if len(arguments) != 2 or arguments[0] != "--resume":
        raise RunError("--resume takes a run folder and nothing else: the run goes on with its own recipe")
    folder = Path(arguments[1])
    if not (folder / RECIPE).exists():
        raise RunError(f"{folder} holds no run to resume: there is no {folder / RECIPE}")
    recipe = reader.read(folder / RECIPE)
    return replace(recipe, run=replace(recipe.run, folder=folder)), True


def check_new(folder: Path) -> None:
    """Refuses a folder with anything in it, but for what a run killed before its first step leaves."""
    try:
        held = {path.name for path in folder.iterdir()} - {RECIPE, RECIPE + PARTIAL}
    except OSError:  # there is none yet; one that cannot be made is refused when it is
        return
    if VERSIONS in held:
        raise RunError(
            f"{folder} holds a run: resume it with --resume {folder}, or choose another --run.folder"
        )
    if held:
        raise RunError(f"{folder} is not empty and holds no run: choose another --run.folder")


def fine_tune(recipe: Recipe, resumed: bool) -> Outcome:
    """Trains what the recipe names; a run that cannot begin leaves no folder behind."""
    try:
        if not resumed:
            # Before anything that takes time: from here on a killed run can be resumed.
            write(recipe.run.folder / RECIPE, recipe_reader().dump(recipe))
        task = build(recipe, resumed)
    except USER_ERRORS:
        if not resumed:
            discard(recipe.run.folder)
        raise
    return train(task, recipe.optim, recipe.run)


def build(recipe: Recipe, resumed: bool) -> Task:
    """Reads base and data, adds a fresh adapter, and checks or records what the run is made of."""
    device = choose_device(recipe.run.device)
    splits = [split for split in (recipe.data.train, recipe.data.validation) if split]
    data_digests = {split: digest(recipe.data.root, split) for split in splits}
    system = build_base(recipe.base, device)
    torch.manual_seed(recipe.optim.seed)
    system.model.adapters.add_adapter("default", recipe.adapter)
    data = read_data(recipe, system)
    provenance = {
        "format": recipe.data.format,
        "captions": recipe.data.captions,
        "data_digest": data_digests[recipe.data.train],
        **({"data_licence": recipe.data.licence} if recipe.data.licence else {}),
        "recipe": json.loads(json.dumps(asdict(recipe), default=str)),
    }
    task = make_task(recipe, system, data, provenance, device)
    # Errors of these two must come before the run has begun.
    recipe.optim.warmup_length(task.steps_per_epoch)
    if not resumed:
        check_pictures(tokens.image for tokens in data.train + data.validation if tokens.image is not None)
    digests = {**system.digests, **{f"data {split}": data_digests[split] for split in splits}}
    if resumed and (recipe.run.folder / VERSIONS).exists():
        check_digests(recipe.run.folder, digests)
    else:
        content = {"versions": versions(), "digests": digests, "seed": recipe.optim.seed}
        write(recipe.run.folder / VERSIONS, json.dumps(content, indent=2) + "\n")
    announce(recipe, system, data, task)
    return task


def choose_device(name: str) -> torch.device:
    """The device to compute on; sums on a GPU are made repeatable."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RunError("run.device is cuda, but PyTorch finds no GPU here: take auto or cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for that
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda")


def read_data(recipe: Recipe, system: System) -> Data:
    """Both splits, rendered and tokenised; what is too long is treated as the recipe says."""
    settings = recipe.data
    template = LavinTemplate(system.tokenizer, system.image_slots)
    limit = min(settings.max_tokens, system.model.decoder.config.max_positions)
    if limit > recipe.optim.tokens_per_batch:
        raise RunError(
            f"optim.tokens_per_batch is {recipe.optim.tokens_per_batch}, but one sample may have {limit} "
            "tokens (data.max_tokens): raise the first or lower the second"
        )

    def read(split: str, most: int | None) -> tuple[list[Sample], tuple[Tokens, ...]]:
        problems = load_split(settings.root, split)[:most] if split else []
        samples = [
            render(problem, settings.format, problem.picture(settings.root), settings.captions)
            for problem in problems
        ]
        fitted = fit([template.tokens(sample) for sample in samples], limit, settings.long)
        if fitted.summary:
            print(f"{split}: {fitted.summary}")
        return samples, fitted.tokens

    _, trained = read(settings.train, None)
    samples, validation = read(settings.validation, settings.validation_limit)
    if settings.validation and not validation:
        raise RunError(f"there is no sample to validate on in data.validation '{settings.validation}'")
    kept = {tokens.sample_id for tokens in validation}
    return Data(trained, validation, [sample for sample in samples if sample.id in kept])


def check_digests(folder: Path, digests: dict[str, str]) -> None:
    """Refuses to resume a run on another base or other data."""
    try:
        before = dict(json.loads((folder / VERSIONS).read_text())["digests"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / VERSIONS} cannot be read ({error}): start the run anew") from error
    if changed := [name for name in digests if before.get(name) != digests[name]]:
        raise RunError(f"{folder} was begun with another {', '.join(changed)}: put it back, or start anew")


def write(file: Path, text: str) -> None:
    """Writes a file of the run folder, whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, text.encode())
    except OSError as error:
        raise RunError(
            f"the run folder {file.parent} cannot be written ({error.strerror}): "
            "make room or choose another --run.folder"
        ) from error


def discard(folder: Path) -> None:
    """Removes the folder of a run that has not begun, if nothing else is in it."""
    with suppress(OSError):  # there may be none, or other things in it
        (folder / RECIPE).unlink(missing_ok=True)
        folder.rmdir()


def make_task(
    recipe: Recipe, system: System, data: Data, provenance: dict[str, Any], device: torch.device
) -> Task:
    """What the training loop needs to know of model and data."""
    optim, adapters = recipe.optim, system.model.adapters
    order = EpochOrder(len(data.train), optim.seed)
    load_picture = picture_loader(system.preprocess, recipe.data.pictures_in_memory)

    def batches_of_step(step: int) -> list[PackedBatch]:
        groups = micro_batches(data.train, order.step(step, optim.batch), optim.tokens_per_batch)
        return [collate(group, load_picture) for group in groups]

    def save_adapter(folder: Path, where: dict[str, Any]) -> None:
        scores = told(where["scores"], recipe.data.validation, len(data.questions))
        adapters.save_pretrained(folder, {**provenance, **where, "scores": scores})

    return Task(
        model=system.model,
        trainables=adapters.trainable_parameters(),
        batches_of_step=batches_of_step,
        steps_per_epoch=order.steps_per_epoch(optim.batch),
        save_adapter=save_adapter,
        validate=make_validation(recipe, system, data, load_picture) if data.validation else None,
        device=device,
    )


def told(scores: dict[str, float] | None, split: str, questions: int) -> dict[str, Any] | None:
    """The scores of a validation as an adapter folder tells them: with what says how sure they are."""
    if scores is None:
        return None
    right = round(scores["accuracy"] * questions)
    return {
        **scores,
        "accuracy_interval": list(wilson(right, questions)),
        "questions": questions,
        "split": split,
    }


def make_validation(
    recipe: Recipe, system: System, data: Data, load_picture: Callable[[Path], Tensor]
) -> Callable[[], dict[str, float]]:
    """Loss per supervised token and share of right choices on the validation split."""
    budget = recipe.optim.tokens_per_batch
    template = LavinTemplate(system.tokenizer, system.image_slots)
    long: Literal["error", "truncate"] = "truncate" if recipe.data.long == "truncate" else "error"
    asker = Asker(system, template, load_picture, budget, long, progress=False)
    groups = pack([len(tokens) for tokens in data.validation], budget)

    def validate() -> dict[str, float]:
        loss, count = 0.0, 0
        for group in groups:
            batch = collate([data.validation[index] for index in group], load_picture)
            loss += system.model.loss(batch.to(system.model.device)).item()
            count += batch.targets.numel()
        return {"loss": loss / count, "accuracy": accuracy(asker, data.questions)}

    return validate


def announce(recipe: Recipe, system: System, data: Data, task: Task) -> None:
    """Says what is trained, on what, and where it is written."""
    trained = sum(parameter.numel() for parameter in task.trainables.values())
    total = sum(parameter.numel() for parameter in system.model.parameters())
    steps = recipe.optim.steps(task.steps_per_epoch)
    print(f"trained parameters: {trained:,} of {total:,} ({trained / total:.2%}), on {task.device}")
    print(f"samples: {len(data.train):,} to train on, {len(data.validation):,} to validate on")
    print(f"steps: {steps:,} of {recipe.optim.batch} samples, {task.steps_per_epoch:,} in an epoch")
    print(f"run folder: {recipe.run.folder}, its settings in {recipe.run.folder / RECIPE}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
