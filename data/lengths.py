"""What happens to samples that are too long: refused, truncated or dropped, never cut silently.

Lengths are known from tokens alone, before any picture is opened. A length counts what stands in the
packed batch: begin, prefix, slots, prompt, response, end; not the modality token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.errors import DataError
from data.sample import Tokens

Long = Literal["error", "truncate", "drop"]


@dataclass(frozen=True)
class Fitted:
    """Samples of at most the wanted length, and the ids of those that had to be changed for it."""

    tokens: tuple[Tokens, ...]
    truncated: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line for the log; empty when every sample fitted as it was."""
        parts = []
        for verb, ids in (("truncated", self.truncated), ("dropped", self.dropped)):
            if ids:
                parts.append(f"{verb} {len(ids)} too long samples ({first_ids(ids)})")
        return "; ".join(parts)


def fit(tokens: Sequence[Tokens], max_tokens: int, long: Long = "error") -> Fitted:
    """The samples with none above `max_tokens`; `long` says what to do with those that are.

    `truncate` takes tokens from the beginning of the prompt, right behind the picture: its end holds
    the options and "Response:", without which no answer can be given. So a format that puts the long
    part first (CQM) loses least. Begin, prefix, slots and response are never cut.
    """
    too_long = [sample for sample in tokens if len(sample) > max_tokens]
    if too_long and long == "error":
        ids = [sample.sample_id for sample in too_long]
        raise DataError(
            f"{len(ids)} of {len(tokens)} samples exceed {max_tokens} tokens, the longest has "
            f"{max(map(len, too_long))} ({first_ids(ids)}); raise the limit, or choose long=truncate "
            "(shortens the prompt) or long=drop (leaves the samples out)"
        )
    if long == "drop":
        kept = tuple(sample for sample in tokens if len(sample) <= max_tokens)
        return Fitted(kept, truncated=(), dropped=tuple(sample.sample_id for sample in too_long))
    if long == "truncate":
        kept = tuple(_truncated(sample, max_tokens) for sample in tokens)
        return Fitted(kept, truncated=tuple(sample.sample_id for sample in too_long), dropped=())
    if long == "error":
        return Fitted(tuple(tokens), truncated=(), dropped=())
    raise DataError(f"long={long!r} is unknown; choose error, truncate or drop")


def first_ids(ids: Sequence[str], most: int = 5) -> str:
    """The first few ids, and whether there are more."""
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")


def _truncated(sample: Tokens, max_tokens: int) -> Tokens:
    excess = len(sample) - max_tokens
    if excess <= 0:
        return sample
    slots = set(sample.slots)
    answer = sample.supervised.index(True) if True in sample.supervised else len(sample)
    prompt = [index for index in range(sample.head, answer) if index not in slots]
    if excess >= len(prompt):
        raise DataError(
            f"sample {sample.sample_id} needs {len(sample) - len(prompt)} tokens without its prompt, which "
            f"leaves none of {max_tokens} for it; raise the limit or choose long=drop"
        )
    cut = set(prompt[:excess])
    kept = [index for index in range(len(sample)) if index not in cut]
    moved = {index: place for place, index in enumerate(kept)}
    return replace(
        sample,
        ids=tuple(sample.ids[index] for index in kept),
        supervised=tuple(sample.supervised[index] for index in kept),
        slots=tuple(moved[slot] for slot in sample.slots),
    )
