"""What a recipe would train and hold in memory, from descriptions alone: no weight and no data is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from finetune.recipe import Recipe
from models.build import DTYPES, outline
from models.multimodal import MultimodalLM
from models.offload import ROOM, held_away, is_away
from models.quantise import check_kind, weight_bytes
from training.optimizer import average_bytes

TRAINED = 16  # bytes of a trained parameter: itself, its gradient and AdamW's two averages in fp32
GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One part of a system."""

    name: str
    parameters: int
    trained: int
    bytes: float


@dataclass(frozen=True)
class Plan:
    """The parts of a system, and how pictures look to it."""

    title: str
    lines: tuple[Line, ...]
    pictures: str

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return sum(line.trained for line in self.lines)

    @property
    def parameters(self) -> int:
        """Parameters of base and adapter; a part tuned in full is counted once."""
        return sum(line.parameters for line in self.lines)

    @property
    def gib(self) -> float:
        """Memory without activations, in GiB."""
        return sum(line.bytes for line in self.lines) / GIB

    def table(self) -> str:
        """For a terminal."""
        rows = [
            (line.name, f"{line.parameters:,}", f"{line.trained:,}", f"{line.bytes / GIB:.2f}")
            for line in self.lines
        ]
        rows.append(("in all", f"{self.parameters:,}", f"{self.trained:,}", f"{self.gib:.2f}"))
        head = ("part", "parameters", "trained", "GiB")
        wide = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
        told = [
            f"{row[0]:<{wide[0]}}  "
            + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], wide[1:], strict=True))
            for row in [head, *rows]
        ]
        note = "GiB of weights, and of gradients and optimizer for what is trained; activations come on top"
        return "\n".join([self.title, *told, note, self.pictures])


def plan(recipe: Recipe, name: str = "") -> Plan:
    """The plan of one stage.

    Raises ModelError or AdapterError where base and adapter cannot be built.
    """
    check_kind(recipe.base.quantise)
    model = outline(recipe.base)
    with torch.device("meta"):
        model.adapters.add_adapter("default", recipe.settings)
    trained: Counter[str] = Counter()
    spared: dict[str, float] = defaultdict(float)  # bytes of averages in fewer bits
    for key, parameter in model.adapters.trainable_parameters().items():
        part, numbers = model.part_of(key), parameter.numel()
        trained[part] += numbers
        spared[part] += 8 * numbers - average_bytes(recipe.optim.optimizer, numbers)
    still = {part for part, rate in recipe.optim.parts.items() if rate == 0}
    lines = []
    for part in ("decoder", "tower", "projector", "adapters"):
        own, held = _base(model, part, recipe)
        count = trained[part]
        moved = 0 if part in still else count
        learning = TRAINED * moved - (spared[part] if moved else 0)
        lines.append(Line(part, own or count, moved, held + learning + 4 * (count - moved)))
    method = f"method {recipe.method}"
    if recipe.base.quantise != "none":
        method += f" on a base in {recipe.base.quantise}"
    return Plan(f"{name or recipe.run.folder.name}: {method}", tuple(lines), _pictures(model, recipe))


def _base(model: MultimodalLM, part: str, recipe: Recipe) -> tuple[int, float]:
    """Parameters of a part of the base, and the bytes they take."""
    full = DTYPES[recipe.base.precision].itemsize
    away = held_away(recipe.run.offload, len(model.decoder.blocks)) if part == "decoder" else ()
    guests = away[:ROOM]  # blocks are alike: so many have room, whichever they are
    count, size = 0, 0.0
    for name, parameter in model.adapters.base.items():
        if name.startswith(f"{part}."):
            count += parameter.numel()
            within = name.removeprefix(f"{part}.")
            if is_away(within, parameter.shape, away) and not is_away(within, parameter.shape, guests):
                continue
            linear = name.startswith("decoder.blocks.") and parameter.ndim == 2
            size += weight_bytes(recipe.base.quantise if linear else "none", parameter.shape, full)
    return count, size


def _pictures(model: MultimodalLM, recipe: Recipe) -> str:
    height, width = model.tower.image_size
    fixed = model.layout.fixed(model.view_tokens)
    if fixed is not None:
        count = f"{fixed} tokens each"
    else:
        shown = ((672, 672), (640, 480), (336, 1008))
        count = "tokens by size: " + ", ".join(f"{w} x {h} gives {model.slots(w, h)}" for w, h in shown)
    return f"pictures: views of {width} x {height} ({recipe.base.pictures}), {count}"
