"""Tokens of samples: of few at once, of many only when they are asked for."""

from __future__ import annotations

from functools import lru_cache

from data.lengths import Long, fit
from data.sample import Indexed, Sample, Tokens
from data.template import Template

AT_ONCE = 50_000
"""From so many samples on, tokens are made on access."""


class TokenSource:
    """Tokens made on access, at most `limit` each; the last ones asked for are kept.

    A sample that `long="drop"` leaves out is None; one that `long="error"` refuses is a DataError, which
    comes in the middle of a run: `python -m data check` with a limit finds it before.
    """

    def __init__(self, samples: Indexed[Sample], template: Template, limit: int, long: Long) -> None:
        self._samples = samples

        @lru_cache(maxsize=4096)
        def made(index: int) -> Tokens | None:
            fitted = fit([template.tokens(samples[index])], limit, long).tokens
            return fitted[0] if fitted else None

        self._made = made

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tokens | None:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        return self._made(index % len(self))


def tokenise(
    samples: Indexed[Sample], template: Template, limit: int, long: Long
) -> tuple[Indexed[Tokens | None], str]:
    """Tokens of samples, and one line on what was too long (empty where nothing was, or is not known yet)."""
    if len(samples) >= AT_ONCE:
        return TokenSource(samples, template, limit, long), ""
    fitted = fit([template.tokens(samples[index]) for index in range(len(samples))], limit, long)
    return fitted.tokens, fitted.summary
