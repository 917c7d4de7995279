"""From a recipe to what the training loop needs: base, adapter, data and checks tied together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from data.epochs import EpochOrder, micro_batches
from data.packing import collate, pack
from data.picture_workers import Pictures, images_of
from data.pictures import check_pictures
from eval.choice import accuracy
from eval.results import versions
from eval.runner import Asker
from eval.statistics import wilson
from finetune.features import pictures_of
from finetune.recipe import Recipe, reader
from finetune.samples import Data, open_sources, read_data
from mma.storage import begin_from
from models.build import System, build_base, outline
from models.compiled import compile_blocks
from models.tensor_parallel import split_decoder, tensor_parallel
from training.batches import LazyBatches
from training.errors import RunError
from training.parallel import World
from training.run_state import PARTIAL, replace_file
from training.sharding import shard_base
from training.task import Task

RECIPE, VERSIONS = "recipe.yaml", "versions.json"


def build(recipe: Recipe, device: torch.device, world: World) -> Task:
    """Reads base and data, adds a fresh adapter, and checks or records what the run is made of."""
    sources = open_sources(recipe)
    sharded = recipe.run.shard and world.size > 1
    # Whole at first, and its digest with it; only a share of it goes to the device.
    whole = torch.device("cpu") if sharded or world.split else device
    system = build_base(recipe.base, whole, recipe.run.offload)
    adapters = system.model.adapters
    if world.split:
        split(recipe, system, device)
    adapters.identity = {**adapters.identity, "template": recipe.data.template}
    torch.manual_seed(recipe.optim.seed)
    adapters.add_adapter("default", recipe.settings)
    if recipe.start is not None:
        taken = begin_from(adapters, recipe.start)
        say(world, f"begun with {len(taken)} tensors of {recipe.start}")
    data = read_data(recipe, sources, system, partial(say, world))
    provenance = {
        "method": recipe.method,
        "template": recipe.data.template,
        "format": recipe.data.format,
        "captions": recipe.data.captions,
        "data_digest": next(iter(sources.digests.values())),
        **({"data_licence": recipe.data.licence} if recipe.data.licence else {}),
        "recipe": json.loads(json.dumps(asdict(recipe), default=str)),
    }
    task = make_task(recipe, system, data, provenance, device, world)
    # Errors of these two must come before the run has begun.
    recipe.optim.warmup_length(task.steps_per_epoch)
    begun = (recipe.run.folder / VERSIONS).exists()
    if not begun and world.first:
        check_pictures(image for tokens in data.held for image in tokens.images)
    digests = {**system.digests, **{f"data {split}": found for split, found in sources.digests.items()}}
    if begun:
        check_digests(recipe.run.folder, digests)
    elif world.first:
        content = {"versions": versions(), "digests": digests, "seed": recipe.optim.seed}
        write(recipe.run.folder / VERSIONS, json.dumps(content, indent=2) + "\n")
    announce(recipe, data, task)
    if sharded:
        shard(system, world, device)
    return task


@contextmanager
def whole_or_split(recipe: Recipe, world: World) -> Iterator[World]:
    """The world of a run: inside the block all its processes may hold one decoder together."""
    if not recipe.run.split or world.size == 1:
        yield world
        return
    with tensor_parallel(world.size):
        yield replace(world, split=True)


def split(recipe: Recipe, system: System, device: torch.device) -> None:
    """Leaves this process its share of every layer of the decoder; there are no adapters yet."""
    if recipe.method == "lora" or any(word.startswith("decoder") for word in recipe.settings.tuned):
        raise RunError(
            "run.split: LoRA and tuned parts of the decoder need whole layers: take run.shard, or mma"
        )
    model, base = system.model, system.model.adapters.base
    split_decoder(model.decoder)
    model.to(device)
    base.clear()
    base.update(model.named_parameters())
    for parameter in base.values():
        parameter.requires_grad_(False)


def shard(system: System, world: World, device: torch.device) -> None:
    """Leaves this process its share of the frozen decoder; everything else lies whole on its device."""
    decoder, adapters = system.model.decoder, system.model.adapters
    trained = adapters.trainable_parameters().values()
    replaced = shard_base(decoder, decoder.blocks, trained, world=world, device=device)
    adapters.base.update({name: replaced.get(p, p) for name, p in adapters.base.items()})
    system.model.to(device)


def make_task(
    recipe: Recipe,
    system: System,
    data: Data,
    provenance: dict[str, Any],
    device: torch.device,
    world: World,
) -> Task:
    """What the training loop needs to know of model and data."""
    optim, adapters = recipe.optim, system.model.adapters
    system.model.checkpointing = optim.checkpointing
    if recipe.run.compile:
        compile_blocks(system.model)
    order = EpochOrder(len(data.train), optim.seed)
    pictures = pictures_of(recipe, system, data, world)

    def batches_of_step(step: int) -> LazyBatches:
        groups = micro_batches(data.train, order.step(step, optim.batch), optim.tokens_per_batch)
        own = [groups[index] for index, _ in world.share(len(groups))]
        # All pictures of the step at once: those of one micro-batch may be too few for the workers.
        load = pictures.ahead(images_of(chain.from_iterable(own)))
        return LazyBatches([partial(collate, group, load) for group in groups])

    def save_adapter(folder: Path, where: dict[str, Any]) -> None:
        scores = told(where["scores"], recipe.data.validated, len(data.questions))
        adapters.save_pretrained(folder, {**provenance, **where, "scores": scores})

    return Task(
        model=system.model,
        trainables=adapters.trainable_parameters(),
        batches_of_step=batches_of_step,
        steps_per_epoch=order.steps_per_epoch(optim.batch),
        save_adapter=save_adapter,
        validate=make_validation(recipe, system, data, pictures) if data.validation else None,
        device=device,
        part_of=system.model.part_of,
        world=world,
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
    recipe: Recipe, system: System, data: Data, pictures: Pictures
) -> Callable[[], dict[str, float]]:
    """Loss per supervised token and share of right choices on the validation split."""
    budget = recipe.optim.tokens_per_batch
    long: Literal["error", "truncate"] = "truncate" if recipe.data.long == "truncate" else "error"
    asker = Asker(system, data.template, pictures, budget, long, progress=False)
    groups = pack([len(tokens) for tokens in data.validation], budget)

    def validate() -> dict[str, float]:
        loss, count = 0.0, 0
        for group in groups:
            batch = pictures.batch([data.validation[index] for index in group])
            loss += system.model.loss(batch.to(system.model.device)).item()
            count += batch.targets.numel()
        return {"loss": loss / count, "accuracy": accuracy(asker, data.questions)}

    return validate


def check_digests(folder: Path, digests: dict[str, str]) -> None:
    """Refuses to resume a run on another base or other data."""
    try:
        before = dict(json.loads((folder / VERSIONS).read_text())["digests"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / VERSIONS} cannot be read ({error}): start the run anew") from error
    if changed := [name for name in digests if before.get(name) != digests[name]]:
        raise RunError(f"{folder} was begun with another {', '.join(changed)}: put it back, or start anew")


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


def write_recipe(recipe: Recipe) -> None:
    """Puts the whole recipe into its run folder."""
    write(recipe.run.folder / RECIPE, reader(recipe.method).dump(recipe))


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


def announce(recipe: Recipe, data: Data, task: Task) -> None:
    """Says what is trained, on what, and where it is written."""
    trained = sum(parameter.numel() for parameter in task.trainables.values())
    # A quantised base counts as it is described, not by the bytes its weights are packed in.
    parts = outline(recipe.base).adapters.base.values()
    total = sum(parameter.numel() for parameter in parts) + trained
    steps = recipe.optim.steps(task.steps_per_epoch)
    processes = f", {task.world.size} processes" if task.world.size > 1 else ""
    say(
        task.world,
        f"trained parameters: {trained:,} of {total:,} ({trained / total:.2%}), on {task.device}{processes}",
    )
    say(task.world, f"samples: {len(data.train):,} to train on, {len(data.validation):,} to validate on")
    say(task.world, f"steps: {steps:,} of {recipe.optim.batch} samples, {task.steps_per_epoch:,} in an epoch")
    say(task.world, f"run folder: {recipe.run.folder}, its settings in {recipe.run.folder / RECIPE}")


def say(world: World, line: str) -> None:
    """Prints a line once, however many processes there are."""
    if world.first:
        print(line, flush=True)
