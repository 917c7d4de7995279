"""Several sources as one sequence of samples, with caps and weights.

Of each source `take` rows are chosen, or all. Without weights an epoch holds each of these once. With
weights it has as many samples as all of them together, and each source's share of it is its weight's: a
source gives all its rows as many whole times as they fit into its share, and a choice of them for the
rest. Every choice is a function of the seed and the source's place in the list alone (`order.py`), and
the same in every epoch. Steps mix the sources, for epochs are shuffled (`epochs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.order import keyed_order
from data.sample import Sample
from data.source import Source, SourceSettings, open_source


class Mixture:
    """The samples of an epoch, source after source, each read when it is asked for."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        if not self.sources:
            raise DataError("a mixture needs a source; add one to data.mix")
        pools = [_taken(source, f"{seed} take {place}") for place, source in enumerate(self.sources)]
        self.counts = _shares([source.settings for source in self.sources], [len(pool) for pool in pools])
        self._rows = [
            _repeated(pool, count, f"{seed} weight {place}")
            for place, (pool, count) in enumerate(zip(pools, self.counts, strict=True))
        ]
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        source, row = self.origin(index)
        return self.sources[source][row]

    def origin(self, index: int) -> tuple[int, int]:
        """The source of a sample, by its place in the list, and its row there (from 0)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a mixture of {len(self)} samples")
        index %= len(self)
        source = int(np.searchsorted(self._ends, index, side="right"))
        begin = int(self._ends[source]) - self.counts[source]
        return source, int(self._rows[source][index - begin])

    def digest(self) -> str:
        """SHA-256 over the seed and the digests of the sources."""
        parts = [str(self.seed), *(source.digest() for source in self.sources)]
        return sha256(" ".join(parts).encode()).hexdigest()


def open_mixture(settings: Sequence[SourceSettings], seed: int) -> Mixture:
    """The mixture of some sources; a DataError where one cannot be opened."""
    return Mixture([open_source(each) for each in settings], seed)


def _taken(source: Source, key: str) -> NDArray[np.int64]:
    """The rows of a source that are used, ascending."""
    take, rows = source.settings.take, len(source)
    if take is None:
        return np.arange(rows, dtype=np.int64)
    if take > rows:
        raise DataError(
            f"take of the source {source.settings.path} is {take}, but it has {rows} rows; lower it, or "
            "give the sources weights to repeat rows"
        )
    return np.sort(keyed_order(rows, key)[:take])


def _shares(settings: Sequence[SourceSettings], rows: Sequence[int]) -> tuple[int, ...]:
    """How many samples of an epoch each source gives."""
    weights = [each.weight for each in settings if each.weight is not None]
    if not weights:
        return tuple(rows)
    if len(weights) < len(settings):
        without = next(each.path for each in settings if each.weight is None)
        raise DataError(f"the source {without} has no weight and others have; give all one, or none")
    # Rounded at the ends, not one by one, so that the shares add up.
    ends = np.rint(np.cumsum(weights) / np.sum(weights) * sum(rows)).astype(np.int64)
    counts = tuple(int(count) for count in np.diff(ends, prepend=0))
    if 0 in counts:
        path = settings[counts.index(0)].path
        raise DataError(f"the weight of the source {path} gives it no sample; raise it")
    return counts


def _repeated(pool: NDArray[np.int64], count: int, key: str) -> NDArray[np.int64]:
    """So many rows: all of them whole times, and a choice for the rest."""
    times, rest = divmod(count, len(pool))
    chosen = np.sort(keyed_order(len(pool), key)[:rest]) if rest else pool[:0]
    return np.concatenate([np.tile(pool, times), pool[chosen]])
