"""What one example is: as text (`Sample`) and as token ids (`Tokens`).

Knows nothing of files, prompt formats or batches, and never opens a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

IMAGE = "<image>"
"""Marks in a question where a picture stands; pictures without a mark stand where the template says."""

SlotsOf = Callable[[Path], int]
"""How many positions the picture of a file takes in the sequence."""


Item_co = TypeVar("Item_co", covariant=True)


class Indexed(Protocol[Item_co]):
    """Items that may be made when they are asked for; a tuple or list is one too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item_co: ...


class TextTokenizer(Protocol):
    """What the data packages need of a tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """What stands before every text; None where the family puts nothing there."""
        ...

    @property
    def eos_id(self) -> int:
        """What ends a text."""
        ...

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end; `continues` when it goes on where other text ended."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def special(self, text: str) -> int:
        """The id of a special token by its name."""
        ...


@dataclass(frozen=True)
class Turn:
    """One question and its answer, both as text."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One example as text and paths, without tensors; its last turn is `prompt` and `response`."""

    id: str
    prompt: str  # ends where the response begins, e.g. "...\nResponse:"
    response: str  # supervised text, e.g. "The answer is B."
    images: tuple[Path, ...] = ()  # in the order of their marks
    options: tuple[str, ...] = ()  # one full candidate response per option
    gold: int | None = None  # index into options
    earlier: tuple[Turn, ...] = ()  # the turns before the last one, whose answers are supervised too
    system: str | None = None  # system prompt; None: the template's own
    video: bool = False  # the pictures are frames of one video

    @property
    def modality(self) -> str:
        """What the sample carries: text, image, images or video."""
        return modality_of(self.images, self.video)


def modality_of(images: Sequence[Path], video: bool = False) -> str:
    """The modality of a sample with these pictures."""
    if not images:
        return "text"
    if video:
        return "video"
    return "image" if len(images) == 1 else "images"


@dataclass(frozen=True)
class Tokens:
    """One example as T token ids."""

    sample_id: str
    ids: tuple[int, ...]  # T; image slots hold id 0
    supervised: tuple[bool, ...]  # T; True where the token is a target
    slots: tuple[int, ...]  # positions filled by projected picture features, ascending
    modality: str
    images: tuple[Path, ...] = ()
    slot_counts: tuple[int, ...] = ()  # of each picture
    head: int = 1  # tokens before the prompt (begin, prefix, slots), which no truncation may touch

    def __post_init__(self) -> None:
        where = f"tokens of sample {self.sample_id}"
        if len(self.ids) != len(self.supervised):
            raise ValueError(f"{where}: {len(self.ids)} ids but {len(self.supervised)} supervised marks")
        if self.supervised and self.supervised[0]:
            raise ValueError(f"{where}: the first token is supervised, but no token stands before it")
        if len(self.slot_counts) != len(self.images) or sum(self.slot_counts) != len(self.slots):
            counts = f"{len(self.slots)} image slots, counted as {self.slot_counts}"
            raise ValueError(f"{where}: {counts}, with {len(self.images)} pictures")
        if self.slots and not 0 <= self.slots[0] <= self.slots[-1] < len(self.ids):
            raise ValueError(f"{where}: image slots {self.slots} lie outside its {len(self.ids)} tokens")

    def __len__(self) -> int:
        return len(self.ids)
