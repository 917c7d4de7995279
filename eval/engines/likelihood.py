"""Log-likelihoods of texts behind contexts: packed, and a context that several texts share computed once.

Knows nothing of the programs that ask for them.

Shapes: R rows of logits, V vocabulary, Q tokens of all texts that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.packing import PackedBatch, pack
from data.picture_workers import Pictures
from data.sample import Tokens
from models.build import System
from models.multimodal import MultimodalLM, inference
from models.prefix_attention import PrefixAttention

TAILS = 2048  # tokens of texts behind one context: who sees whom is written down for all pairs of them
ROWS = 512  # logits are computed for so many tokens at a time: with a large vocabulary they take much memory


@dataclass(frozen=True)
class Asked:
    """How likely is it that a text, of at least one token, stands behind a context of at least one?"""

    context: Tokens
    text: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """The sum of the log-likelihoods of a text's tokens, and whether each is the likeliest token."""

    value: float
    greedy: bool


@dataclass(frozen=True)
class _Group:
    """A context and the beginnings of its texts, all but their last tokens, behind which nothing is asked."""

    context: Tokens
    tails: tuple[tuple[int, ...], ...]  # all different, none empty
    members: tuple[int, ...]  # of the questions

    @property
    def shared(self) -> int:
        """How many tokens every text sees; the only text needs no other attention than a context."""
        return len(self.context) + (len(self.tails[0]) if len(self.tails) == 1 else 0)

    @property
    def tokens(self) -> Tokens:
        """The context and all tails, one behind the other."""
        ids = self.context.ids + tuple(token for tail in self.tails for token in tail)
        return replace(self.context, ids=ids, supervised=(False,) * len(ids))

    @property
    def apart(self) -> list[int]:
        """The lengths of the tails that must not see each other."""
        return [len(tail) for tail in self.tails] if len(self.tails) > 1 else [0]

    def rows(self, text: Sequence[int]) -> list[int]:
        """Which logits predict the tokens of a text, counted from the end of the context."""
        if len(text) == 1:
            return [0]
        place = self.tails.index(tuple(text[:-1]))
        start = 1 + sum(len(tail) for tail in self.tails[:place])
        return [0, *range(start, start + len(text) - 1)]


def likelihoods(
    system: System, pictures: Pictures, asked: Sequence[Asked], budget: int
) -> Iterator[tuple[int, Likelihood]]:
    """Every question's answer with its index, in batches of at most `budget` tokens (or one context)."""
    model = system.model
    groups = list(_grouped(asked, budget))
    lengths = [len(group.tokens) for group in groups]
    for places in pack(lengths, max([budget, *lengths])):
        chosen = [groups[place] for place in places]
        with inference(model):
            batch = pictures.batch([group.tokens for group in chosen]).to(model.device)
            found = _of_batch(model, batch, chosen, asked)
        yield from found


def _grouped(asked: Sequence[Asked], budget: int) -> Iterator[_Group]:
    """Questions with the same context together, as many as the budget holds."""
    by_context: dict[tuple[object, ...], list[int]] = {}
    for index, one in enumerate(asked):
        by_context.setdefault((one.context.ids, one.context.images, one.context.slots), []).append(index)
    for members in by_context.values():
        context = asked[members[0]].context
        room = min(budget - len(context), TAILS)
        tails: dict[tuple[int, ...], None] = {}
        kept: list[int] = []
        for index in members:
            tail = asked[index].text[:-1]
            if tail and tail not in tails:
                if tails and sum(map(len, tails)) + len(tail) > room:
                    yield _Group(context, tuple(tails), tuple(kept))
                    tails, kept = {}, []
                tails[tail] = None
            kept.append(index)
        yield _Group(context, tuple(tails), tuple(kept))


def _of_batch(
    model: MultimodalLM, batch: PackedBatch, groups: Sequence[_Group], asked: Sequence[Asked]
) -> list[tuple[int, Likelihood]]:
    attend = PrefixAttention(
        [group.shared for group in groups], [group.apart for group in groups], model.device
    )
    wanted: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    owners: list[tuple[int, int]] = []
    start = 0
    for group, length in zip(groups, batch.lengths, strict=True):
        first = len(wanted)
        wanted += range(start + len(group.context) - 1, start + length)
        start += length
        for index in group.members:
            text = asked[index].text
            rows += [first + row for row in group.rows(text)]
            targets += text
            owners.append((index, len(text)))
    with model.adapters.turns.computing():
        stream = model.embed(replace(batch, positions=attend.positions))
        hidden = model.decode(stream, attend, torch.tensor(wanted, device=model.device))
        values, best = _of_tokens(model, hidden, torch.tensor(rows), torch.tensor(targets))
    counts = [count for _, count in owners]
    parts = zip(owners, values.double().split(counts), best.split(counts), strict=True)
    return [(index, Likelihood(float(value.sum()), bool(own.all()))) for (index, _), value, own in parts]


def _of_tokens(model: MultimodalLM, hidden: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states float[R, D]; rows and tokens int64[Q] -> log-likelihoods float32[Q], bool[Q]."""
    values = torch.empty(len(rows))
    best = torch.empty(len(rows), dtype=torch.bool)
    for start in range(0, len(hidden), ROWS):
        logits = model.logits(hidden[start : start + ROWS]).log_softmax(-1)
        inside = ((rows >= start) & (rows < start + ROWS)).nonzero()[:, 0]
        own, token = (rows[inside] - start).to(logits.device), targets[inside].to(logits.device)
        values[inside] = logits[own, token].cpu()
        best[inside] = (logits.argmax(-1)[own] == token).cpu()
    return values, best
