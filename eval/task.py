"""One evaluation from an adapter folder and a data set to a result.

This is where models, data and adapters meet for an evaluation; the arithmetic is in `runner.py` and
`scienceqa.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from data.pictures import check_pictures, picture_loader, slot_counter
from data.prompts import render, require_format
from data.scienceqa import digest, load_split
from data.template import TEMPLATES, make_template
from eval.errors import EvalError
from eval.results import Result, file_digest, versions
from eval.runner import Asker, answer, choose, noise_instead
from eval.scienceqa import score
from mma.folder import CONFIG, TENSORS
from mma.run_folder import adapter_of
from mma.storage import describe
from models.build import BaseSettings, System, load


@dataclass(frozen=True)
class Settings:
    """What is evaluated, and how."""

    data: Path
    split: str
    adapter: Path  # an adapter folder, or a run folder that holds one
    decode: Literal["choice", "generate"] = "choice"
    blind: bool = False  # every picture replaced by noise
    no_adapter: bool = False  # the untouched base
    format: str | None = None  # of the prompt; None: the one the adapter was trained with
    long: Literal["error", "truncate"] = "error"
    max_new_tokens: int = 64
    tokens_per_batch: int = 4096
    device: str = "auto"
    base: dict[str, Any] = field(default_factory=dict)  # settings of the base that differ from the adapter's

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise EvalError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")


def adapter_folder(path: Path) -> Path:
    """The adapter folder itself, or the one in a run folder: that of its last stage if it has several."""
    folder = adapter_of(path)
    if not (folder / CONFIG).is_file():
        raise EvalError(f"{path}: neither an adapter folder (with {CONFIG}) nor a run folder (with adapter/)")
    return folder


def evaluate(settings: Settings) -> Result:
    """Load everything, ask every question of the split, and score."""
    device = _device(settings.device)
    problems = load_split(settings.data, settings.split)  # first: wrong data shows before a model is loaded
    if not problems:
        raise EvalError(f"{settings.data}: split {settings.split!r} is empty; name another")
    folder = adapter_folder(settings.adapter)
    description = describe(folder)
    prompt = prompt_of(settings, description)
    name = description.get("template", "lavin")
    if name not in TEMPLATES:
        raise EvalError(
            f"{folder}: was trained with template {name!r}, which this version does not have; update it"
        )
    samples = [
        render(problem, prompt["format"], problem.picture(settings.data), prompt["captions"])
        for problem in problems
    ]
    if not settings.blind:
        check_pictures(image for sample in samples for image in sample.images)
    system = load(folder, base_of(settings, description), device)
    pictures = noise_instead(system, samples) if settings.blind else picture_loader(system.preprocess)
    slots_of = slot_counter(system.image_slots, system.model.slots)
    template = make_template(name, system.tokenizer, slots_of)
    asker = Asker(system, template, pictures, settings.tokens_per_batch, settings.long)
    with system.model.adapters.disable_adapter() if settings.no_adapter else nullcontext():
        if settings.decode == "choice":
            answers = choose(asker, samples)
        else:
            answers = answer(asker, samples, max_new_tokens=settings.max_new_tokens)
    by_id = {problem.pid: problem for problem in problems}
    scores = score(by_id, {pid: made.option for pid, made in answers.predictions.items()})
    told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    found = {"base": asdict(system.settings), "device": device, "truncated": len(answers.truncated)}
    return Result(
        scores=scores,
        predictions=answers.predictions,
        settings={"benchmark": "scienceqa", **told, **prompt, **found},
        versions=versions(),
        digests=_digests(settings, folder, system),
    )


def prompt_of(settings: Settings, description: dict[str, Any]) -> dict[str, Any]:
    """The prompt format and whether it has captions, as the adapter was trained."""
    recorded = description.get("provenance")
    provenance = recorded if isinstance(recorded, dict) else {}
    name = settings.format or provenance.get("format")
    if not isinstance(name, str):
        raise EvalError(
            f"{settings.adapter}: its {CONFIG} does not say with which prompt format it was trained; "
            "give one, e.g. --format QCM-A"
        )
    require_format(name)
    return {"format": name, "captions": bool(provenance.get("captions", False))}


def base_of(settings: Settings, description: dict[str, Any]) -> BaseSettings | None:
    """The base the adapter names, with what was said otherwise; None where nothing was."""
    if not settings.base:
        return None
    recorded = description.get("base")
    return BaseSettings(**{**(recorded if isinstance(recorded, dict) else {}), **settings.base})


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise EvalError("--device cuda: PyTorch finds no CUDA device here; take --device cpu")
    return name if name != "auto" else "cuda" if available else "cpu"


def _digests(settings: Settings, folder: Path, system: System) -> dict[str, str]:
    """What the result depends on; the untouched base does not depend on the adapter."""
    adapter = {} if settings.no_adapter else {"adapter": file_digest(folder / TENSORS)}
    return {**system.digests, **adapter, "data": digest(settings.data, settings.split)}
