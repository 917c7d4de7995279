"""The samples of a recipe as tokens: what is trained on, and what is validated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.lazy import tokenise
from data.mixture import Mixture, open_mixture
from data.pictures import slot_counter
from data.prompts import render
from data.sample import Indexed, Sample, Tokens
from data.scienceqa import digest, load_split
from data.template import Template, make_template
from finetune.recipe import DataSettings, Recipe
from models.build import System
from training.errors import RunError


@dataclass(frozen=True)
class Data:
    """The samples of both splits, as tokens; those of a large mixture are made when they are asked for."""

    template: Template
    train: Indexed[Tokens | None]
    validation: tuple[Tokens, ...]
    questions: list[Sample]  # those of the validation that fit

    @property
    def held(self) -> Iterator[Tokens]:
        """The samples that are in memory already."""
        yield from self.validation
        if isinstance(self.train, tuple):
            yield from (tokens for tokens in self.train if tokens is not None)


@dataclass(frozen=True)
class Sources:
    """What a recipe reads: the mixture to train on, if there is one, and digests by what each is for."""

    mixture: Mixture | None
    digests: dict[str, str]


def open_sources(recipe: Recipe) -> Sources:
    """Opens and digests what is read, once: files may be large."""
    data = recipe.data
    mixture = open_mixture(data.mix, recipe.optim.seed) if data.mix else None
    found: dict[str, str] = {}
    if mixture is not None:
        found["train"] = mixture.digest()
    elif data.root is not None:
        found[data.train] = digest(data.root, data.train)
    if data.root is not None and data.validated:
        found[data.validated] = digest(data.root, data.validated)
    return Sources(mixture, found)


def template_of(settings: DataSettings, system: System) -> Template:
    """How a sample is written for a system."""
    slots_of = slot_counter(system.image_slots, system.model.slots)
    return make_template(settings.template, system.tokenizer, slots_of)


def read_data(recipe: Recipe, sources: Sources, system: System, say: Callable[[str], None]) -> Data:
    """Both splits, rendered and tokenised; what is too long is treated as the recipe says."""
    settings = recipe.data
    template = template_of(settings, system)
    limit = min(settings.max_tokens, system.model.decoder.config.max_positions)
    if limit > recipe.optim.tokens_per_batch:
        raise RunError(
            f"optim.tokens_per_batch is {recipe.optim.tokens_per_batch}, but one sample may have {limit} "
            "tokens (data.max_tokens): raise the first or lower the second"
        )

    def tokens_of(split: str, samples: Indexed[Sample]) -> Indexed[Tokens | None]:
        tokens, summary = tokenise(samples, template, limit, settings.long)
        if summary:
            say(f"{split}: {summary}")
        return tokens

    if sources.mixture is not None:
        trained = tokens_of("train", sources.mixture)
    else:
        trained = tokens_of(settings.train, read_split(settings, settings.train))
    samples = read_split(settings, settings.validated)[: settings.validation_limit]
    validation = tuple(each for each in tokens_of(settings.validated, samples) if each is not None)
    if settings.validated and not validation:
        raise RunError(f"there is no sample to validate on in data.validation '{settings.validated}'")
    kept = {tokens.sample_id for tokens in validation}
    return Data(template, trained, validation, [sample for sample in samples if sample.id in kept])


def read_split(settings: DataSettings, split: str) -> list[Sample]:
    """The rendered problems of a split of the root; none where no split is named."""
    if not split or settings.root is None:
        return []
    return [
        render(problem, settings.format, problem.picture(settings.root), settings.captions)
        for problem in load_split(settings.root, split)
    ]
