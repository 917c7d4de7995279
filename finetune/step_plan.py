"""What a step of a recipe would need on this device: memory by part, products, time, and whether it fits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.estimate import SHARE, Epoch, epoch_of, products_per_second
from finetune.memory import Needs, Shape, needs
from finetune.plan import GIB, Plan
from finetune.recipe import Recipe
from models.build import DTYPES, outline

TEXT = 320  # tokens of a sample beside its picture: the mean of ScienceQA with lecture and explanation
PICTURE = (672, 504)
LESS_MEMORY = (
    "optim.checkpointing selective or full, a smaller optim.tokens_per_batch, base.quantise nf4, run.offload "
    "or optim.optimizer adamw8bit where much is trained"
)


@dataclass(frozen=True)
class Device:
    """What is known of where a recipe is to run."""

    name: str
    free: int  # bytes
    speed: float  # floating point operations a second of matrix products


@dataclass(frozen=True)
class StepPlan:
    """A micro-batch of a recipe: what it holds, what it needs, and what the device has."""

    plan: Plan
    shape: Shape
    needs: Needs
    unpacked: int  # bytes that a quantised weight takes while it is multiplied
    device: Device | None  # None: not here
    epoch: Epoch | None

    @property
    def peak(self) -> float:
        """Bytes at the worst moment of a step."""
        return self.plan.gib * GIB + self.needs.activations + self.needs.working + self.unpacked

    def table(self) -> str:
        """For a terminal, behind the plan's own table."""
        tokens = sum(self.shape.tokens)
        pictures = sum(size is not None for size in self.shape.pictures)
        lines = [
            f"on top, for a micro-batch of {tokens:,} tokens ({len(self.shape.tokens)} samples, {pictures} "
            "pictures):",
            f"  kept for the backward pass  {self.needs.activations / GIB:.2f} GiB",
            f"  at work at the same time    {(self.needs.working + self.unpacked) / GIB:.2f} GiB",
            f"peak: {self.peak / GIB:.2f} GiB; products: {self.needs.flops / 1e12:.2f} TFLOP",
        ]
        return "\n".join(lines + ([] if self.device is None else self._here(self.device, tokens)))

    def _here(self, device: Device, tokens: int) -> list[str]:
        """What the device makes of it."""
        seconds = self.needs.flops / (SHARE * device.speed)
        fits = self.peak <= device.free
        lines = [
            f"on {device.name}: {'fits' if fits else 'does not fit'} in the {device.free / GIB:.1f} GiB that "
            f"are free; about {_time(seconds)}, at {SHARE:.0%} of the {device.speed / 1e12:.2f} TFLOP/s of "
            "matrix products"
        ]
        if self.epoch is not None:
            lines.append(
                f"an epoch: {self.epoch.samples:,} samples, about {self.epoch.tokens:,} tokens, about "
                f"{_time(seconds * self.epoch.tokens / tokens)}"
            )
        if not fits:
            lines.append(f"to make it fit: {LESS_MEMORY}")
        return lines


def step_plan(recipe: Recipe, plan: Plan, device: torch.device | None) -> StepPlan:
    """Traces a micro-batch of the recipe, and measures the device, if it is here, for less than a second."""
    model = outline(recipe.base, 1)
    with torch.device("meta"):
        model.adapters.add_adapter("default", recipe.settings)
    slots = model.slots(*PICTURE) if recipe.settings.modalities != ("text",) else 0
    epoch = epoch_of(recipe, slots)
    shape = shape_of(recipe, slots, epoch)
    here = None
    if device is not None:
        speed = products_per_second(device, DTYPES[recipe.base.precision])
        here = Device(str(device), free_bytes(device), speed)
    return StepPlan(plan, shape, needs(recipe, shape), _unpacked(recipe), here, epoch)


def shape_of(recipe: Recipe, slots: int, epoch: Epoch | None) -> Shape:
    """A full micro-batch of samples of the data's mean length, with their share of pictures.

    Without the data: samples of ordinary length, each with a picture where the recipe has pictures.
    """
    budget = recipe.optim.tokens_per_batch
    length, share = slots + TEXT, 1.0
    if epoch is not None:
        length, share = round(epoch.tokens / epoch.samples), min(1.0, epoch.pictures / epoch.samples)
    length = max(1, min(length, budget))
    count = budget // length
    seen = round(share * count) if slots else 0
    answered = max(1, round(length - share * slots) * 2 // 3)  # of the text, two thirds
    pictures = (PICTURE,) * seen + (None,) * (count - seen)
    return Shape((length,) * count, (answered,) * count, pictures)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    for line in lines:
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # what there is, where nobody tells


def _unpacked(recipe: Recipe) -> int:
    """Bytes of the largest quantised weight in the type that it computes in."""
    if recipe.base.quantise == "none":
        return 0
    full = DTYPES[recipe.base.precision].itemsize
    weights = [p for p in outline(recipe.base, 1).decoder.blocks.parameters() if p.ndim == 2]
    return max(p.numel() * full for p in weights)


def _time(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
